"""The convolutional zoo against the reference implementations' own numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RULE, Golden, read_golden
from rtseg.data.scenes import scenes
from rtseg.errors import CheckpointError
from rtseg.models import (
    FrameToLabels,
    Network,
    NetworkInfo,
    build,
    count,
    deploy,
    load_checkpoint,
    save_checkpoint,
)
from rtseg.models.checkpoints import COUNTERS, official_names
from rtseg.models.layers import ConvNorm, RepConv
from rtseg.models.pipeline import _first_convolution, normalize_frame
from rtseg.models.random_weights import build_untrained
from torch import nn

TOLERANCE = 2e-4  # largest error, in standard deviations of the logits
AUXILIARY = {  # golden file: our names of the auxiliary logits, in its order
    "sfnet_r18": (),
    "sfnet_r18_dsn": ("stride16", "stride8", "stride4"),
    "sfnet_r50": (),
    "sfnet_r101": (),
    "swiftnet_r18": (),
    "swiftnet_r18_pyramid": (),
    "bisenetv1": ("aux16", "aux32"),
    "bisenetv2": ("aux4", "aux8", "aux16", "aux32"),
    "pidnet_s": ("detail", "boundary"),
    "pidnet_m": ("detail", "boundary"),
    "pidnet_l": ("detail", "boundary"),
    "ddrnet_23_slim": ("detail",),
    "ddrnet_23": ("detail",),
    "sfanet": ("aux4", "aux8", "aux16", "aux32"),
    "mgseg": ("unrefined", "aux16"),
    "icnet": ("stride4", "stride8", "stride16"),
}
LARGER = [name for name in AUXILIARY if name.startswith(("pidnet", "ddrnet"))]
MACS = {"icnet": 28.533e9}  # at 512x1024; its golden file counts layers whose output is not used


@dataclass(frozen=True)
class Case:
    """A network with its golden file's weights."""

    name: str
    golden: Golden
    official: dict[str, torch.Tensor]
    network: Network


@pytest.fixture(scope="module", params=AUXILIARY)
def case(request: pytest.FixtureRequest) -> Case:
    golden = read_golden(request.param)
    official = golden.state
    network = load_checkpoint(build(request.param), official)
    return Case(request.param, golden, official, network)


@torch.inference_mode()
def test_logits_match_the_reference(case: Case) -> None:
    logits = case.network(case.golden.image)
    assert list(logits.shape) == case.golden.meta["logits_shape"]
    assert case.golden.error(logits) <= TOLERANCE


@torch.inference_mode()
def test_auxiliary_logits_match_the_reference(case: Case) -> None:
    image, facts = case.golden.image, case.golden.meta.get("aux", [])
    logits, auxiliary = case.network.forward_auxiliary(image)
    assert tuple(auxiliary) == AUXILIARY[case.name]
    assert torch.equal(case.network.upsample_logits(logits), case.network(image))
    samples = facts.values() if isinstance(facts, dict) else facts
    for ours, sample in zip(auxiliary.values(), samples, strict=True):
        assert list(ours.shape) == sample["shape"]
        found, expected = sampled(ours, sample)
        assert np.abs(found - expected).max() <= TOLERANCE * expected.std()


