"""ONNX Runtime's labels of coarse logits: the graph's end is cut off without the onnx package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from labels_plain import agree_in_both_ways
from onnx import TensorProto, helper, numpy_helper
from rtseg.errors import ArtifactError
from rtseg.export import export
from rtseg.export.graph import to_onnx
from rtseg.models.loading import Model
from rtseg.models.random_weights import build_untrained
from rtseg.runtime import load
from rtseg.runtime.cut_onnx import COARSE, cut_labels
from rtseg.runtime.protobuf import fields, message, read_varint, varint

SIZE = (128, 256)


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx")
    return export(nano, [SIZE], ["onnx"], out=out)[0].path


@pytest.mark.parametrize("threads", [1, 2])
def test_cells_give_the_graphs_labels(
    threads: int, artifact: Path, street_frames: list[tuple[str, Any]]
) -> None:
    agree_in_both_ways(artifact, "onnxruntime", street_frames, threads=threads)


def test_a_cpu_takes_cells_where_it_can(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(artifact, "onnxruntime", "cpu") as segment:
        assert dict(segment.info.options)["argmax"] == "runtime"
    with pytest.raises(ArtifactError, match='argmax is "graph" or "runtime"'):
        load(artifact, "onnxruntime", "cpu", argmax="both")
    monkeypatch.setattr("rtseg.runtime.backends.onnxruntime.compiled_available", lambda: False)
    with load(artifact, "onnxruntime", "cpu") as segment:
        assert dict(segment.info.options)["argmax"] == "graph"


def test_neither_onnx_nor_torch_is_loaded(artifact: Path) -> None:
    code = (
        "import sys; from rtseg.runtime import load; "
        f"load({str(artifact)!r}, 'onnxruntime', 'cpu', argmax='runtime'); "
        "print('onnx' in sys.modules, 'torch' in sys.modules, 'openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_logits_and_a_shuffled_end() -> None:
    """csfcn's labels are shuffled behind the argmax; its logits stay an output."""
    network = build_untrained("csfcn", 5)
    assert cut_labels(to_onnx(network, (64, 96), "fp32", ("labels",)).SerializeToString())
    whole = to_onnx(network, (64, 96), "fp32", ("labels", "logits")).SerializeToString()
    model, enlarge = cut_labels(whole)  # type: ignore[misc]
    assert enlarge == "shuffle"
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert {o.name: o.shape for o in session.get_outputs()} == {
        "logits": [1, 5, 64, 96],
        COARSE: [1, 5, 64, 8, 12],
    }


def labeled(*end: onnx.NodeProto, output: str = "labels") -> bytes:
    """logits (1, 3, 8, 16) -> `end` -> labels."""
    sizes = numpy_helper.from_array(np.array([1, 3, 64, 128], np.int64), "sizes")
    factors = numpy_helper.from_array(np.array([1, 1, 8, 8], np.float32), "factors")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["logits"], ["relu"]), *end],
        "test",
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 8, 16])],
        [helper.make_empty_tensor_value_info(output)],
        [sizes, factors],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return model.SerializeToString()


def resize(inputs: list[str] | None = None, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Resize", inputs or ["relu", "", "", "sizes"], ["full"], **attributes)


def argmax(source: str = "full", **attributes: Any) -> list[onnx.NodeProto]:
    facts = {"axis": 1, "keepdims": 0} | attributes
    return [
        helper.make_node("ArgMax", [source], ["best"], **facts),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]


@pytest.mark.parametrize(
    ("attributes", "enlarge"),
    [
        ({"mode": "linear"}, "bilinear"),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "bilinear_aligned"),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, None),
        ({"mode": "linear", "antialias": 1}, None),
        ({"mode": "nearest"}, None),
        ({"mode": "cubic"}, None),
    ],
)
def test_only_a_bilinear_end_is_cut(attributes: dict[str, Any], enlarge: str | None) -> None:
    found = cut_labels(labeled(resize(**attributes), *argmax()))
    assert (found and found[1]) == enlarge
    if found:
        model = onnx.load_from_string(found[0])
        assert [node.op_type for node in model.graph.node] == ["Relu", "Identity"]
        assert [output.name for output in model.graph.output] == [COARSE]


def test_ends_that_are_something_else() -> None:
    linear = resize(mode="linear")
    assert cut_labels(labeled(resize(["relu", "", "factors"], mode="linear"), *argmax())) is None
    assert cut_labels(labeled(linear, *argmax(axis=2))) is None
    assert cut_labels(labeled(linear, *argmax(select_last_index=1))) is None
    assert cut_labels(labeled(linear, output="full")) is None
    branch = helper.make_graph([helper.make_node("Relu", ["full"], ["out"])], "branch", [], [])
    loop = helper.make_node("If", ["logits"], ["seen"], then_branch=branch, else_branch=branch)
    assert cut_labels(labeled(linear, *argmax(), loop)) is None, "it reads what would be cut off"


def test_what_other_outputs_need_stays() -> None:
    """A model that also gives the full logits keeps its resize."""
    model = onnx.load_from_string(labeled(resize(mode="linear"), *argmax()))
    model.graph.output.append(helper.make_empty_tensor_value_info("full"))
    cut, _ = cut_labels(model.SerializeToString())  # type: ignore[misc]
    kept = onnx.load_from_string(cut).graph
    assert [node.op_type for node in kept.node] == ["Relu", "Resize", "Identity"]
    assert [output.name for output in kept.output] == ["full", COARSE]


def test_fields_of_a_message() -> None:
    inner = message(2, b"text")
    found = list(fields(message(7, inner) + varint(9 << 3) + varint(300) + b"\x15abcd"))
    assert [(field.number, field.value) for field in found] == [(7, inner), (9, 300), (2, b"")]
    assert b"".join(field.raw for field in found)[-5:] == b"\x15abcd"
    assert read_varint(varint(2**40), 0) == (2**40, 6)
    with pytest.raises(ValueError, match="ends too early"):
        list(fields(message(7, inner)[:-1]))
    with pytest.raises(ValueError, match="wire type 3"):
        list(fields(b"\x0b"))
