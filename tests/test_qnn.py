"""Context binaries for Qualcomm's HTP: the graph that goes in, refusals, and host-made labels."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import rtseg
from onnx import TensorProto, helper, numpy_helper
from rtseg.data.letterbox import fit_frame
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, ExportError
from rtseg.export import qnn as export_qnn
from rtseg.export.export import make_card
from rtseg.export.graph import to_onnx
from rtseg.export.qnn import find_soc, to_integer_logits
from rtseg.export.reference import read_shipped_frames
from rtseg.export.stored_ranges import find_stored_ranges
from rtseg.labels import exact_labels
from rtseg.models.loading import Model
from rtseg.runtime.artifact import Int8Facts, read_card

SIZE = (96, 160)
BACKEND = "rtseg.runtime.backends.qnn"
REAL = importlib.util.find_spec("onnxruntime_qnn") is not None


def test_a_chip_is_named_or_numbered() -> None:
    assert find_soc("SM8550") == {"soc_model": "43", "htp_arch": "73"}
    assert find_soc("57") == {"soc_model": "57"}
    for wrong in (None, "sm9999", "0"):
        with pytest.raises(ExportError, match=r"--soc is .*sm8550"):
            find_soc(wrong)


@pytest.fixture(scope="module")
def rounded(nano: Model) -> tuple[onnx.ModelProto, onnx.ModelProto, Any]:
    """(in float32, as the HTP takes it, its card)."""
    stored = find_stored_ranges(nano)
    assert stored is not None
    plain = to_onnx(nano.network.eval(), SIZE, "fp32", ("labels",))
    facts = Int8Facts(
        method="percentile", frames=1, held_out=1, layers=1, excluded=stored.in_float, share=1.0
    )
    card = make_card(nano, SIZE, "int8", "labels").model_copy(update={"int8": facts})
    return plain, *to_integer_logits(plain, card, stored.ranges)


def test_the_graph_ends_at_rounded_coarse_logits(rounded: Any) -> None:
    plain, graph, card = rounded
    (output,) = graph.graph.output
    assert output.type.tensor_type.elem_type == TensorProto.UINT8
    kinds = [node.op_type for node in graph.graph.node]
    assert "ArgMax" not in kinds
    # A cast of bytes is wrong in onnxruntime-qnn 2.7.0, and says nothing.
    assert "Cast" not in kinds
    frame = fit_frame(read_shipped_frames().frames[0][1], SIZE, "letterbox")[None]
    (labels,) = run(plain, frame)
    (logits,) = run(graph, frame)
    aligned = card.coarse.upsampling == "bilinear_aligned"
    ours = exact_labels(logits, SIZE, align_corners=aligned)
    assert (ours == labels).mean() > 0.95
    other = exact_labels(logits, SIZE, align_corners=not aligned)
    assert (ours == labels).mean() > (other == labels).mean()


def run(model: onnx.ModelProto, frame: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"frame": np.asarray(frame)})


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A plug-in whose context binary is the graph itself, and whose HTP is ONNX Runtime's CPU."""
    if not REAL:
        fake = types.ModuleType("onnxruntime_qnn")
        fake.__spec__ = ModuleSpec("onnxruntime_qnn", None)
        fake.__version__ = "0"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "onnxruntime_qnn", fake)
        sys.modules.pop(BACKEND, None)
    monkeypatch.setattr(export_qnn.metadata, "version", lambda name: "0")
    qnn = importlib.import_module(BACKEND)

    def open_session(
        model: bytes, what: str, provider: Mapping[str, str] | None = None,
        entries: Mapping[str, str] | None = None,
    ) -> Any:  # fmt: skip
        if entries:
            Path(entries["ep.context_file_path"]).write_bytes(model)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(qnn, "open_session", open_session)
    yield qnn
    if not REAL:  # nobody else meets a backend on a plug-in that is not there
        del sys.modules[BACKEND]


