"""What is simplified in graphs from outside the zoo, and what is left alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_files as files
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from rtseg import load_model
from rtseg.export import export
from rtseg.export.graph import to_onnx
from rtseg.export.simplify import merge_slices
from rtseg.models.own import NORMALIZATIONS, Normalization
from torch import Tensor, nn

SIZE = files.SIZE
node = helper.make_node


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(each.op_type for each in model.graph.node)


def sliced(cuts: list[tuple[int, int]], axis: int = 1, step: int = 1) -> onnx.ModelProto:
    """x (1, 6, 4) cut at `cuts`, each part an output of its own, negated."""
    nodes, constants = [], {"axis": np.array([axis]), "step": np.array([step])}
    for number, (start, stop) in enumerate(cuts):
        constants |= {f"start_{number}": np.array([start]), f"stop_{number}": np.array([stop])}
        read = ["x", f"start_{number}", f"stop_{number}", "axis", "step"]
        nodes += [
            node("Slice", read, [f"part_{number}"]),
            node("Neg", [f"part_{number}"], [f"y_{number}"]),
        ]
    names = [f"y_{number}" for number in range(len(cuts))]
    outputs = [files.value(name, [None, None, None]) for name in names]
    graph = helper.make_graph(
        nodes,
        "cut",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6, 4])],
        outputs,
        [
            numpy_helper.from_array(value.astype(np.int64), name)
            for name, value in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def run(model: onnx.ModelProto) -> list[Any]:
    x = np.random.default_rng(0).standard_normal((1, 6, 4), np.float32)
    return list(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x}))


@pytest.mark.parametrize(
    "cuts",
    [
        [(0, 2), (2, 6)],
        [(3, 2**63 - 1), (0, 1), (1, 3)],
        [(0, -2), (-2, 2**31)],
    ],
    ids=["in order", "in another order, to the end", "from the end"],
)
def test_slices_that_tile_an_axis_become_one_split(cuts: list[tuple[int, int]]) -> None:
    model = sliced(cuts)
    before = run(model)
    merge_slices(model)
    assert kinds(model) == {"Split": 1, "Neg": len(cuts)}
    onnx.checker.check_model(model, full_check=True)
    for ours, theirs in zip(run(model), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("cuts", "step"),
    [
        ([(0, 2), (3, 6)], 1),
        ([(0, 3), (2, 6)], 1),
        ([(0, 2), (2, 5)], 1),
        ([(1, 3), (3, 6)], 1),
        ([(0, 6)], 1),
        ([(0, 3), (0, 3), (3, 6)], 1),
        ([(0, 2), (2, 6)], 2),
    ],
    ids=[
        "a gap",
        "an overlap",
        "the end is missing",
        "the start is missing",
        "all of it",
        "one twice",
        "in steps",
    ],
)
def test_slices_that_do_not_tile_are_left_alone(cuts: list[tuple[int, int]], step: int) -> None:
    model = sliced(cuts, step=step)
    before = model.SerializeToString()
    merge_slices(model)
    assert model.SerializeToString() == before


def test_slices_of_two_axes_are_not_mixed() -> None:
    model = sliced([(0, 2), (2, 6)])
    model.graph.initializer.append(numpy_helper.from_array(np.array([2], np.int64), "other"))
    model.graph.node[2].input[3] = "other"  # [2, 4) of the last axis
    merge_slices(model)
    assert kinds(model)["Split"] == 0


MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def chain(kind: str, image: str, last: bool) -> tuple[list[onnx.NodeProto], dict[str, Any]]:
    """Nodes from the input to "planes", in several hands' writing, and their constants; pixels are
    given in 0..255."""
    shape = (1, 1, 1, 3) if last else (1, 3, 1, 1)
    mean, std = (np.array(values, np.float32).reshape(shape) for values in (MEAN, STD))
    full = np.float32(255)
    if kind == "div, sub, div":
        constants = {"full": full, "mean": mean, "std": std}
        names = [("Div", "full"), ("Sub", "mean"), ("Div", "std")]
    elif kind == "mul, add":
        constants = {"scale": 1 / (full * std), "shift": -mean / std}
        names = [("Mul", "scale"), ("Add", "shift")]
    else:
        assert kind == "batch norm"
        held = {"gain": np.ones(3), "bias": np.zeros(3), "middle": mean.ravel() * 255}
        held["spread"] = np.square(std.ravel() * 255)
        constants = {name: value.astype(np.float32) for name, value in held.items()}
        half = node("Mul", [image, "one"], ["scaled"])
        norm = node("BatchNormalization", ["scaled", *constants], ["planes"], epsilon=0.0)
        return [half, norm], constants | {"one": np.float32(1)}
    nodes, at = [], image
    for number, (operator, constant) in enumerate(names):
        done = "planes" if number == len(names) - 1 and not last else f"step_{number}"
        nodes.append(node(operator, [at, constant], [done]))
        at = done
    if last:
        nodes.append(node("Transpose", [at], ["planes"], perm=[0, 3, 1, 2]))
    return nodes, constants


def write_normalizing(path: Path, kind: str, last: bool = False, second: bool = False) -> Path:
    """A file that normalizes inside; `second`: another node reads the normalized pixels too."""
    nodes, constants = chain(kind, "x", last)
    body = files.body("planes")
    if second:
        body.insert(0, node("ReduceMax", ["planes", "axes"], ["peak"], keepdims=1))
        body[-1].output[0] = "low"
        body.append(node("Add", ["low", "peak"], ["logits_4"]))
        constants["axes"] = np.array([1, 2, 3], np.int64)
    shape = [1, *SIZE, 3] if last else [1, 3, *SIZE]
    return files.save(
        path,
        [*nodes, *body],
        [files.value("x", shape)],
        [files.value("logits_4", [1, files.CLASSES, SIZE[0] // 4, SIZE[1] // 4])],
        {**files.weights(), **constants},
        opset=18,
    )


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("div, sub, div", False),
        ("div, sub, div", True),
        ("mul, add", False),
        ("batch norm", False),
    ],
)
def test_a_normalization_in_the_file_goes_into_the_first_convolution(
    kind: str, last: bool, order: Any, tmp_path: Path
) -> None:
    """Proven against the file itself, whose borders are zeros behind the mean."""
    path = write_normalizing(tmp_path / "theirs.onnx", kind, last)
    normalize = Normalization(order=order, scale=1.0)
    model = load_model(path, classes="numbered", normalize=normalize)
    graph = to_onnx(model.network, SIZE, "fp32", ("labels",))
    found = kinds(graph)
    assert found["Sub"] == 1, "whole numbers, which every precision holds"
    assert not {"Div", "Mul", "Add", "BatchNormalization", "Gather"} & set(found)
    (artifact,) = export(model, out=tmp_path / "out")
    assert artifact.status == "proven"
    assert artifact.results[0].logits_error is not None
    assert artifact.results[0].logits_error < 1e-5


def test_pixels_that_another_node_reads_too_stay(tmp_path: Path) -> None:
    path = write_normalizing(tmp_path / "theirs.onnx", "div, sub, div", second=True)
    model = load_model(path, classes="numbered", normalize="none")
    found = kinds(to_onnx(model.network, SIZE, "fp32", ("labels",)))
    assert found["Div"] == 2
    (artifact,) = export(model, out=tmp_path / "out")
    assert artifact.status == "proven"


class Normalizing(files.Net):
    """A module that normalizes inside, and cuts its channels by Python slices."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Any:
        x = torch.relu(self.stem((image - self.mean) / self.std))
        x = torch.cat([x[:, :3].sigmoid(), torch.relu(x[:, 3:])], dim=1)
        return self.head(torch.relu(self.body(x)))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_module_that_normalizes_inside_is_folded_too(precision: str, tmp_path: Path) -> None:
    module: nn.Module = Normalizing()
    model = load_model(module, size=SIZE, classes="numbered", normalize="unit")
    found = kinds(to_onnx(model.network, SIZE, precision, ("labels",)))
    assert found["Sub"] == found["Split"] == 1
    assert not {"Div", "Mul", "Slice"} & set(found)
    (artifact,) = export(model, precision=precision, out=tmp_path)
    assert artifact.status == "proven"


def test_a_wrong_fold_does_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof is what decides: a border of zeros where the mean color should stand fails it."""
    from rtseg.errors import ProofError
    from rtseg.export import wrap

    plain = wrap.GraphEnds.keep

    def without_border(ends: Any, name: str, values: Any) -> str:
        return plain(ends, name, values * 0 if name.endswith("_border") else values)

    monkeypatch.setattr(wrap.GraphEnds, "keep", without_border)
    path = write_normalizing(tmp_path / "theirs.onnx", "mul, add")
    model = load_model(path, classes="numbered", normalize=NORMALIZATIONS["none"])
    with pytest.raises(ProofError):
        export(model, out=tmp_path / "out")
