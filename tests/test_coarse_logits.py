"""Backends for graphs take the argmax themselves, of the coarse logits that the card names."""

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
from rtseg.export.graph import find_coarse, to_onnx, write_artifact
from rtseg.models.loading import Model
from rtseg.models.random_weights import build_untrained
from rtseg.runtime import load, read_card
from rtseg.runtime.artifact import Card, append_card
from rtseg.runtime.onnx_metadata import coarse_graph
from speed_parts import CARD

SIZE = (128, 256)


@pytest.fixture(scope="module")
def artifacts(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("coarse")
    made = export(nano, [SIZE], ["onnx", "openvino"], "fp32", out=out)
    return {artifact.target: artifact.path for artifact in made}


WAYS = [("onnx", "onnxruntime", 1), ("onnx", "onnxruntime", 2), ("onnx", "openvino", 1)]


@pytest.mark.parametrize(("target", "backend", "threads"), [*WAYS, ("openvino", "openvino", 2)])
def test_the_runtimes_argmax_gives_the_graphs_labels(
    target: str,
    backend: str,
    threads: int,
    artifacts: dict[str, Path],
    street_frames: list[tuple[str, Any]],
) -> None:
    options = {"precision": "fp32"} if backend == "openvino" else {}
    agree_in_both_ways(artifacts[target], backend, street_frames, threads=threads, **options)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_the_argmax_leaves_the_graph_where_it_can(
    backend: str, artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = artifacts["onnx"]
    with load(artifact, backend, "cpu") as segment:
        assert dict(segment.info.options)["argmax"] == "runtime"
    with pytest.raises(ArtifactError, match='argmax is "graph" or "runtime"'):
        load(artifact, backend, "cpu", argmax="both")
    monkeypatch.setattr("rtseg.runtime.backends.backend.compiled_available", lambda: False)
    with load(artifact, backend, "cpu") as segment:
        assert dict(segment.info.options)["argmax"] == "graph"


def test_neither_onnx_nor_torch_is_loaded(artifacts: dict[str, Path]) -> None:
    code = (
        "import sys; from rtseg.runtime import load; "
        f"load({str(artifacts['onnx'])!r}, 'onnxruntime', 'cpu', argmax='runtime'); "
        "print('onnx' in sys.modules, 'torch' in sys.modules, 'openvino' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "False"]


def test_an_artifact_that_names_no_coarse_logits_keeps_its_own_argmax(
    artifacts: dict[str, Path], tmp_path: Path
) -> None:
    """As those of the first versions do."""
    plain = onnx.load(artifacts["onnx"])
    card = read_card(artifacts["onnx"]).model_copy(update={"coarse": None})
    old = tmp_path / "old.onnx"
    del plain.metadata_props[:]
    old.write_bytes(append_card(plain.SerializeToString(), card))
    for backend in ("onnxruntime", "openvino"):
        with load(old, backend, "cpu") as segment:
            assert dict(segment.info.options)["argmax"] == "graph"
        with pytest.raises(ArtifactError, match=r"names no logits .*, or export it again"):
            load(old, backend, "cpu", argmax="runtime")


def test_logits_and_a_shuffled_end(tmp_path: Path) -> None:
    """csfcn's labels are shuffled behind the argmax; its logits stay an output, and the file is the
    graph that it was."""
    network = build_untrained("csfcn", 5)
    model = to_onnx(network, (64, 96), "fp32", ("labels", "logits"))
    card = CARD.model_copy(update={"size": (64, 96), "outputs": ("labels", "logits")})
    path = tmp_path / "csfcn.onnx"
    write_artifact(path, model, card)
    written = read_card(path)
    assert written.coarse is not None
    assert written.coarse.upsampling == "shuffle"
    session = onnxruntime.InferenceSession(
        coarse_graph(path.read_bytes(), written), providers=["CPUExecutionProvider"]
    )
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes == {"logits": [1, 5, 64, 96], written.coarse.tensor: [1, 5, 64, 8, 12]}
    whole = onnx.load(path)
    onnx.checker.check_model(whole, full_check=True)
    assert [output.name for output in whole.graph.output] == ["labels", "logits"]
    frame = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    labels, logits = (
        onnxruntime.InferenceSession(
            each.SerializeToString(), providers=["CPUExecutionProvider"]
        ).run(None, {"frame": frame})[0]
        for each in (model, whole)
    )
    assert (labels == logits).all()


def labeled(*end: onnx.NodeProto, output: str = "labels") -> onnx.ModelProto:
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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def resize(inputs: list[str] | None = None, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Resize", inputs or ["relu", "", "", "sizes"], ["full"], **attributes)


def argmax(source: str = "full", **attributes: Any) -> list[onnx.NodeProto]:
    facts = {"axis": 1, "keepdims": 0} | attributes
    return [
        helper.make_node("ArgMax", [source], ["best"], **facts),
        helper.make_node("Cast", ["best"], ["labels"], to=TensorProto.UINT8),
    ]


@pytest.mark.parametrize(
    ("attributes", "upsampling"),
    [
        ({"mode": "linear"}, "bilinear"),
        ({"mode": "linear", "coordinate_transformation_mode": "align_corners"}, "bilinear_aligned"),
        ({"mode": "linear", "coordinate_transformation_mode": "asymmetric"}, None),
        ({"mode": "linear", "antialias": 1}, None),
        ({"mode": "nearest"}, None),
        ({"mode": "cubic"}, None),
    ],
)
def test_only_a_bilinear_end_is_left_out(
    attributes: dict[str, Any], upsampling: str | None, tmp_path: Path
) -> None:
    model = labeled(resize(**attributes), *argmax())
    path = tmp_path / "some.onnx"
    write_artifact(path, model, CARD)
    card: Card = read_card(path)
    assert (card.coarse and card.coarse.upsampling) == upsampling
    if card.coarse:
        graph = onnx.load_from_string(coarse_graph(path.read_bytes(), card)).graph
        assert [node.op_type for node in graph.node] == ["Relu"]
        assert [output.name for output in graph.output] == ["relu"]


def test_ends_that_are_something_else() -> None:
    linear = resize(mode="linear")
    assert find_coarse(labeled(linear, *argmax())) is not None
    assert find_coarse(labeled(resize(["relu", "", "factors"], mode="linear"), *argmax())) is None
    assert find_coarse(labeled(linear, *argmax(axis=2))) is None
    assert find_coarse(labeled(linear, *argmax(select_last_index=1))) is None
    assert find_coarse(labeled(linear, output="full")) is None


def moved(kind: str, mode: str, **attributes: Any) -> onnx.ModelProto:
    """Labels of which `kind` puts every row (or column) elsewhere, behind a sound argmax."""
    linear = resize(mode="linear") if mode == "resized" else None
    best, last = argmax("full" if linear else "relu")
    last.input[0] = "moved"
    inputs = ["best", "order"] if kind == "Gather" else ["best"]
    move = helper.make_node(kind, inputs, ["moved"], **attributes)
    model = labeled(*([linear] if linear else []), best, move, last)
    height = 64 if linear else 8
    order = np.arange(height)[::-1].copy()
    model.graph.initializer.append(numpy_helper.from_array(order, "order"))
    return model


@pytest.mark.parametrize("mode", ["resized", "coarse"])
@pytest.mark.parametrize(
    ("kind", "attributes"), [("Gather", {"axis": 1}), ("Transpose", {"perm": [0, 2, 1]})]
)
def test_labels_that_are_moved_behind_the_argmax_keep_the_graphs_own(
    kind: str, attributes: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    """The runtime's labels would lie in other rows than the graph's, and the proof, which runs the
    one way, would not see the other."""
    model = moved(kind, mode, **attributes)
    assert find_coarse(model) is None
    path = tmp_path / "some.onnx"
    write_artifact(path, model, CARD)
    assert read_card(path).coarse is None


def test_one_plane_is_taken_away_and_several_are_not_reordered() -> None:
    def gathered(index: Any) -> onnx.ModelProto:
        best, last = argmax("relu", keepdims=1)
        last.input[0] = "taken"
        take = helper.make_node("Gather", ["best", "index"], ["taken"], axis=1)
        model = labeled(best, take, last)
        model.graph.initializer.append(numpy_helper.from_array(np.array(index), "index"))
        return model

    assert find_coarse(gathered(0)) is not None
    assert find_coarse(gathered([0, 0])) is None
