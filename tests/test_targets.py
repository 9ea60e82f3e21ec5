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
from rtseg.export.targets import judge, measure_risks, predict, read_rules, score
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
