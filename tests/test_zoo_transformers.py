"""The transformer families against the reference implementations' own numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, RULE, Golden, read_golden
from rtseg.errors import CheckpointError
from rtseg.export.graph import to_onnx
from rtseg.models import FrameToLabels, Network, NetworkInfo, build, count, deploy, load_checkpoint
from rtseg.models.attention import Groups, group, window_plan
from rtseg.models.backbones.convnext import ConvNeXt
from rtseg.models.backbones.swin import ORIGINAL, UNFOLDED, PatchMerging, Swin
from rtseg.models.checkpoints import COUNTERS, INDICES, official_names
from rtseg.models.families.crossformer import G7, CrossFormer, crossing_plan
from rtseg.models.families.ecfd_decoders import ECFD
from rtseg.models.families.ecfd_deformable import Atlas, DeformableAttention
from rtseg.models.families.senformer import STRIDES, SenFormer
from rtseg.models.families.senformer_learner import Learner
from rtseg.models.heads import EncoderDecoder, SemanticFPN, UPerHead, fcn_head
from test_zoo_conv import sampled, without_counters
from torch import nn

TOLERANCE = 2e-4  # largest error, in standard deviations of the logits
FAMILIES = ("crossformer", "ecfd", "senformer")
FAST = {"crossformer_s_fpn", "ecfd_tiny_r50_gate", "senformer_swin_t_learners"}
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz") if path.stem.startswith(FAMILIES))


@dataclass(frozen=True)
class Case:
    """A network with its golden file's weights."""

    name: str
    golden: Golden
    official: dict[str, torch.Tensor]
    network: Network


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in NAMES],
)
def case(request: pytest.FixtureRequest) -> Case:
    golden = read_golden(request.param)
    official = golden.state
    model = golden.meta["model"]
    network = build(model, num_classes=19 if model.startswith("ecfd") else 150)
    return Case(request.param, golden, official, load_checkpoint(network, official))


def test_the_golden_files_are_all_here() -> None:
    assert len(NAMES) == 10 + 15 + 16
    assert set(NAMES) >= FAST


@torch.inference_mode()
def test_logits_match_the_reference(case: Case) -> None:
    logits = case.network.forward_logits(case.golden.image)
    if not case.name.endswith("_learners"):
        assert list(logits.shape) == case.golden.meta["logits_shape"]
        assert case.golden.error(logits) <= TOLERANCE
    extra, auxiliary = case.network.forward_auxiliary(case.golden.image)
    assert torch.allclose(extra, logits, atol=1e-5 * float(logits.abs().max()))
    for name, sample in case.golden.meta.get("aux", {}).items():
        assert name == "auxiliary_head"
        found, expected = sampled(auxiliary["auxiliary"], sample)
        assert np.abs(found - expected).max() <= TOLERANCE * expected.std()
    if case.name.endswith("_learners"):
        votes = torch.cat([auxiliary[f"stride{stride}"] for stride in STRIDES], dim=1)
        assert case.golden.error(votes) <= TOLERANCE
        expected = sum(vote.softmax(1) for vote in votes.split(150, dim=1))
        assert torch.allclose(extra, expected, atol=1e-6)


@torch.inference_mode()
def test_the_deployed_form_is_the_same_and_cheaper(case: Case) -> None:
    image = case.golden.image
    cheaper, expected = deploy(case.network, tuple(image.shape[2:])), case.network(image)
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    size = case.golden.meta["macs_size"]
    before, after = count(case.network, size), count(cheaper, size)
    assert after.macs <= before.macs
    assert after.params < before.params
    assert not [m for m in cheaper.modules() if isinstance(m, nn.BatchNorm2d)]


def test_parameters_and_macs_are_the_references(case: Case) -> None:
    cost, facts = count(case.network, case.golden.meta["macs_size"]), case.golden.meta
    assert cost.params == facts["params"]
    assert cost.macs == pytest.approx(facts["macs"], rel=0.001)


def test_official_names_go_both_ways(case: Case) -> None:
    names, own = official_names(case.network), case.network.state_dict()
    assert len(set(names.values())) == len(names)
    listed = {name for name, _ in case.golden.meta["entries"]}
    assert without_counters(names.values()) == without_counters(listed)
    for ours, theirs in names.items():
        if not theirs.endswith((COUNTERS, *INDICES)):
            assert torch.equal(own[ours], case.official[theirs])


