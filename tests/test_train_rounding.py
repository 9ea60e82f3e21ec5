"""Quantization-aware training: rounds what export rounds and as it does, learns, and goes on."""

from __future__ import annotations

import copy
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from rtseg.data.scenes import scenes
from rtseg.errors import RecipeError
from rtseg.export import calibrate
from rtseg.export import quantize as quantize
from rtseg.export.graph import find_layers, to_onnx
from rtseg.models import build, load_checkpoint
from rtseg.models.checkpoints import official_names, read_checkpoint
from rtseg.models.onnx_graph import KINDS
from rtseg.train import qat as rounding
from rtseg.train.log import read_log
from rtseg.train.parallel import Place
from rtseg.train.predictor import normalize
from rtseg.train.qat import get_ranges, round_layers, set_ranges
from rtseg.train.state import read_state
from rtseg.train.trainer import BEST, LOG, STATE, Run, train
from tiny_camvid import tiny_recipe, write_camvid
from torch import nn

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = 96, 160
# csfcn_nano's layers that a deployed network has in another form: merged, or cut in two.
IN_TRAINING = {"context.key", "context.value", "spatial.offset_hidden.conv"}
DEPLOYED = {"context.key_value", "spatial.hidden_shallow", "spatial.hidden_deep"}


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.fixture
def anything(monkeypatch):
    """Lets round_layers take modules that are no networks."""
    monkeypatch.setattr(rounding, "position_layers", lambda *_: set())


def nearest(values, scale):
    """Rounded to int8 steps of `scale` and back, by the book."""
    return np.clip(np.rint(values / scale), -128, 127) * scale


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2), (2, 4, 9, 11)),
        (nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 9, 11)),
        (nn.Conv1d(4, 3, 1), (2, 4, 7)),
        (nn.Linear(4, 5), (2, 7, 4)),
    ],
    ids=["convolution", "grouped", "of one dimension", "linear"],
)
def test_a_layer_multiplies_rounded_values(anything, layer, shape):
    torch.manual_seed(0)
    plain, x = copy.deepcopy(layer), 3 * torch.randn(shape)
    network = nn.Sequential(layer)
    assert round_layers(network, SIZE) == ["0"]
    reach = float(x.abs().max()) / 2
    set_ranges(network, {"0": torch.tensor(reach)})
    weight = plain.weight.detach().numpy()
    rows = np.abs(weight).reshape(len(weight), -1).max(1).reshape(-1, *[1] * (weight.ndim - 1))
    plain.weight.data = torch.from_numpy(nearest(weight, rows / 127)).float()
    expected = plain(torch.from_numpy(nearest(x.numpy(), reach / 127)).float())
    assert torch.allclose(network.eval()(x), expected, atol=1e-5)


def test_gradients_pass_inside_the_range_and_not_outside(anything):
    layer = nn.Linear(3, 1, bias=False)
    layer.weight.data = torch.tensor([[2.0, -0.5, 0.5]])
    network = nn.Sequential(layer)
    round_layers(network, SIZE)
    set_ranges(network, {"0": torch.tensor(1.27)})
    x = torch.tensor([[0.504, -0.3, 5.0]], requires_grad=True)
    network.eval()(x).backward()
    assert x.grad.tolist() == [[2.0, pytest.approx(-64 / 127), 0.0]]
    assert layer.weight.grad.tolist() == [pytest.approx([0.50, -0.3, 1.27])]


def test_a_range_follows_what_its_layer_reads_in_training(anything):
    network = nn.Sequential(nn.Linear(1, 1))
    round_layers(network, SIZE)
    values = torch.linspace(-1, 0.5, 30_001)[:, None]
    values[0] = -100.0  # one value in 10,000 may lie outside
    network.train()(values)
    first = float(get_ranges(network)["0"])
    assert first == pytest.approx(1, abs=1e-3)
    network(10 * values)
    assert float(get_ranges(network)["0"]) == pytest.approx(first + 0.05 * 9 * first)
    network.eval()(100 * values)
    assert float(get_ranges(network)["0"]) == pytest.approx(first + 0.05 * 9 * first)


def test_state_dict_and_names_stay(nano):
    network = copy.deepcopy(nano.network)
    before, official = list(network.state_dict()), official_names(network)
    parameters = list(network.parameters())
    assert round_layers(network, SIZE)
    assert list(network.state_dict()) == before
    assert official_names(network) == official
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))


@pytest.fixture(scope="module")
def plain(nano):
    """csfcn_nano as a float32 graph that gives logits."""
    return quantize.infer_shapes(to_onnx(nano.network, SIZE, "fp32", ("logits",)))


def test_it_rounds_the_layers_that_export_rounds(nano, plain):
    ours = set(round_layers(copy.deepcopy(nano.network), SIZE))
    exported = {layer.name for layer in find_layers(plain)}
    assert "spatial.offset" not in ours  # gives positions
    assert ours - IN_TRAINING == exported - DEPLOYED
    assert (ours & IN_TRAINING, exported & DEPLOYED) == (IN_TRAINING, DEPLOYED)


@pytest.mark.parametrize("variant", ["pidnet_s", "bisenetv2"])
def test_what_only_training_uses_stays_in_float(variant):
    names = round_layers(build(variant, 19), (64, 128))
    assert names
    assert not [name for name in names if name.startswith("extra.")]


@pytest.fixture(scope="module")
def spans(plain):
    return calibrate.measure_ranges(plain, KINDS, scenes(2, SIZE, seed=3), "percentile")


