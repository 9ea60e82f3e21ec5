"""The age of a drive's results beside the bench's latency."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import load_script
from rtseg.data.frames import Frame
from rtseg.data.scenes import scenes
from rtseg.export import export
from rtseg.models.loading import Model
from rtseg.runtime import Drive, Result

script = load_script("age_beside_bench")
watched = load_script("watched_age")
Comparison, Turn, compare = script.Comparison, script.Turn, script.compare
IMAGE = np.zeros((4, 6, 3), np.uint8)


class Camera:
    def __init__(self, period_s: float):
        self.period_s = period_s

    def __iter__(self) -> Iterator[Frame]:
        for index in range(10**6):
            time.sleep(self.period_s)
            yield Frame(IMAGE, index, time.monotonic_ns())


def taking(seconds: float) -> Any:
    def segment(image: np.ndarray[Any, Any] = IMAGE) -> np.ndarray[Any, Any]:
        time.sleep(seconds)
        return image[:, :, 0].copy()

    return segment


def compared(drive_s: float, period_s: float = 0.03) -> Any:
    """A bench of 10 ms a frame beside a drive whose frames take `drive_s`."""
    return compare(
        taking(0.01),
        lambda ages: Drive(Camera(period_s), taking(drive_s), [ages]),
        turns=2,
        drive_s=0.6,
        bench_s=0.1,
    )


def test_both_are_measured_in_turns() -> None:
    found = compared(0.01)
    assert len(found.turns) == 2
    assert 10 <= found.bench_p95_ms < 100
    for turn in found.turns:
        assert turn.age_ms >= 10
        assert turn.inference_ms >= 10
        assert turn.waiting_ms < turn.age_ms
        assert 0.5 < turn.answered <= 1


def test_old_results_are_told() -> None:
    found = compared(0.1, period_s=0.15)
    assert found.ratio > 1.5
    assert not found.passed


def test_a_drive_that_does_not_keep_up_says_nothing_of_ages() -> None:
    found = compared(0.05, period_s=0.01)
    assert not found.keeps_up
    assert not found.passed


def test_the_verdict_is_that_of_all_turns() -> None:
    turns = [Turn(10, age, 1, 9, 0, answered=1.0) for age in (12, 16)]
    assert Comparison(turns, 10, 14.9).passed
    assert not Comparison(turns, 10, 15.1).passed
    assert Comparison(turns, 10, 14).facts()["turns"][1]["ratio"] == 1.6
    lazy = [*turns, Turn(10, 12, 1, 9, 0, answered=0.98)]
    assert not Comparison(lazy, 10, 12).passed


def test_a_drive_without_masks_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: object) -> Any:
        raise RuntimeError("no GPU answers")

    monkeypatch.setattr(script, "START_LIMIT_S", 0.3)
    with pytest.raises(RuntimeError, match="answered no frame"):
        compare(taking(0), lambda ages: Drive(Camera(0.02), broken, [ages]), 1, 0.3, 0.05)


def test_the_script_compares(
    nano: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = export(nano, (64, 96), "onnx", out=tmp_path)
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, scene in enumerate(scenes(3, (64, 96))):
        cv2.imwrite(str(frames / f"{number}.png"), scene)
    command = [frames, "--model", made.path, "--rate", 20, "--backend", "onnxruntime"]
    options = ["--turns", 1, "--duration", 1, "--report", tmp_path / "age.json"]
    with pytest.raises(SystemExit) as ended:
        script.main(list(map(str, command + options)))
    printed = capsys.readouterr().out
    facts = json.loads(printed)
    assert facts == json.loads((tmp_path / "age.json").read_text())
    assert (facts["source"], facts["backend"]) == (f"{tmp_path.name}/frames", "onnxruntime")
    assert facts["turns"][0]["bench_ms"] > 0
    assert ended.value.code == (0 if facts["passed"] else 1)
    assert str(tmp_path) not in printed


def test_a_quantile_that_rises_is_seen_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    plain = [rng.gamma(9, 2, 300).tolist() for _ in range(6)]
    same = [rng.permutation(ages).tolist() for ages in plain[1:] + plain[:1]]
    slow = [[each + 40 * (i % 50 == 0) for i, each in enumerate(ages)] for ages in same]
    found = watched.compare_ages(plain, same)
    assert all(each["low"] <= each["ratio"] == 1 <= each["high"] for each in found.values())
    found = watched.compare_ages(plain, slow)
    assert found["p99"]["low"] > 1.1
    assert found["p50"]["ratio"] == pytest.approx(1, abs=0.05)


def test_the_start_of_a_drive_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(watched.time, "monotonic", lambda: now)
    ages = watched.SettledAges(20.0)
    for now in (100.0, 119.0, 121.0, 130.0):
        ages(Result(
            frame_id=0, index=0, name="", captured_ns=0, captured_wall_ns=0, labels=IMAGE[:, :, 0],
            image=IMAGE, level="", stages_ms={}, age_ms=now, published_ns=0, expires_ns=1,
        ))  # fmt: skip
    assert [row["age"] for row in ages.rows] == [121.0, 130.0]


def test_drives_with_and_without_take_turns() -> None:
    asked: list[bool] = []

    def drive(watched_too: bool) -> list[float]:
        asked.append(watched_too)
        return [float(len(asked))]

    plain, with_it = watched.take_turns(drive, 3)
    assert asked == [False, True, True, False, False, True]
    assert (plain, with_it) == ([[1.0], [4.0], [5.0]], [[2.0], [3.0], [6.0]])
