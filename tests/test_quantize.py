"""int8: which frames calibrate, what is rounded, what stays float, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from rtseg.data.images import read_image
from rtseg.data.letterbox import fit_frame
from rtseg.data.scenes import scenes
from rtseg.errors import ExportError, ProofError
from rtseg.export import calibrate, export, reference, sensitivity
from rtseg.export import parity as proof
from rtseg.export import quantize as quantize
from rtseg.export.calibrate import Calibration, CalibrationError, CalibrationFrames, pick_frames
from rtseg.export.export import make_card
from rtseg.export.graph import Layer, census, find_layers, find_positions, to_onnx
from rtseg.export.job import ExportJob
from rtseg.export.unsigned_form import to_unsigned_form
from rtseg.models.loading import Model, load_model
from rtseg.models.onnx_graph import KINDS
from rtseg.runtime import load, read_card
from rtseg.runtime.artifact import Int8Facts
from rtseg.system import read_system

SIZE = 96, 160


def write(folder: Path, images: list[np.ndarray[Any, Any]]) -> Path:
    folder.mkdir()
    for place, image in enumerate(images):
        cv2.imwrite(str(folder / f"{place:03}.png"), image)
    return folder


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("calib") / "street", scenes(24, (120, 200), seed=9))


def noise(cell: int) -> list[np.ndarray[Any, Any]]:
    random = np.random.default_rng(cell)
    cells = [random.integers(0, 256, (240 // cell, 320 // cell, 3), np.uint8) for _ in range(16)]
    return [cv2.resize(each, (320, 240), interpolation=cv2.INTER_NEAREST) for each in cells]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (noise(1), "16 of 16 frames .* are no camera frames: 000.png is noise"),
        (noise(8), "is noise"),
        ([np.full((240, 320, 3), 90, np.uint8)] * 16, "000.png is blank"),
        ([cv2.blur(scene, (99, 99)) for scene in scenes(16, (240, 320))], "has no detail"),
        (scenes(11, (240, 320)), "holds 11 images .* takes at least 12"),
        (scenes(1, (240, 320)) * 30, "only 1 of 30 frames .* differ from each other"),
    ],
    ids=["noise", "coarse noise", "blank", "smooth", "too few", "alike"],
)
def test_frames_that_teach_nothing_are_refused(
    images: list[np.ndarray[Any, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match=message):
        pick_frames(Calibration(write(tmp_path / "frames", images)))


def test_a_standing_car_is_no_calibration(tmp_path: Path) -> None:
    """One view with the camera's noise is one frame, however often it comes."""
    random = np.random.default_rng(0)
    view = scenes(1, (240, 320))[0].astype(int)
    seen = [np.clip(view + random.normal(0, 8, view.shape), 0, 255).astype(np.uint8)] * 20
    with pytest.raises(CalibrationError, match="differ from each other"):
        pick_frames(Calibration(write(tmp_path / "frames", seen)))