def small(name: str) -> Network:
    """A network of a family with few channels, every weight moved, and five classes."""
    widths = (16, 32, 64, 128)
    network: Network
    if name.startswith("crossformer"):
        backbone = CrossFormer(64, (2, 2, 2, 2), G7, code=2023 if "2023" in name else 2021)
        head = UPerHead if "upernet" in name else SemanticFPN
        auxiliary = fcn_head(256, 8, 5) if "upernet" in name else None
        network = EncoderDecoder(backbone, head(backbone.outputs, 5, width=16), auxiliary)
    elif name == "ecfd":
        decoder = ECFD(widths, 5, width=16, embed=24, heads=2, crop=(64, 128), add_context=True)
        network = EncoderDecoder(ConvNeXt((1, 1, 1, 1), widths, 0.1), decoder, fcn_head(64, 8, 5))
    else:
        swin = Swin(32, (2, 2, 1, 1), (1, 2, 4, 8), window=4, layout=UNFOLDED)
        network = SenFormer(swin, 5, shared=name == "senformer")
    network.info = NetworkInfo(name, 5, multiple=32 if name.startswith("crossformer") else 4)
    entries = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    state = {key: torch.from_numpy(value) for key, value in RULE.state_dict(entries).items()}
    network.load_state_dict(state, strict=False)
    return network.eval()


LARGER = ("crossformer_upernet_code2023", "senformer")
SMALL = ("crossformer_fpn", "ecfd", *LARGER)
FAST_FIRST = ["crossformer_fpn", "ecfd", *(pytest.param(n, marks=pytest.mark.slow) for n in LARGER)]


@pytest.mark.parametrize("name", SMALL)
def test_training_gives_logits_and_auxiliary_logits_by_name(name: str) -> None:
    outputs = small(name).train()(torch.randn(2, 3, 64, 64))
    auxiliary = () if name == "crossformer_fpn" else ("auxiliary",)
    votes = tuple(f"stride{stride}" for stride in STRIDES) if name == "senformer" else ()
    assert tuple(outputs) == ("logits", *votes, *auxiliary)
    assert {logits.shape[1] for logits in outputs.values()} == {5}


