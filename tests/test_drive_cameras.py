"""Several cameras in one drive: turns at the engine, isolation, names, sinks and reports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from camera_parts import IMAGE, Cameras, Collector
from rtseg.data.frames import Frame
from rtseg.data.scenes import scenes
from rtseg.export import export
from rtseg.models.loading import load_model
from rtseg.runtime import Drive, Result, Status, load
from rtseg.runtime.drive.camera_report import assess_cameras, snapshot_cameras
from rtseg.runtime.drive.worker import Worker
from simulated import SECOND
from torch import nn


def test_one_engine_serves_two_cameras_in_turn() -> None:
    """The engine makes 20 frames a second of 100 and 10: each camera gets its share."""
    cameras = Cameras(latency_s=0.05)
    cameras.show("front", 0.01, 10.0)
    cameras.show("rear", 0.1, 10.0)
    cameras.run(10.0)
    front, rear = cameras.counts("front"), cameras.counts("rear")
    assert 95 <= rear.published <= 100
    assert 95 <= front.published <= 105
    for counts in (front, rear):
        assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.open
    for name in ("front", "rear"):
        results = cameras.messages(name, Result)
        assert {result.camera for result in results} == {name}
        assert all((result.labels == result.index % 250).all() for result in results)
    assert set(cameras.loops.all[1].counters.counts().dropped) <= {"replaced"}


def test_a_fast_camera_does_not_starve_among_slow_ones() -> None:
    """Whoever waits longest would be one of the slow ones, always: turns go by the last service."""
    cameras = Cameras(("fast", "a", "b", "c"), latency_s=0.05)
    cameras.show("fast", 0.01, 10.0)
    for place, name in enumerate("abc"):
        cameras.show(name, 0.11, 10.0, place * 0.03)
    cameras.run(10.0)
    assert all(cameras.counts(name).published >= 45 for name in ("fast", "a", "b", "c"))


def test_a_batch_takes_the_newest_frame_of_each_camera() -> None:
    """Three cameras, places for two: nobody waits for a full batch, and labels do not mix."""
    cameras = Cameras(("a", "b", "c"), latency_s=0.05, batch=2)
    for place, name in enumerate("abc"):
        cameras.show(name, 0.04 + 0.003 * place, 6.0)
    cameras.run(6.0)
    (engine,) = cameras.engines
    assert set(engine.sizes) == {1, 2}  # the very first frame came alone
    assert sum(engine.sizes) > 1.9 * len(engine.sizes)
    for name in "abc":
        counts, results = cameras.counts(name), cameras.messages(name, Result)
        assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.open
        assert 75 <= counts.published <= 85  # 2 of 3 cameras each 50 ms
        assert all((result.labels == result.index % 250).all() for result in results)


@pytest.mark.parametrize("fate", ["error", "die", "hang"])
def test_a_batch_that_fails_costs_one_engine_and_is_told_to_both_cameras(fate: str) -> None:
    cameras = Cameras(plan=["", "", "", fate], batch=2, latency_s=0.15)
    cameras.show("front", 0.1, 6.0)
    cameras.show("rear", 0.1, 6.0)
    cameras.run(5.95)
    assert cameras.supervisor.failure_count == 1
    assert len(cameras.engines) == 2
    for name in ("front", "rear"):
        told = cameras.messages(name, Status)
        assert told[0].frame_id is not None
        assert told[0].cause == {"error": "backend", "die": "worker", "hang": "late"}[fate]
        counts = cameras.counts(name)
        assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.open
        assert counts.published > 15


def test_cameras_of_two_sizes_share_a_batch_of_an_artifact(tmp_path: Path) -> None:
    """In a worker process: the labels of each are what the artifact gives for its frame alone."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    model = load_model(net, size=(64, 96), classes="numbered", normalize="unit")
    (made,) = export(model, to=["onnx"], batch=2, out=tmp_path)

    def play(seed: int, size: tuple[int, int]) -> Iterator[Frame]:
        for index, image in enumerate(scenes(6, size, seed=seed)):
            yield Frame(image, index, time.monotonic_ns(), str(index))

    every = Collector()
    sources = {"front": play(0, (64, 96)), "rear": play(9, (90, 120))}
    job = Drive(sources, made.path, [every], every_frame=True, backend="onnxruntime")
    sizes, begin = [], Worker.submit_batch

    def note(self: Worker, number: int, images: Any, level: int) -> None:
        sizes.append(len(images))
        begin(self, number, images, level)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "submit_batch", note)
        report = job.run(300)
    assert report.frames.published == 12
    assert 2 in sizes
    with load(made.path, "onnxruntime") as segment:
        for result in every.got:
            assert isinstance(result, Result)
            assert result.labels.shape == result.image.shape[:2]
            assert (result.labels == segment(result.image)).mean() > 0.999