def test_frames_are_spread_seeded_and_held_out(street: Path) -> None:
    def names(of: CalibrationFrames) -> tuple[list[str], list[str]]:
        return [name for name, _ in of.used], [name for name, _ in of.held_out]

    wish = Calibration(street, frames=8)
    used, held_out = names(pick_frames(wish))
    assert (len(used), len(held_out)) == (8, 4)
    assert not set(used) & set(held_out)
    places = sorted(map(int, used + held_out))
    assert [place // 2 for place in places] == list(range(12))  # one of each stretch
    assert names(pick_frames(wish)) == (used, held_out)
    assert names(pick_frames(Calibration(street, frames=8, seed=1))) != (used, held_out)


def test_a_few_bad_frames_are_left_out(street: Path, tmp_path: Path) -> None:
    images = scenes(24, (120, 200), seed=9)
    images[5] = np.zeros_like(images[5])
    picked = pick_frames(Calibration(write(tmp_path / "frames", images)))
    assert len(picked.used) + len(picked.held_out) == 23
    assert picked.left_out == ("005.png is blank (its gray levels spread by 0.0)",)


@pytest.fixture(scope="module")
def plain(nano: Model) -> onnx.ModelProto:
    return quantize.infer_shapes(to_onnx(nano.network, SIZE, "fp32", ("labels",)))


@pytest.fixture(scope="module")
def spans(plain: onnx.ModelProto) -> Any:
    return calibrate.measure_ranges(plain, KINDS, scenes(6, SIZE, seed=3), "percentile")


def test_positions_and_tables_are_no_candidates(plain: onnx.ModelProto) -> None:
    names = [layer.name for layer in find_layers(plain)]
    weighted = sum(node.op_type == "Conv" for node in plain.graph.node)
    assert "backbone.stem.0.conv" in names
    assert "spatial.offset" not in names
    assert not [name for name in names if "pooling" in name]
    assert len(names) == weighted - 1


def test_positions_that_are_kept_within_a_map_are_positions() -> None:
    """As deformable attention on several levels has them."""
    graph = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 18]>
        g (float[1,2,4,2] x, float[1,3,8,8] map, float[2,2] w, float[2] low, float[2] high)
            => (float[1,3,2,4] read) {
          [offsets] moved = MatMul(x, w)
          above = Max(moved, low)
          inside = Min(above, high)
          read = GridSample(map, inside)
        }""")
    assert find_positions(graph) == {"offsets"}


def test_macs_of_a_layer_are_counted(plain: onnx.ModelProto) -> None:
    first = find_layers(plain)[0]
    assert first.macs == 48 * 80 * 16 * 3 * 3 * 3


def test_only_what_layers_read_is_rounded(plain: onnx.ModelProto, spans: Any) -> None:
    found = find_layers(plain)
    graph = quantize.insert_rounding(plain, [layer.node for layer in found], spans).graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inside = [
        node.name
        for node in graph.node
        if node.op_type == "Conv"
        and all(makers[name].op_type == "DequantizeLinear" for name in node.input[:2])
    ]
    assert sorted(inside) == sorted(layer.node for layer in found)
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            assert not weights[node.input[2]].any()  # TensorRT knows no zero point
            assert weights[node.input[2]].dtype == np.int8  # and reads no int32
    scales = [weights[n.input[1]] for n in graph.node if n.input[0].endswith("weight_quantized")]
    assert len(scales) == len(found)
    assert all(scale.size > 1 for scale in scales)  # one for each channel


def _facts(layers: int) -> Int8Facts:
    return Int8Facts(method="minmax", frames=6, held_out=1, layers=layers, share=1.0)


def test_what_is_never_negative_has_bytes_without_a_sign_for_openvino(
    nano: Model, plain: onnx.ModelProto, spans: Any
) -> None:
    found = find_layers(plain)
    ranges = {name: float(np.max(span.range_value[1])) for name, span in spans.items()}
    facts = _facts(len(found))
    made, described = to_unsigned_form(plain, facts, ranges)
    assert described.excluded == ("backbone.stem.0.conv",)  # which reads the frame
    assert described.layers == len(found) - 1
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    kinds = {}
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (weights[name] for name in node.input[1:])
            steps = 255 if zero.dtype == np.uint8 else 127
            assert zero == 0
            assert scale == pytest.approx(ranges[node.input[0]] / steps, rel=1e-5)
            kinds[node.input[0]] = steps
    after = {node.output[0]: node.op_type for node in plain.graph.node}
    assert {steps for name, steps in kinds.items() if after[name] == "Relu"} == {255}
    assert {steps for name, steps in kinds.items() if after[name] == "Add"} == {127}
    # The weights stay as they are elsewhere, and the result comes closer to float32's.
    behind = [layer.node for layer in found if layer.name not in described.excluded]
    signed = quantize.insert_rounding(plain, behind, spans)
    expected = reference.run_reference(
        nano.network, reference.draw_frames(2, SIZE), SIZE, progress=lambda *_: None
    )
    errors = [
        proof.prove_graph(graph, make_card(nano, SIZE, "int8", "labels"), expected).logits_error
        for graph in (made, signed)
    ]
    assert errors[0] < errors[1]


def test_values_beyond_the_range_are_cut_in_no_file_for_cpus(
    nano: Model, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut values make the largest errors of logits, which certified labels are bounded by."""
    # The bar is not what is tested.
    monkeypatch.setattr("rtseg.export.parity.ParityResult.passed", property(lambda result: True))
    card, proofs = make_card(nano, SIZE, "int8", "labels"), {SIZE: reference.draw_frames(2, SIZE)}
    job = ExportJob(nano, card, proofs, tmp_path, lambda step, share: None)
    picked = pick_frames(Calibration(street))
    job.make_graph(picked)
    frames = [fit_frame(frame, SIZE, card.fit, card.pad_color) for _, frame in picked.used]
    plain = quantize.infer_shapes(job.in_float[0])
    spans = {
        method: float(np.max(measured["relu_15"].range_value[1]))
        for method in ("percentile", "minmax")
        if (measured := calibrate.measure_ranges(plain, KINDS, frames, method))
    }
    assert spans["percentile"] < spans["minmax"]
    for target, method, scale in (
        ("onnx", "percentile", "relu_15_scale"),
        ("openvino", "minmax", "relu_15_scale"),
        ("onnxruntime", "minmax", "relu_15/scale"),
    ):
        graph, made = job._make_form(target)
        assert graph is not None
        assert made.int8 is not None
        assert made.int8.method == method
        (step,) = [each for each in graph.graph.initializer if each.name == scale]
        steps = 127 if target == "onnx" else 255
        assert numpy_helper.to_array(step) * steps == pytest.approx(spans[method], rel=1e-5)