def test_it_is_exported_proven_and_loaded(plug_in: Any, nano: Model, tmp_path: Path) -> None:
    size = (360, 480)
    (artifact,) = rtseg.export(
        nano, size, "qnn", "int8", soc="sm8550", out=tmp_path, proof_frames=1
    )
    assert artifact.path.name == "csfcn_nano_360x480_int8_sm8550.qnn"
    card = read_card(artifact.path)
    assert card.soc == "sm8550"
    assert card.proof is not None
    assert card.proof.passed
    assert card.coarse is not None
    assert card.coarse.zero == 128
    assert artifact.results[0].logits_error is not None  # enlarged as its labels are
    with rtseg.load(artifact.path) as segment:
        assert segment.info.name == "qnn"
        frame = scenes(1, size)[0]
        (logits,) = run(onnx.load_model_from_string(artifact.path.read_bytes()), frame[None])
        assert np.array_equal(segment(frame), exact_labels(logits, size, align_corners=True)[0])
    artifact.path.write_bytes(artifact.path.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="changed or damaged"):
        rtseg.load(artifact.path)


def test_a_chip_is_for_its_target_alone(plug_in: Any, nano: Model, tmp_path: Path) -> None:
    given = {"precision": "auto", "soc": "sm8550", "out": tmp_path, "proof_frames": 1}
    made = rtseg.export(nano, (360, 480), ["onnx", "qnn"], **given)
    assert [artifact.path.name for artifact in made] == [
        "csfcn_nano_360x480_fp32.onnx", "csfcn_nano_360x480_int8_sm8550.qnn",
    ]  # fmt: skip


def test_refused_operators_are_named(
    plug_in: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(model: bytes, what: str, provider: Mapping[str, str], entries: Any) -> None:
        nodes = [{"op_type": "Erf", "node_name": "gelu"}, {"op_type": "Shrink", "node_name": "s"}]
        trace = Path(provider["framework_op_trace_dir"]) / "qnn_op_trace.json"
        trace.write_text(json.dumps({"unsupported_nodes": nodes}))
        raise ArtifactError("fallback to CPU EP has been disabled")

    monkeypatch.setattr(plug_in, "open_session", refuse)
    path = tmp_path / "net.qnn"
    with pytest.raises(ExportError, match=r"HTP of sm8550: it refuses Erf \(gelu\); Shrink \(s\)"):
        export_qnn.write_context(onnx.ModelProto(), path, "sm8550")
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"soc": None}, "give both, or neither"),
        ({"to": "onnx"}, "give both, or neither"),
        ({"precision": "fp16"}, "is for int8"),
        ({"output": "both"}, "gives labels only"),
        ({"input": "nv12"}, "takes BGR frames"),
    ],
)
def test_what_it_does_not_do_is_told_first(
    plug_in: Any, nano: Model, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"size": (96, 160), "to": "qnn", "soc": "sm8550", "precision": "int8"} | options
    with pytest.raises(ExportError, match=message):
        rtseg.export(nano, out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not REAL, reason='compiles with onnxruntime-qnn: pip install "rtseg[qnn]"')
def test_the_real_plug_in_compiles_simulates_and_refuses(tmp_path: Path) -> None:
    from rtseg.runtime.backends.qnn import is_simulated, open_session

    if not is_simulated():
        pytest.skip("compares with QNN's simulation, which is for x86")
    graph = small_graph("Relu")
    path = tmp_path / "net.qnn"
    export_qnn.write_context(graph, path, "sm8550")
    frame = np.random.default_rng(0).integers(0, 256, (1, 8, 16, 3), np.uint8)
    (found,) = open_session(path.read_bytes(), "it").run(None, {"frame": frame})
    (exact,) = run(graph, frame)
    assert np.abs(exact).max() > 100
    np.testing.assert_allclose(found, exact, atol=2)
    with pytest.raises(ExportError, match=r"it refuses Shrink \(middle\)"):
        export_qnn.write_context(small_graph("Shrink"), tmp_path / "other.qnn", "sm8550")


def small_graph(kind: str) -> onnx.ModelProto:
    weight = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    held = {"step": np.float32(1), "zero": np.uint8(0), "weight": weight}
    nodes = [
        helper.make_node("DequantizeLinear", ["frame", "step", "zero"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["b", "weight"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(kind, ["c"], ["y"], name="middle"),
    ]
    ends = (("frame", TensorProto.UINT8, (1, 8, 16, 3)), ("y", TensorProto.FLOAT, (1, 4, 8, 16)))
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    first, last = ([helper.make_tensor_value_info(*end)] for end in ends)
    graph = helper.make_graph(nodes, "small", first, last, values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
