"""Predictions for NPUs: refusals, cuts, risks, and how many of them a published table bears out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from rtseg.cli.app import app
from rtseg.errors import ExportError
from rtseg.export.graph import find_layers
from rtseg.export.parity import open_session
from rtseg.export.rounding_risk import expect_sqnr, measure_signals
from rtseg.export.targets import (
    MeasuredFrames,
    gather_frames,
    judge,
    measure_risks,
    pick_worst,
    predict,
    read_rules,
    score,
)
from rtseg.models.loading import Model
from typer.testing import CliRunner

SIZE = (96, 160)


def test_every_rule_has_a_public_source() -> None:
    for device, rules in read_rules().items():
        assert rules["sources"], device
        assert all(url.startswith("https://") for url in rules["sources"])
        assert not set(rules.get("takes", ())) & set(rules.get("refuses", ()))


def test_a_chip_that_takes_all_is_cut_before_the_last_resize(nano: Model) -> None:
    report = predict(nano, SIZE, "qnn")
    assert report.refused == {}
    assert report.exact_labels
    assert report.share == 1.0
    assert set(report.host) == {"Resize", "ArgMax", "Cast"}


def test_what_is_refused_bars_all_behind_it(nano: Model) -> None:
    report = predict(nano, SIZE, "rknn")
    assert set(report.refused) == {"GridSample"}
    assert not report.exact_labels
    assert 0.5 < report.share < 1.0
    assert report.host["GridSample"] == 1
    assert report.int8_faster is None
    hailo = predict(nano, SIZE, "hailo8")
    assert "Reshape" in hailo.refused
    assert "GridSample" in hailo.unknown


def test_attributes_count() -> None:
    for mode, refused in (("half_pixel", set()), ("align_corners", {"Resize"})):
        assert set(judge(small_graph(mode), "axelera").refused) == refused


def test_channels_that_one_scale_starves_are_found() -> None:
    (risk,) = measure_risks(small_graph("half_pixel"))
    assert risk.starved == 0.5  # a step is 7.9
    assert risk.spread == pytest.approx(1000 / 50.5, rel=1e-5)


def two_layers(wide: float, groups: int = 1) -> onnx.ModelProto:
    """Two convolutions; one channel between them is `wide` times as large, and nothing else
    changes: what reads it divides."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((8, 3, 1, 1)).astype(np.float32)
    second = rng.standard_normal((8, 8 // groups, 3, 3)).astype(np.float32)
    first[5] *= wide
    if groups == 1:
        second[:, 5] /= wide
    held = {"network.first.weight": first, "network.second.weight": second}
    nodes = [
        helper.make_node("Cast", ["frame"], ["a"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2], name="transpose"),
        helper.make_node("Conv", ["b", "network.first.weight"], ["c"], name="first"),
        helper.make_node(
            "Conv", ["c", "network.second.weight"], ["scores"], name="second", group=groups
        ),
    ]
    values = [numpy_helper.from_array(value, name) for name, value in held.items()]
    ends = (("frame", TensorProto.UINT8, (1, 32, 32, 3)), ("scores", 1, (1, 8, 30, 30)))
    start, end = ([helper.make_tensor_value_info(*each)] for each in ends)
    graph = helper.make_graph(nodes, "two", start, end, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


NOISE = tuple(np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8))


def test_a_planted_wide_channel_is_the_worst_layer() -> None:
    frames = MeasuredFrames(NOISE, "noise", {})
    before = {r.layer: r for r in measure_risks(two_layers(1), frames)}
    risks = measure_risks(two_layers(200), frames)
    after = {r.layer: r for r in risks}
    assert pick_worst(risks, 1)[0].layer == "second"
    assert after["second"].input_spread == pytest.approx(200, rel=0.9)
    assert before["second"].input_spread < 5
    assert after["second"].sqnr_db < before["second"].sqnr_db - 20
    assert after["first"].sqnr_db > after["second"].sqnr_db + 10
    # Calibrated to half of that, its noise falls by 6 dB, and that of the weights stays.
    halved = MeasuredFrames(NOISE, "noise", {"c": float(peak_of(two_layers(200))) / 2})
    known = {r.layer: r for r in measure_risks(two_layers(200), halved)}["second"]
    assert 2 < known.sqnr_db - after["second"].sqnr_db < 6.1


def peak_of(graph: onnx.ModelProto) -> float:
    return measure_signals(graph, find_layers(graph), NOISE)["second"].peak.max()


@pytest.mark.parametrize(("wide", "groups"), [(1, 1), (50, 1), (1, 8), (1, 4)])
def test_expected_noise_is_about_what_rounding_makes(wide: float, groups: int) -> None:
    graph = two_layers(wide, groups)
    layers = find_layers(graph)
    signals = measure_signals(graph, layers, NOISE)
    expected = expect_sqnr(graph, layers, {}, signals)["second"]
    rounded = onnx.ModelProto()
    rounded.CopyFrom(graph)
    step = float(signals["second"].peak.max()) / 127
    held = {each.name: each for each in rounded.graph.initializer}
    weight = numpy_helper.to_array(held["network.second.weight"])
    steps = np.abs(weight).max((1, 2, 3), keepdims=True) / 127
    held["network.second.weight"].CopyFrom(
        numpy_helper.from_array(np.rint(weight / steps) * steps, "network.second.weight")
    )
    rounded.graph.initializer.append(numpy_helper.from_array(np.float32(step), "step"))
    rounded.graph.node[3].input[0] = "d"
    for place, (kind, reads, gives) in enumerate(
        [("Div", ["c", "step"], "q"), ("Round", ["q"], "r"), ("Mul", ["r", "step"], "d")]
    ):
        rounded.graph.node.insert(3 + place, helper.make_node(kind, reads, [gives]))
    signal = noise = 0.0
    for frame in NOISE:
        (exact,) = open_session(graph).run(None, {"frame": frame[None]})
        (found,) = open_session(rounded).run(None, {"frame": frame[None]})
        signal, noise = signal + np.square(exact).sum(), noise + np.square(found - exact).sum()
    assert expected == pytest.approx(10 * np.log10(signal / noise), abs=1)


def test_weights_that_ship_have_frames_and_others_need_some(nano: Model, tmp_path: Path) -> None:
    report = predict(nano, SIZE, "qnn")
    assert "CamVid training frames" in report.measured
    assert len(report.risks) > 20
    assert all(0 < risk.sqnr_db < 60 for risk in report.risks if risk.sqnr_db is not None)
    assert not [risk for risk in report.risks if risk.sqnr_db is None]
    plain = small_graph("half_pixel")
    (risk,) = measure_risks(plain)
    assert (risk.sqnr_db, risk.input_spread) == (None, None)
    with pytest.raises(ExportError, match=r"images?|frames"):
        gather_frames(nano, SIZE, tmp_path)


def small_graph(mode: str) -> onnx.ModelProto:
    """Its channels' largest weights are 1000, 1, 1 and 100."""
    weight = np.ones((4, 3, 1, 1), np.float32)
    weight[0], weight[3] = 1000, 100
    sizes = np.array([1, 4, 16, 16], np.int64)
    nodes = [
        helper.make_node("Cast", ["frame"], ["a"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 3, 1, 2], name="transpose"),
        helper.make_node("Conv", ["b", "network.w.weight"], ["c"], name="conv"),
        helper.make_node(
            "Resize", ["c", "", "", "sizes"], ["d"], mode="linear", name="resize",
            coordinate_transformation_mode=mode,
        ),
        helper.make_node("Relu", ["d"], ["scores"], name="relu"),
        helper.make_node("ArgMax", ["scores"], ["e"], axis=1, keepdims=0, name="argmax"),
        helper.make_node("Cast", ["e"], ["labels"], to=TensorProto.UINT8, name="ids"),
    ]  # fmt: skip
    held = {"network.w.weight": weight, "sizes": sizes}
    values = [numpy_helper.from_array(value, name) for name, value in held.items()]
    first = helper.make_tensor_value_info("frame", TensorProto.UINT8, (1, 8, 8, 3))
    last = helper.make_tensor_value_info("labels", TensorProto.UINT8, (1, 16, 16))
    graph = helper.make_graph(nodes, "small", [first], [last], values)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_unknown_device_is_refused(nano: Model) -> None:
    with pytest.raises(ExportError, match=r"--device is qnn, .*hailo8, not 'tpu'"):
        predict(nano, SIZE, "tpu")


def test_predictions_agree_with_the_published_table() -> None:
    rows = {row["model"]: row for row in score((128, 256))}
    assert [rows[name]["predicted_faster"] for name in ("pidnet_s", "ddrnet_23_slim")] == [
        False
    ] * 2
    assert rows["ffnet_78s"]["published_speedup"] == pytest.approx(2.37, abs=0.01)
    assert sum(row["right"] for row in rows.values()) == len(rows) == 4


def test_the_command(tmp_path: Path) -> None:
    arguments = ["targets", "csfcn_nano:camvid", "--size", "96x160", "--device", "rknn", "--json"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert json.loads(done.stdout)["refused"]["GridSample"][0] == "not in its list"
    assert CliRunner().invoke(app, ["targets"]).exit_code != 0