@pytest.mark.parametrize("trouble", ["raises", "silent", "frozen", "damaged"])
def test_a_camera_that_fails_changes_nothing_for_the_other(trouble: str) -> None:
    def ages(broken: bool) -> tuple[list[float], Cameras]:
        cameras = Cameras(latency_s=0.01, max_age_ms=300.0)
        cameras.show("front", 0.1, 8.0)
        cameras.show("rear", 0.1, 2.0, 0.05)
        rear = cameras.loops.by_name["rear"].capture
        if not broken:
            cameras.show("rear", 0.1, 8.0, 2.05)
        elif trouble == "raises":
            cameras.clock.after(2.0, lambda: cameras.cut("rear"))
        elif trouble == "frozen":
            for at in range(60):
                again = lambda: rear.accept(Frame(IMAGE, 0, cameras.clock.now))  # noqa: E731
                cameras.clock.after(2.05 + at / 10, again)
        elif trouble == "damaged":
            for at in range(60):
                cameras.clock.after(2.05 + at / 10, lambda: rear.accept("no frame"))
        cameras.run(7.95)
        return [round(r.age_ms, 6) for r in cameras.messages("front", Result)], cameras

    (alone, _), (beside, cameras) = ages(broken=False), ages(broken=True)
    assert len(beside) == len(alone) == 80
    assert beside == alone
    assert not cameras.messages("front", Status)
    assert cameras.messages("rear", Status)
    health, each = assess_cameras(cameras.loops)
    assert each["front"].state.value == "running"
    assert each["rear"].state.value in ("stale", "failed")
    assert health.state.value == "degraded"
    assert all(reason.startswith("camera rear: ") for reason in health.reasons)
    states = [state for state, _ in groupby(e.state for e in cameras.history.entries)]
    assert states == ["starting", "running", "degraded"]


def test_the_whole_fails_when_no_camera_is_left_and_recovers() -> None:
    cameras = Cameras()
    cameras.show("front", 0.1, 2.0)
    cameras.show("rear", 0.1, 1.0)
    cameras.run(4.0)
    health, _ = assess_cameras(cameras.loops)
    assert (health.state.value, health.reasons) == ("stale", ("the camera is silent",))
    cameras.show("rear", 0.1, 5.0, 4.0)
    cameras.run(4.95)
    health, _ = assess_cameras(cameras.loops)
    assert health.state.value == "degraded"
    assert health.reasons == ("camera front: the camera is silent",)


def test_a_drive_starts_once_each_camera_gave_a_mask_or_is_lost() -> None:
    cameras = Cameras()
    cameras.show("front", 0.1, 3.0)
    cameras.run(0.5)
    assert assess_cameras(cameras.loops)[0].state.value == "starting"
    cameras.run(1.5)  # silence_s has passed: it is waited with no longer
    health, _ = assess_cameras(cameras.loops)
    assert health.state.value == "degraded"
    assert health.reasons == ("camera rear: no frame has come yet",)


def test_stuck_inference_is_told_to_both_cameras() -> None:
    """It sits at one camera's frame; the other's sinks must not wait for news until it is ended."""
    cameras = Cameras(plan=["", "", "", "hang"], max_age_ms=300.0)
    cameras.show("front", 0.1, 6.0)
    cameras.show("rear", 0.1, 6.0, 0.05)
    cameras.run(5.95)
    assert cameras.supervisor.failure_count == 1
    causes = {name: {s.cause for s in cameras.messages(name, Status)} for name in ("front", "rear")}
    assert causes == {"front": {"busy", "unserved"}, "rear": {"late", "unserved"}}
    first = min(s.at_ns for s in cameras.messages("front", Status) if s.cause == "busy")
    assert (first - cameras.began) / SECOND < 0.1 + 0.3 + 0.25
    for name in ("front", "rear"):
        counts = cameras.counts(name)
        assert counts.captured == counts.published + sum(counts.dropped.values()) + counts.open
        assert counts.published >= 25


def test_an_engine_that_stays_away_is_told_to_both_cameras() -> None:
    cameras = Cameras(plan=[""] * 4 + ["die"] * 50)
    cameras.show("front", 0.1, 4.0)
    cameras.show("rear", 0.1, 4.0, 0.05)
    cameras.run(4.0)
    for name in ("front", "rear"):
        assert {s.cause for s in cameras.messages(name, Status)} >= {"unserved"}
    health, each = assess_cameras(cameras.loops)
    assert health.state.value == each["front"].state.value == each["rear"].state.value == "failed"
    told = [reason for reason in health.reasons if "no inference serves" in reason]
    assert len(told) == 1  # once, not a camera
    assert not told[0].startswith("camera")


def test_the_snapshot_adds_up() -> None:
    cameras = Cameras()
    cameras.show("front", 0.1, 3.0)
    cameras.show("rear", 0.2, 3.0)
    cameras.run(3.0)
    now = snapshot_cameras(cameras.loops)
    assert (now.cameras["front"].frames.captured, now.cameras["rear"].frames.captured) == (30, 15)
    assert now.frames.captured == 45
    assert now.frames.published == now.age_ms.count == 45
    assert now.period_ms == pytest.approx(100)
    assert json.dumps(now.to_dict())