def test_a_layer_left_in_float_reads_its_input_in_full(plain: onnx.ModelProto, spans: Any) -> None:
    """Also where another layer reads the same tensor in int8."""
    found = {layer.name: layer.node for layer in find_layers(plain)}
    left = found["backbone.layer2.0.shortcut.conv"]
    graph = quantize.insert_rounding(plain, [n for n in found.values() if n != left], spans).graph
    inputs = {node.name: node.input[0] for node in graph.node}
    assert inputs[left] == {node.name: node.input[0] for node in plain.graph.node}[left]
    assert (
        inputs[found["backbone.layer2.0.conv1.conv"]] == f"{inputs[left]}_DequantizeLinear_Output"
    )


def test_noise_is_the_layers_own_error(plain: onnx.ModelProto, spans: Any) -> None:
    """Against the layer's result when it alone is rounded, which its inputs then are not."""
    found = find_layers(plain)
    frames = scenes(2, SIZE, seed=30)
    every = quantize.insert_rounding(plain, [layer.node for layer in found], spans)
    measured = sensitivity.measure_noise(plain, every, found, frames)
    layer = found[9]
    alone = quantize.insert_rounding(plain, [layer.node], spans)
    (output,) = (n.output[0] for n in plain.graph.node if n.name == layer.node)
    ours, reference = (_results(graph, output, frames) for graph in (alone, plain))
    expected = np.linalg.norm(ours - reference) / np.linalg.norm(reference)
    assert measured[layer.node] == pytest.approx(expected, rel=1e-3)
    assert expected > 0.001


def _results(
    model: onnx.ModelProto, name: str, frames: list[np.ndarray[Any, Any]]
) -> np.ndarray[Any, Any]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(probe.SerializeToString())
    return np.stack([session.run([name], {"frame": frame[None]})[0] for frame in frames])


