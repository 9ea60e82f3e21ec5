"""int8 in ONNX Runtime's own form: integers from layer to layer, and a processor that can do it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest
from onnx import numpy_helper
from rtseg.data.images import write_png
from rtseg.data.letterbox import fit_frame
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, ProofError
from rtseg.export import export
from rtseg.export import quantize as quantize_module
from rtseg.export.graph import find_layers, to_onnx
from rtseg.export.integer_form import IntegerForm
from rtseg.export.quantize import infer_shapes
from rtseg.export.reference import read_shipped_frames
from rtseg.export.stored_ranges import find_stored_ranges
from rtseg.models.loading import load_model
from rtseg.runtime import load
from rtseg.runtime.backends import onnxruntime_self_test
from rtseg.runtime.backends.backend import choose
from rtseg.runtime.backends.onnxruntime import _options

SIZE = (96, 160)


@pytest.fixture(scope="module")
def forms() -> tuple[onnx.ModelProto, onnx.ModelProto, set[str]]:
    """csfcn_nano in float32, in integers, and the layers that are."""
    model = load_model("csfcn_nano:streets")
    stored = find_stored_ranges(model)
    assert stored is not None
    plain = infer_shapes(to_onnx(model.network.eval(), SIZE, "fp32", ("logits",)))
    layers = {layer.node for layer in find_layers(plain)}
    return plain, *IntegerForm(plain, layers, stored.ranges).build()


def run(model: onnx.ModelProto, frame: Any, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized is None:  # each node as it is written, in float
        level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.graph_optimization_level = level
    else:
        options.optimized_model_filepath = str(optimized)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"frame": frame})[0]


def test_every_layer_of_it_is_computed_in_integers(forms: Any, tmp_path: Path) -> None:
    plain, integer, done = forms
    for _, picture in read_shipped_frames().frames[:2]:
        frame = fit_frame(picture, SIZE, "letterbox")[None]
        found = run(integer, frame, tmp_path / "optimized.onnx")
        exact = run(plain, frame)
        assert (found.argmax(1) == exact.argmax(1)).mean() > 0.98
        # The kernels round where the graph says so, in float steps of their own.
        assert (found.argmax(1) == run(integer, frame).argmax(1)).mean() > 0.995
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == len(done) > 15
    assert kinds["QLinearAdd"] == 4  # the sums of the residual blocks
    layers = find_layers(plain)
    share = sum(layer.macs for layer in layers if layer.node in done)
    assert share > 0.95 * sum(layer.macs for layer in layers)


def test_biases_are_in_steps_of_input_times_weight(forms: Any) -> None:
    _, integer, done = forms
    values = {each.name: numpy_helper.to_array(each) for each in integer.graph.initializer}
    makers = {node.output[0]: node for node in integer.graph.node}
    seen = 0
    for node in integer.graph.node:
        if node.name not in done:
            continue
        read, weight, bias = ([values.get(n) for n in makers[x].input] for x in node.input)
        assert bias[0].dtype == np.int32
        assert weight[0].dtype == np.int8
        assert read[2].dtype == np.uint8
        np.testing.assert_array_equal(bias[1], read[1] * weight[1])
        assert not bias[2].any()
        assert not weight[2].any()
        seen += 1
    assert seen == len(done)


def test_the_frame_goes_in_as_bytes(forms: Any) -> None:
    plain, integer, done = forms
    makers = {node.output[0]: node for node in integer.graph.node}
    first = next(node for node in integer.graph.node if node.name in done)
    name = first.input[0]
    seen = []
    while name != "frame":
        node = makers[name]
        seen.append(node.op_type)
        name = node.input[0] if node.op_type != "Concat" else node.input[1]
    assert seen == ["DequantizeLinear", "Concat", "Concat", "Transpose"]
    stored = find_stored_ranges(load_model("csfcn_nano:streets"))
    assert stored is not None
    layers = {layer.node for layer in find_layers(plain)}
    rounded, _ = IntegerForm(plain, layers, stored.ranges, reads_bytes=False).build()
    frame = fit_frame(read_shipped_frames().frames[0][1], SIZE, "letterbox")[None]
    exact = run(plain, frame)
    errors = [np.square(run(each, frame) - exact).mean() for each in (integer, rounded)]
    assert errors[0] < errors[1], "bytes are exact, and a range of both signs has half the steps"


def test_an_artifact_runs_where_it_is_fast_and_does_not_grow(nano: Any, tmp_path: Path) -> None:
    (artifact,) = export(nano, (64, 96), "onnxruntime", precision="int8", out=tmp_path)
    kinds = {node.op_type for node in onnx.load(artifact.path).graph.node}
    assert "QuantizeLinear" in kinds
    assert "GridSample" not in kinds  # gathers, which are faster there
    assert artifact.path.name == "csfcn_nano_64x96_int8.ort.onnx"
    assert artifact.passed
    facts = artifact.card.int8
    assert facts is not None
    assert facts.share > 0.8  # the stem stays in float, as its stored ranges say
    assert choose(artifact.path, None, "cpu") == "onnxruntime"
    assert choose(artifact.path, "openvino", "cpu") == "openvino"
    frames = scenes(3, (64, 96))
    with load(artifact.path) as segment:
        labels = [segment(frame).copy() for frame in frames]
        process = psutil.Process()
        before = process.memory_info().rss
        for _ in range(100):
            for frame, expected in zip(frames, labels, strict=True):
                np.testing.assert_array_equal(segment(frame), expected)
        assert process.memory_info().rss - before < 8 << 20


@pytest.fixture
def anew() -> Iterator[None]:
    """Without what the self-test found before, and leaving nothing that it finds now."""
    onnxruntime_self_test.self_test.cache_clear()
    yield
    onnxruntime_self_test.self_test.cache_clear()


@pytest.mark.parametrize(("made_by", "name"), [("in_float", "float32"), ("in_integers", "int8")])
def test_a_runtime_that_is_wrong_is_refused(
    made_by: str, name: str, monkeypatch: pytest.MonkeyPatch, anew: None
) -> None:
    errors = onnxruntime_self_test.measure(widen=True)
    assert max(errors.values()) <= onnxruntime_self_test.TOLERANCE
    right = getattr(onnxruntime_self_test, made_by)

    def misplace(*facts: Any) -> bytes:
        *others, pads = facts
        return right(*others, (0, 2, 0, 0) if pads == (0, 1, 0, 1) else pads)

    monkeypatch.setattr(onnxruntime_self_test, made_by, misplace)
    with pytest.raises(ArtifactError, match=rf"{name} with padding 0,1,0,1.*use OpenVINO"):
        onnxruntime_self_test.self_test()


@pytest.mark.parametrize("overflows", [False, True])
def test_only_where_sums_overflow_are_products_widened(
    overflows: bool, monkeypatch: pytest.MonkeyPatch, anew: None
) -> None:
    monkeypatch.setattr(
        onnxruntime_self_test, "measure", lambda widen: {"int8": float(overflows and not widen)}
    )
    entry = _options(1).get_session_config_entry(onnxruntime_self_test.WIDEN)
    assert entry == str(int(overflows))


def test_a_network_that_it_does_not_know_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "calib"
    folder.mkdir()
    for place, image in enumerate(scenes(12, (120, 200), seed=9)):
        write_png(folder / f"{place:03}.png", image)
    monkeypatch.setattr(quantize_module, "measure_ranges", None)  # nothing is calibrated
    with pytest.raises(ProofError, match=r"segformer_b0 it would hold \d+% of the multiply-adds"):
        export(
            load_model("segformer_b0"), (64, 128), ["onnx", "onnxruntime"], "int8",
            calib=folder, out=tmp_path / "out",
        )  # fmt: skip
    assert list((tmp_path / "out").iterdir()) == []