# Weights whose gradients are sums that cancel, so that rounding alone decides whether one is 0.
CANCELLED = {
    # All scores of a query get the same, which softmax takes out again; in this one stage's step,
    # each of the four units is on for all offsets or off for all.
    "crossformer": r"attention\.bias\.steps\.2\.2\.bias|stages\.0\.1\.\S*steps\.2\.0\.bias",
    # All of a channel gets the same, which a batch norm takes out again.
    "ecfd": r"project\.(\d\.conv|[01]\.norm)\.bias|blocks\.2\.spatial\.mlp\.fc2\.bias",
    "senformer": "nothing",
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", FAST_FIRST)
def test_every_weight_learns(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    network = small(name).double().train()  # some operations stay in float32, the networks' own
    for module in network.modules():
        if hasattr(module, "rate"):
            module.rate = 0
    outputs = network(torch.randn(2, 3, 64, 64, dtype=torch.float64))
    sum((logits * torch.randn_like(logits)).sum() for logits in outputs.values()).backward()
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert not [n for n, p in trained.items() if p.grad is None]
    # What cancels is below 1e-5, everything else above 1e-3.
    idle = {n for n, p in trained.items() if float(p.grad.abs().max()) < 3e-4}
    cancelled = CANCELLED[name.split("_")[0]]
    assert idle == {n for n in trained if re.search(f"({cancelled})$", n)}


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FAST_FIRST)
def test_the_exported_graph_is_the_network(name: str, precision: str, tmp_path: Path) -> None:
    network = small(name)
    frame = np.random.RandomState(0).randint(0, 255, (1, 64, 128, 3)).astype(np.uint8)
    with torch.inference_mode():
        expected = FrameToLabels(network, ("logits",))(torch.from_numpy(frame))[0].numpy()
    model = to_onnx(network, (64, 128), precision, ("labels", "logits"))
    onnx.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    labels, logits = session.run(None, {"frame": frame})
    assert labels.shape == (1, 64, 128)
    bar = {"fp32": 1e-4, "fp16": 2e-2}[precision]
    assert np.abs(logits.astype(np.float32) - expected).max() <= bar * np.abs(expected).max()
    grid_samples = sum(node.op_type == "GridSample" for node in model.graph.node)
    assert grid_samples == (6 if name == "ecfd" else 0)  # two a block
    layers, error = tensorrt_layers(tmp_path / "model.onnx")
    assert not error
    assert layers <= MOST_LAYERS[name]


@pytest.mark.parametrize("name", FAST_FIRST)
def test_openvino_computes_the_network(name: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from rtseg.runtime.backends.openvino import the_core

    network = small(name)
    frame = np.random.RandomState(0).randint(0, 255, (1, 64, 128, 3)).astype(np.uint8)
    with torch.inference_mode():
        expected = FrameToLabels(network, ("logits",))(torch.from_numpy(frame))[0].numpy()
    onnx.save(to_onnx(network, (64, 128), "fp32", ("logits",)), tmp_path / "model.onnx")
    # Nothing else as an output: OpenVINO's errors were in what it fuses.
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = the_core().compile_model(str(tmp_path / "model.onnx"), "CPU", settings)
    (logits,) = compiled(frame).values()
    assert np.abs(logits - expected).max() <= 1e-3 * np.abs(expected).max()


MOST_LAYERS = {
    "crossformer_fpn": 800,
    "crossformer_upernet_code2023": 800,
    "ecfd": 850,
    "senformer": 1500,  # four learners side by side, a block each, six times
}


def tensorrt_layers(path: Path) -> tuple[int, str]:
    trt = pytest.importorskip("tensorrt_rtx")
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        return 0, parser.get_error(0).desc()
    return network.num_layers, ""


@pytest.mark.parametrize("name", ["ecfd", "senformer"])
@torch.inference_mode()
def test_sizes_that_no_stage_divides(name: str) -> None:
    network, image = small(name), torch.randn(2, 3, 52, 76)
    logits = network(image)
    assert logits.shape == (2, 5, 13, 19)
    assert torch.allclose(deploy(network, (52, 76))(image), logits, atol=1e-4)


@torch.inference_mode()
def test_a_batch_is_its_images_one_by_one() -> None:
    for name in ("crossformer_fpn", "ecfd"):
        network, images = small(name), torch.randn(2, 3, 64, 96)
        alone = torch.cat([network(image[None]) for image in images])
        assert torch.allclose(network(images), alone, atol=1e-4 * float(alone.abs().max()))


def test_windows_are_cut_rolled_and_put_back() -> None:
    height, width, window, shift = 6, 9, 4, 2
    x = torch.randn(2, height * width, 3)
    padded = F.pad(x.view(2, height, width, 3), (0, 0, 0, 3, 0, 2)).roll((-shift, -shift), (1, 2))
    windows = padded.view(2, 2, window, 3, window, 3).transpose(2, 3).reshape(-1, window**2, 3)
    groups = Groups(lambda h, w: window_plan(h, w, window, shift))
    cut = groups.split(x, (height, width))
    assert torch.equal(cut, windows)
    assert torch.equal(groups.join(cut, (height, width)), x)
    scores = groups.penalize(torch.zeros(12, 1, 16, 16), (height, width))
    assert torch.equal(scores[:6], scores[6:])
    # Top left: all together; bottom right: the four corners of the map apart.
    assert scores[0].max() == scores[0].min() == 0
    assert [int((scores[5, 0, i] == 0).sum()) for i in (0, 2, 8, 10)] == [4, 4, 4, 4]
    assert scores.min() == -100


def test_distant_groups() -> None:
    tokens = group(4, 6, rows=2, columns=3, interval=2)
    assert tokens.tolist()[0] == [0, 2, 4, 12, 14, 16]
    assert sorted(tokens.reshape(-1)) == list(range(24))
    assert crossing_plan(20, 33, 7, 8, 2021).shape == (3, 5)
    assert crossing_plan(20, 33, 7, 8, 2023).shape == (7, 7)
    assert crossing_plan(5, 33, 7, 8, 2021).shape == (5, 5)
    assert crossing_plan(5, 33, 7, 8, 2023).shape == (33, 33)
    plan = crossing_plan(20, 33, 7, 8, 2021)
    assert plan.hidden is not None
    assert plan.hidden.sum() == 24 * 40 - 20 * 33


def naive_deformable(
    attention: DeformableAttention,
    queries: torch.Tensor,
    values: torch.Tensor,
    asked: Sequence[tuple[int, int]],
    read: Sequence[tuple[int, int]],
) -> torch.Tensor:
    """The paper's sum, level by level, each with a grid sample of its own."""
    n, count_, width = queries.shape
    heads, levels, points = attention.heads, attention.levels, attention.points
    offsets = attention.offsets(queries).view(n, count_, heads, levels, points, 2)
    weights = attention.weights(queries).view(n, count_, heads, -1).softmax(-1)
    weights = weights.view(n, count_, heads, levels, points)
    centers = torch.cat(
        [
            torch.stack([(torch.arange(h * w) % w + 0.5) / w, (torch.arange(h * w) // w + 0.5) / h])
            for h, w in asked
        ],
        dim=1,
    ).T[None, :, None, None]
    total = torch.zeros(n, count_, heads, width // heads)
    parts = attention.value(values).split([h * w for h, w in read], dim=1)
    for level, ((h, w), part) in enumerate(zip(read, parts, strict=True)):
        places = centers + offsets[:, :, :, level] / torch.tensor([w, h])
        maps = part.transpose(1, 2).reshape(n * heads, -1, h, w)
        grid = (2 * places - 1).transpose(1, 2).flatten(0, 1)
        found = F.grid_sample(maps, grid, align_corners=False).view(n, heads, -1, count_, points)
        weighted = found * weights[:, :, :, level].transpose(1, 2)[:, :, None]
        total += weighted.sum(-1).permute(0, 3, 1, 2)
    return attention.output(total.flatten(2))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("asked", "read"),
    [([(4, 6)], [(8, 12), (4, 6), (2, 3)]), ([(8, 12), (4, 6), (2, 3)], [(4, 6)])],
    ids=["three levels", "one level"],
)
def test_one_grid_sample_reads_all_levels(
    asked: list[tuple[int, int]], read: list[tuple[int, int]]
) -> None:
    torch.manual_seed(0)
    attention = DeformableAttention(16, heads=2, levels=len(read))
    nn.init.normal_(attention.offsets.weight, std=2.0)  # far outside of the smaller maps, too
    nn.init.normal_(attention.weights.weight)
    queries = torch.randn(2, sum(h * w for h, w in asked), 16)
    values = torch.randn(2, sum(h * w for h, w in read), 16)
    expected = naive_deformable(attention, queries, values, asked, read)
    for form in (attention, deploy(attention)):
        assert torch.allclose(form(queries, values, asked, read), expected, atol=1e-4)


def test_the_atlas_holds_every_map_between_zeros() -> None:
    sizes = [(4, 6), (2, 3), (1, 2)]
    tokens = torch.arange(1.0, 33.0).view(1, 32, 1)
    atlas = Atlas()
    laid = atlas.lay(tokens, sizes)
    expected = torch.zeros(7, 6)
    expected[:4] = tokens[0, :24, 0].view(4, 6)
    expected[5:, :3] = tokens[0, 24:30, 0].view(2, 3)
    expected[5, 4:] = tokens[0, 30:, 0]
    assert torch.equal(laid[0, 0], expected)
    assert torch.equal(atlas.take(laid, sizes), tokens)


@torch.inference_mode()
def test_merging_in_the_toolbox_layout_unfolds_by_channel() -> None:
    torch.manual_seed(0)
    merge = PatchMerging(3, UNFOLDED)
    nn.init.normal_(merge.norm.weight)
    x = torch.randn(1, 20, 3)
    unfolded = F.unfold(x.transpose(1, 2).view(1, 3, 4, 5), 2, stride=2)  # drops the odd column
    even = x.view(1, 4, 5, 3)[:, :, :4].reshape(1, 16, 3)
    expected = merge.reduction(merge.norm(unfolded.transpose(1, 2)))
    assert torch.allclose(merge(even, (4, 4)), expected, atol=1e-6)
    deployed = deploy(merge)
    assert deployed.layout == ORIGINAL
    assert torch.allclose(deployed(even, (4, 4)), expected, atol=1e-6)
    assert merge(x, (4, 5)).shape == (1, 6, 6)


def as_six_blocks(state: dict[str, Any]) -> dict[str, Any]:
    """How the released SenFormer code would save a shared block."""
    copies = {
        key.replace(".layers.0.", f".layers.{k}."): value.clone()
        for key, value in state.items()
        if ".layers.0." in key and key.startswith("decode_head")
        for k in range(1, 6)
    }
    return state | copies


def test_six_equal_blocks_are_one_shared_block() -> None:
    network = build("senformer_r50", num_classes=5)
    names = official_names(network)
    state = {names[key]: torch.rand(value.shape) for key, value in network.state_dict().items()}
    six = as_six_blocks(state)
    load_checkpoint(network, six)
    ours = "head.learners.2.blocks.0.mlp.fc1.weight"
    assert torch.equal(network.state_dict()[ours], state[names[ours]])
    key = "decode_head.learners.1.layers.4.norm2.bias"
    six[key] = six[key] + 1
    with pytest.raises(CheckpointError, match=r"1 unexpected: decode_head\.learners\.1\.layers\.4"):
        load_checkpoint(network, six)


@torch.inference_mode()
def test_classes_start_the_same_and_untrained_ones_differ() -> None:
    torch.manual_seed(0)
    learner, x = Learner(5, shared=True), torch.randn(1, 512, 4, 6)
    assert float(learner(x).std(dim=1).max()) < 1e-5
    learner.init_untrained()
    assert 0.3 < float(learner(x).std(dim=1).mean()) < 3


def test_sizes_that_crossformer_cannot_take_are_named() -> None:
    with pytest.raises(ValueError, match=r"multiples of 32, not 64x80: use 64x64 or 64x96"):
        small("crossformer_fpn")(torch.zeros(1, 3, 64, 80))


def test_add_context_needs_three_blocks() -> None:
    with pytest.raises(ValueError, match="three blocks"):
        ECFD((8, 8, 8, 8), 5, width=8, embed=8, heads=2, blocks=2, add_context=True)


def test_positions_of_another_crop() -> None:
    network = build("ecfd_tiny_r50", num_classes=59, crop=(480, 480))
    assert network.head.positions.values.shape == (1, 14401, 192)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(37.83e6, rel=1e-3)