def test_the_whole_export(nano: Model, street: Path, tmp_path: Path) -> None:
    # Seen with ONEDNN_MAX_CPU_ISA=AVX512_CORE: 95.7 % of OpenVINO's labels agree, and the proof
    # says so: sums of products saturate in 16 bits there.
    if {"avx2", "vnni"} & set(read_system().instruction_sets) == {"avx2"}:
        pytest.skip("int8 holds its bar on x86 processors with VNNI only")
    steps: list[str] = []
    artifacts = export(
        nano, [SIZE], ["onnx", "openvino"], "int8", out=tmp_path,
        calib=Calibration(street), progress=lambda step, share: steps.append(step),
    )  # fmt: skip
    assert [artifact.status for artifact in artifacts] == ["proven", "proven"]
    for artifact, method in zip(artifacts, ("percentile", "minmax"), strict=True):
        facts = read_card(artifact.path).int8
        assert facts is not None
        assert (facts.method, facts.frames, facts.held_out) == (method, 16, 8)
        assert facts.layers + len(facts.excluded) == len(artifact.costs)
        assert "backbone.stem.0.conv" in facts.excluded or method == "percentile"
        assert facts.share > 0.5
        with load(artifact.path) as segment:
            assert segment.info.precision == "int8"
    report = proof.json.loads((tmp_path / "report.json").read_text())
    costs = report["csfcn_nano_96x160_int8.onnx"]["int8"]["sensitivity"]
    tried = [cost["logits_error"] for cost in costs if cost["logits_error"] is not None]
    assert tried == sorted(tried, reverse=True)
    assert len(tried) == sensitivity.ALONE


def test_a_layer_that_int8_ruins_stays_in_float(street: Path, tmp_path: Path) -> None:
    """One channel 300 times the others, with the layers behind it made to undo that: the same
    function, but one scale for the whole tensor leaves the other channels nothing."""
    source = load_model("csfcn_nano:camvid")
    backbone: Any = source.network.backbone
    norm, block = backbone.stem[1].norm, backbone.layer2[0]
    for of in (norm.weight, norm.bias):
        of.data[0] *= 300
    for reader in (block.conv1.conv, block.shortcut.conv):
        reader.weight.data[:, 0] /= 300
    (artifact,) = export(
        source, [SIZE], ["onnx"], "int8", out=tmp_path,
        calib=Calibration(street, "minmax"),
    )  # fmt: skip
    assert artifact.status == "proven"
    assert artifact.card.int8 is not None
    assert artifact.card.int8.excluded
    ruined = {"backbone.layer2.0.conv1.conv", "backbone.layer2.0.shortcut.conv"}
    assert ruined <= set(artifact.card.int8.excluded)
    assert {cost.layer for cost in artifact.costs[:2]} == ruined
    assert {cost.layer for cost in artifact.costs if cost.excluded} == set(
        artifact.card.int8.excluded
    )


@pytest.mark.parametrize("needed", [0, 1, 3, 5])
def test_as_few_layers_as_needed_stay_in_float(needed: int) -> None:
    found = [Layer(f"n{i}", f"l{i}", 1) for i in range(12)]
    graph, kept = quantize._hold_the_bar(list, _passes_from(needed), found, None, lambda *_: None)  # type: ignore[arg-type]
    assert kept == found[needed:]
    assert graph == kept


@pytest.mark.parametrize(
    ("precision", "advice"), [("int8", "Use fp16.*quantize=int8"), ("fp8", "Use int8 or fp16")]
)
def test_what_cannot_hold_the_bar_is_refused(precision: str, advice: str) -> None:
    found = [Layer(f"n{i}", f"l{i}", 1) for i in range(12)]
    half = _passes_from(7)  # more than half of the work
    words = rf"{precision} does not.* 6 costliest of 12 layers .*too far off.*{advice}"
    card: Any = SimpleNamespace(precision=precision)
    with pytest.raises(quantize.QuantizeError, match=words):
        quantize._hold_the_bar(list, half, found, card, lambda *_: None)  # type: ignore[arg-type]


def _passes_from(needed: int) -> Any:
    def trial(kept: list[Layer], *_: Any) -> proof.ParityResult:
        status = "passed" if len(kept) <= 12 - needed else "failed"
        return proof.ParityResult("", "", "int8", status, faults=["too far off"])

    return trial