def sampled(logits: torch.Tensor, sample: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The values of `logits` at the places of a golden sample, and that sample's own."""
    if "flat_step" in sample:
        expected = np.array(sample["samples"])
        return logits.flatten()[:: sample["flat_step"]][: len(expected)].numpy(), expected
    if "steps" in sample:
        channel, row, column = sample["steps"]
        found = logits[0, ::channel, ::row, ::column]
    else:
        assert sample["sample"] == "[0, :3, ::5, ::7]"
        found = logits[0, :3, ::5, ::7]
    return found.flatten().numpy(), np.array(sample["values"])


@pytest.mark.parametrize("case", LARGER, indirect=True)
@torch.inference_mode()
def test_logits_match_on_a_second_larger_image(case: Case) -> None:
    facts = case.golden.meta["extra_run"]
    scaled = {key: case.official[key] * facts["scale"] for key in facts["scaled_entries"]}
    network = load_checkpoint(build(case.name), case.official | scaled)
    image = torch.from_numpy(RULE.image(facts["image_shape"], case.golden.meta["salt"]))
    assert facts["sample"] == "[0, :, ::13, ::17]"
    found, expected = network(image)[0, :, ::13, ::17].flatten(), np.array(facts["values"])
    assert np.abs(found.numpy() - expected).max() <= TOLERANCE * expected.std()


@torch.inference_mode()
def test_the_deployed_form_is_the_same_and_cheaper(case: Case) -> None:
    cheaper, image = deploy(case.network), case.golden.image
    expected = case.network(image)
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    before, after = count(case.network, (512, 1024)), count(cheaper, (512, 1024))
    assert after.macs <= 1.0001 * before.macs
    assert after.layers < before.layers
    norms = [m.norm for m in cheaper.modules() if isinstance(m, ConvNorm)]
    assert all(isinstance(norm, nn.Identity) for norm in norms)


def test_parameters_and_macs_are_the_references(case: Case) -> None:
    cost, facts = count(case.network, (512, 1024)), case.golden.meta
    assert cost.params == facts["params"]
    counted = facts.get("macs_512x1024_without_aux", facts["macs_512x1024"])
    assert cost.macs == pytest.approx(MACS.get(case.name, counted), rel=0.01)


def test_official_names_go_both_ways(case: Case) -> None:
    names, own = official_names(case.network), case.network.state_dict()
    assert len(set(names.values())) == len(names)
    listed = {name for name, _ in case.golden.meta["entries"]}
    # Some golden files list the norms' counters, others do not.
    assert without_counters(names.values()) == without_counters(listed)
    for ours, theirs in names.items():
        if not theirs.endswith(COUNTERS):
            assert torch.equal(own[ours], case.official[theirs])


def without_counters(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(COUNTERS)}


@pytest.mark.parametrize(
    "name", [n for n, extra in AUXILIARY.items() if extra and n not in ("pidnet_m", "ddrnet_23")]
)
def test_training_gives_logits_and_auxiliary_logits_by_name(name: str) -> None:
    network = build(name, num_classes=5).train()
    outputs = network(torch.randn(2, 3, 64, 64))
    assert tuple(outputs) == ("logits", *AUXILIARY[name])
    expected = {key: 1 if key == "boundary" else 5 for key in outputs}
    assert {key: logits.shape[1] for key, logits in outputs.items()} == expected
    sum(logits.mean() for logits in outputs.values()).backward()
    idle = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def renamed(state: dict[str, torch.Tensor], like: str, names_of: str) -> dict[str, torch.Tensor]:
    """An official state dict of one variant under another variant's official names."""
    ours = {theirs: ours for ours, theirs in official_names(build(like)).items()}
    theirs = official_names(build(names_of))
    return {theirs[ours[key]]: value for key, value in state.items()}


@torch.inference_mode()
def test_the_authors_sfnet_differs_by_its_warp_alone() -> None:
    golden = read_golden("sfnet_r18")
    state, image = golden.state, golden.image
    theirs = renamed(state, "sfnet_r18", "sfnet_r18_official")
    expected_names = ("layer0.0.6.weight", "layer0.1.weight", "layer4.1.conv2.weight")
    assert theirs.keys() >= {*expected_names, "head.fpn_out_align.2.flow_make.weight"}
    wrapped = {"state_dict": {f"module.{key}": value for key, value in theirs.items()}}
    network = load_checkpoint(build("sfnet_r18_official"), wrapped)
    plain = load_checkpoint(build("sfnet_r18"), state)
    moved = nn.functional.interpolate(
        plain(image), image.shape[-2:], mode="bilinear", align_corners=True
    )
    assert (network(image) - moved).abs().max() > 0.1
    for align in network.align:
        align.warp.align_corners = False
    assert torch.allclose(network(image), moved, atol=1e-5)


def test_a_trainers_prefix_and_loss_buffers_are_taken_off() -> None:
    plain = read_golden("ddrnet_23_slim").state
    wrapped = {f"model.{key}": value for key, value in plain.items()}
    wrapped["sem_loss.criterion.weight"] = torch.ones(19)
    network = load_checkpoint(build("ddrnet_23_slim"), {"state_dict": wrapped})
    weight = network.get_parameter("head.classifier.weight")
    assert torch.equal(weight, plain["final_layer.conv2.weight"])


def test_an_image_with_two_readers_is_normalized_in_front_of_them() -> None:
    cases = {"pidnet_s": True, "bisenetv2": False, "swiftnet_r18_pyramid": False, "icnet": False}
    for name, folded in cases.items():
        with torch.device("meta"):
            network = build(name)
        assert (_first_convolution(network) is not None) == folded, name


class PadsByItself(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias, padding=1)


class OneConvolution(Network):
    def __init__(self, conv: nn.Module):
        super().__init__()
        self.conv, self.upsample_logits = conv, nn.Identity()
        self.info = NetworkInfo("one", 6)

    def forward_logits(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image)


@pytest.mark.parametrize(
    ("conv", "folded"),
    [
        (nn.Conv2d(3, 6, 3, padding=1), True),
        (nn.Conv2d(3, 6, 3, padding=1, groups=3), False),
        (nn.Conv2d(3, 6, 3, padding=1, padding_mode="reflect"), False),
        (PadsByItself(3, 6, 3), False),
    ],
    ids=["plain", "grouped", "reflecting", "padding by itself"],
)
@torch.inference_mode()
def test_a_convolution_that_is_not_plain_is_not_folded(conv: nn.Module, folded: bool) -> None:
    network = OneConvolution(conv).eval()
    frame = next(iter(scenes(1, (32, 48), seed=1)))
    whole = FrameToLabels(network, ("logits",))
    assert whole.folded == folded
    expected = network(normalize_frame(frame, network))
    assert torch.allclose(whole(torch.from_numpy(frame)[None])[0], expected, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pidnet_l", "swiftnet_r18_pyramid"])
@torch.inference_mode()
def test_untrained_weights_do_not_amplify_half_precisions_rounding(name: str) -> None:
    network = build_untrained(name, 19)
    image = normalize_frame(next(iter(scenes(1, (64, 128), seed=1))), network)
    rounded = deploy(network)
    for module in rounded.modules():
        if not list(module.children()):
            for parameter in module.parameters():
                parameter.data = parameter.data.half().float()
            module.register_forward_hook(_in_half)
    error = rounded(image) - network(image)
    assert error.square().mean().sqrt() <= 1e-2 * network(image).square().mean().sqrt()


def _in_half(module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output.half().float()


def test_sfnet_lite_costs_what_its_paper_says() -> None:
    cost = count(build("sfnet_lite_r18"), (512, 1024))
    assert cost.params == 12_296_074
    assert cost.macs == pytest.approx(44.489e9, rel=0.01)


def test_a_reparameterized_convolution_folds_exactly() -> None:
    torch.manual_seed(0)
    for inputs, outputs in ((8, 8), (8, 12)):
        conv = RepConv(inputs, outputs).double()
        for norm in (m for m in conv.modules() if isinstance(m, nn.BatchNorm2d)):
            for tensor in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
        x = torch.randn(1, inputs, 9, 11).double()
        folded, expected = deploy(conv), conv.eval()(x)
        assert [type(m) for m in folded.children()] == [nn.Conv2d, nn.Identity, nn.ReLU]
        assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert (conv.identity is None) == (inputs != outputs)


@pytest.mark.parametrize("name", ["sfnet_r18", "csfcn", "csfcn_nano"])
@torch.inference_mode()
def test_a_plain_checkpoint_starts_a_reparameterized_head_unchanged(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    plain, image = build(name), torch.randn(1, 3, 64, 128)
    save_checkpoint(plain, tmp_path / "plain.safetensors", naming="official")
    for network in (build(name, head="rep"), build(f"{name}_rep")):
        assert sum(isinstance(m, RepConv) for m in network.modules()) == 1
        load_checkpoint(network, tmp_path / "plain.safetensors")
        assert torch.allclose(network(image), plain(image), atol=1e-6)
        for module in network.modules():
            if isinstance(module, RepConv):
                for _, norm in module.branch_norms():
                    nn.init.uniform_(norm.weight)
        expected = network(image)
        # Of the largest logit: what a small one is off by depends on how sums are split by threads.
        assert (deploy(network)(image) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_half_of_a_reparameterized_head_is_refused() -> None:
    network = build("csfcn_nano_rep")
    state = {k: v for k, v in network.state_dict().items() if "head.identity" not in k}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(network, state)
    assert "head.identity.weight" in error.value.missing


def test_an_unknown_head_is_named() -> None:
    with pytest.raises(ValueError, match=r"plain or rep, not 'repp'"):
        build("sfnet_r18", head="repp")
