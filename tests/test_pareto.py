"""Which precision pays: the front, and int8 refused with the reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run, as_json
from rtseg.data.scenes import scenes
from rtseg.errors import ProofError
from rtseg.models.loading import Model
from rtseg.speed import pareto
from rtseg.speed.pareto import ParetoPoint, Way, _advice, _files, _ways, judge_points


def point(way: str, p99: float, miou: float) -> ParetoPoint:
    return ParetoPoint(way, way.split()[-1], p99, p99, miou, "pole", 0.01)


def test_a_way_that_another_beats_is_off_the_front() -> None:
    points = judge_points(
        [point("a fp32", 40, 0.64), point("b fp32", 50, 0.64), point("a bf16", 20, 0.63)]
    )
    assert [(p.way, p.front) for p in points] == [
        ("a bf16", True), ("a fp32", True), ("b fp32", False),
    ]  # fmt: skip
    assert points[2].why.startswith("a fp32 has a p99 of 40.0 ms against 50.0 ms")


def test_int8_that_pays_is_kept() -> None:
    points = judge_points([point("a fp32", 40, 0.64), point("a int8", 20, 0.63)])
    pays, advice = _advice(points, "")
    assert pays
    assert "run by a int8: 20.0 ms" in advice


def test_int8_that_is_hardly_faster_is_refused_with_the_reason() -> None:
    """19.8 ms against 20: less than runs of one file differ."""
    points = judge_points([point("a bf16", 20, 0.64), point("a int8", 19.8, 0.63)])
    assert [p.front for p in points if p.precision == "int8"] == [False]
    pays, advice = _advice(points, "")
    assert not pays
    assert "refused" in advice
    assert "a bf16 has a p99 of 20.0 ms against 19.8 ms, and 64.00% mIoU" in advice


def test_int8_that_holds_no_bar_is_refused() -> None:
    pays, advice = _advice(judge_points([point("a fp32", 40, 0.64)]), "labels agree on 90 %")
    assert not pays
    assert advice == "int8 is refused: labels agree on 90 %"


def test_every_precision_is_run_in_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("openvino", "onnxruntime")
    files = {name: dict.fromkeys(both, Path(f"{name}.onnx")) for name in ("fp32", "fp16", "int8")}
    monkeypatch.setattr(pareto, "_capabilities", lambda: ["FP32", "BF16", "INT8"])
    assert [way.name for way in _ways(files)] == [
        "openvino fp32", "openvino bf16", "onnxruntime fp32",
        "openvino fp16 + fp32", "onnxruntime fp16",
        "openvino int8 + fp32", "openvino int8 + bf16", "onnxruntime int8 + fp32",
    ]  # fmt: skip
    monkeypatch.setattr(pareto, "_capabilities", lambda: ["FP32", "FP16", "INT8"])
    names = [way.name for way in _ways(files)]
    assert "openvino fp16" in names
    assert not [name for name in names if "bf16" in name]
    assert (
        Way(files["fp16"]["onnxruntime"], "onnxruntime", "fp16", "fp16").name == "onnxruntime fp16"
    )


@pytest.mark.parametrize("refused", ["", "onnxruntime", "onnx"])
def test_each_runs_int8_in_the_form_that_is_its_own(
    refused: str, nano: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def export(model: Model, size: object, targets: list[str], precision: str, **_: object) -> Any:
        asked.append((precision, targets))
        if precision == "int8" and refused in targets:
            raise ProofError(f"no {refused}")
        return [SimpleNamespace(path=tmp_path / f"{precision}.{target}") for target in targets]

    monkeypatch.setattr(pareto, "export", export)
    monkeypatch.setattr(pareto, "is_installed", lambda backend: True)
    calibration: Any = None
    files, failed = _files(nano, (64, 128), calibration, tmp_path, lambda *_: None)
    assert asked[:3] == [("fp32", ["onnx"]), ("fp16", ["onnx"]), ("int8", ["onnx", "onnxruntime"])]
    found = {backend: path.name for backend, path in files.get("int8", {}).items()}
    whole = {"openvino": "int8.onnx", "onnxruntime": "int8.onnxruntime"}
    assert found == {
        "": whole, "onnxruntime": {"openvino": "int8.onnx"}, "onnx": {},
    }[refused]  # fmt: skip
    told = {"onnxruntime": {"int8 in onnxruntime": "no onnxruntime"}, "onnx": {"int8": "no onnx"}}
    assert failed == told.get(refused, {})
    monkeypatch.setattr(pareto, "is_installed", lambda backend: backend == "openvino")
    asked.clear()
    _files(nano, (64, 128), calibration, tmp_path, lambda *_: None)
    assert asked[-1] == ("int8", ["onnx"])


def test_the_command(rtseg: Run, tmp_path: Path) -> None:
    root, calib = tmp_path / "camvid", tmp_path / "calib"
    for folder in (root / "val", root / "valannot", calib):
        folder.mkdir(parents=True)
    for place, scene in enumerate(scenes(16, (96, 128), seed=5)):
        cv2.imwrite(str(calib / f"{place}.png"), scene)
        if place < 3:
            cv2.imwrite(str(root / "val" / f"{place}.png"), scene)
            labels = np.random.default_rng(place).integers(0, 12, (96, 128), np.uint8)
            cv2.imwrite(str(root / "valannot" / f"{place}.png"), labels)
    done = rtseg(
        "pareto", "csfcn_nano", "camvid", "--root", root, "--calib", calib, "--runs", 20,
        "--threads", 1, "--images", 2, "--json",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    done.returncode = 0
    front = as_json(done)
    assert front["size"] == "96x128"
    assert front["images"] == 2
    ways = {point["way"] for point in front["points"]}
    assert {"openvino fp32", "onnxruntime fp32"} <= ways
    held = {point["precision"] for point in front["points"]}
    left_out = front["left_out"].keys() - {"int8 in onnxruntime"}
    assert held | left_out == {"fp32", "fp16", "int8"}
    assert not held & left_out
    assert all(front["left_out"].values()), "each says why"
    assert front["int8"] == any(p["front"] for p in front["points"] if p["precision"] == "int8")
    assert all(point["why"] for point in front["points"] if not point["front"])
    assert [p["p99_ms"] for p in front["points"]] == sorted(p["p99_ms"] for p in front["points"])