def test_a_failure_leaves_no_artifact(
    nano: Model, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "prove_graph", lambda *_: _passes_from(99)([None]))
    monkeypatch.setattr(sensitivity, "measure_costs", lambda plain, build, found, *_: [
        sensitivity.LayerCost(layer.name, layer.macs, 0) for layer in found])  # fmt: skip
    with pytest.raises(ProofError, match="int8 does not hold its bar even with"):
        export(
            nano, [SIZE], ["onnx"], "int8", out=tmp_path,
            calib=Calibration(street),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_noise_in_place_of_frames_is_caught_by_the_proof(nano: Model, shared_data: Path) -> None:
    """With this package's own quantizer, which rounds less than the one of the planted faults."""
    size, val = (360, 480), sorted((shared_data / "camvid/val").glob("*.png"))
    plain = quantize.infer_shapes(to_onnx(nano.network, size, "fp32", ("labels",)))
    nodes = [layer.node for layer in find_layers(plain)]
    expected = reference.run_reference(
        nano.network, reference.ProofFrames([(p.stem, read_image(p)) for p in val[::40]]), size
    )
    random = np.random.default_rng(0)
    noisy = [random.integers(0, 256, (*size, 3), np.uint8) for _ in range(2)]
    real = [
        image for _, image in pick_frames(Calibration(shared_data / "camvid/train", frames=8)).used
    ]
    passed = []
    for frames in (noisy, real):
        spans = calibrate.measure_ranges(plain, KINDS, frames, "percentile")
        verdict = proof.prove_graph(
            quantize.insert_rounding(plain, nodes, spans), _card(nano, size), expected
        )
        passed.append(verdict.passed)
    assert passed == [False, True]


def test_float32_sold_as_int8_is_caught(nano: Model, plain: onnx.ModelProto) -> None:
    expected = reference.run_reference(
        nano.network, reference.ProofFrames([("a", scenes(1, SIZE)[0])]), SIZE
    )
    verdict = proof.prove_graph(plain, _card(nano), expected)
    assert verdict.faults == ["the file claims int8, but only 0% of its values are"]


def _card(nano: Model, size: tuple[int, int] = SIZE) -> Any:
    return make_card(nano, size, "int8", "labels")


def test_an_int8_engine_builds(
    plain: onnx.ModelProto, spans: Any, nano: Model, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from rtseg.export.tensorrt import build_engine

    path = tmp_path / "graph.onnx"
    graph = quantize.insert_rounding(plain, [layer.node for layer in find_layers(plain)], spans)
    onnx.save(graph, path)
    built = build_engine(path, tmp_path / "x.engine", _card(nano))
    assert built.census["int8"] == census(graph)["int8"] - _zero_points(graph)
    assert built.census["int8"] > 10 * built.census["float"]


def _zero_points(model: onnx.ModelProto) -> int:
    weights = {
        tensor.name: numpy_helper.to_array(tensor).size for tensor in model.graph.initializer
    }
    names = {n.input[2] for n in model.graph.node if n.op_type.endswith("quantizeLinear")}
    names |= {n.input[2] for n in model.graph.node if n.op_type == "QuantizeLinear"}
    return sum(weights[name] for name in names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp16"}, "calibration frames are for int8 and fp8, not for fp16"),
        ({"to": ["torch"]}, "int8 is a precision of graphs"),
        ({"calib": Calibration(Path("nowhere"))}, "no folder of frames at nowhere"),
        ({"calib": Calibration(Path(), "guess")}, "calibration is percentile, entropy"),
    ],
    ids=["fp16", "torch", "no folder", "method"],
)
def test_bad_wishes_write_nothing(
    change: dict[str, Any], message: str, nano: Model, street: Path, tmp_path: Path
) -> None:
    wish = {"to": ["onnx"], "precision": "int8", "calib": Calibration(street)} | change
    with pytest.raises(ExportError, match=message):
        export(nano, SIZE, out=tmp_path / "out", **wish)
    assert not (tmp_path / "out").exists()