@pytest.mark.parametrize(
    "name", ["backbone.stem.1.conv", "backbone.layer2.0.shortcut.conv", "head.conv", "classifier"]
)
def test_it_computes_what_the_exported_graph_computes(nano, plain, spans, monkeypatch, name):
    """With one layer in int8, and the range that calibration gave it."""
    layer = next(layer for layer in find_layers(plain) if layer.name == name)
    graph = quantize.insert_rounding(plain, [layer.node], spans)
    network = copy.deepcopy(nano.network)
    others = {other for other, _ in network.named_modules()} - {name}
    monkeypatch.setattr(rounding, "position_layers", lambda *_: others)
    assert round_layers(network, SIZE) == [name]
    set_ranges(network, {name: reach_in(graph, layer.node)})
    frame = scenes(1, SIZE, seed=4)[0]
    image = normalize(torch.from_numpy(frame[None]), network.info)
    with torch.no_grad():
        rounded, plainly = (net.eval()(image).numpy() for net in (network, nano.network))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    exported = session.run(["logits"], {"frame": frame[None]})[0]
    assert np.std(plainly - exported) > 0.01
    assert np.std(rounded - exported) < 0.15 * np.std(plainly - exported)


def reach_in(graph, name):
    """Where the range ends of what the graph's layer `name` reads."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    makers = {output: node for node in graph.graph.node for output in node.output}
    layer = next(node for node in graph.graph.node if node.name == name)
    return 127 * torch.tensor(float(values[makers[layer.input[0]].input[1]]))


def test_training_brings_back_what_rounding_took(anything):
    """The second layer reads one value that reaches far and one that is below half of the step, so
    rounding takes it out, until the first layer makes it larger."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    network[0].weight.data = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    network[1].weight.data = torch.tensor([[0.01, 1.0]])
    x = torch.rand(512, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x[:, 1] *= 0.3
    wanted = x.sum(1, keepdim=True)
    assert torch.allclose(network(x), wanted, atol=1e-5)
    round_layers(network, SIZE)
    optimizer = torch.optim.Adam(network.parameters(), 0.05)
    losses = []
    for _ in range(400):
        loss = (network(x) - wanted).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(losses[-50:]) < 0.25 * losses[0]


def quantized(camvid, **changes):
    settings = {"optimizer": {"kind": "adamw"}, "ema": 0.9, "precision": "bf16", "quantize": "int8"}
    return tiny_recipe(camvid, **(settings | changes))


def test_a_run_learns_and_its_weights_load_anywhere(camvid, tmp_path):
    recipe = quantized(
        camvid,
        optimizer={"kind": "adamw", "learning_rate": 0.01, "clip": 5.0},
        augment={"scale": [1, 1]},
        schedule={"iterations": 30, "warmup": 5},
    )
    train(recipe, tmp_path, show=False)
    rows = list(read_log(tmp_path / LOG))
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert "backbone.stem.0.conv" in rows[0]["rounded"]
    plain = build("csfcn_nano", 11)
    assert read_checkpoint(tmp_path / BEST).keys() == plain.state_dict().keys()
    load_checkpoint(plain, tmp_path / BEST)


def test_going_on_is_bit_for_bit(camvid, tmp_path):
    """`stop` ends the schedule halfway, as a signal would."""
    for folder, stop in (("straight", 1.0), ("halves", 0.5), ("halves", 1.0)):
        recipe = quantized(camvid, schedule={"iterations": 8, "stop": stop}, accumulate=2)
        train(recipe, tmp_path / folder, resume=stop == 1 and folder == "halves", show=False)
    one, two = (read_state(tmp_path / folder / STATE) for folder in ("straight", "halves"))
    assert one["iteration"] == two["iteration"] == 8
    assert one["ranges"]
    for part in ("network", "average", "ranges"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])


def test_validation_rounds_the_averaged_weights_too(camvid, tmp_path):
    """Its numbers are those of the rounded network, by the ranges of training."""
    run = Run(quantized(camvid), tmp_path, Place(0, 1, torch.device("cpu")))
    batches = iter(run._loader())
    run.step(batches)
    run.validate()
    ours, theirs = get_ranges(run.network), get_ranges(run.average.model)
    assert ours.keys() == theirs.keys()
    assert all(reach > 0 for reach in ours.values())
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_of_before_goes_on_rounded(camvid, tmp_path):
    train(quantized(camvid, quantize=None, schedule={"iterations": 2}), tmp_path, show=False)
    state = read_state(tmp_path / STATE)
    assert state.pop("ranges") == {}
    torch.save(state, tmp_path / STATE)  # as states were before there were ranges
    train(quantized(camvid), tmp_path, resume=True, show=False)
    found = read_state(tmp_path / STATE)["ranges"]
    assert found
    assert all(reach > 0 for reach in found.values())


def test_an_unknown_kind_is_one_clear_error(camvid):
    with pytest.raises(RecipeError, match=r"^the recipe: quantize: input should be 'int8'$"):
        tiny_recipe(camvid, quantize="int4")


@pytest.mark.slow
def test_a_compiled_network_takes_the_same_first_step(camvid, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    for name, option in (("plain", False), ("compile_kernel", True)):
        recipe = quantized(camvid, precision="fp32", schedule={"iterations": 1}, compile=option)
        train(recipe, tmp_path / name, show=False)
    one, two = (
        read_state(tmp_path / name / STATE)["ranges"] for name in ("plain", "compile_kernel")
    )
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], rtol=0.05) for name in one)
    losses = [
        next(row["loss"] for row in read_log(tmp_path / name / LOG) if "loss" in row)
        for name in ("plain", "compile_kernel")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
