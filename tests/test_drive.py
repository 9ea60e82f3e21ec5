"""The drive as a user has it: the class, the command, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run, as_json
from rtseg.data.frames import Frame
from rtseg.data.images import read_image
from rtseg.data.playback import Paced
from rtseg.data.scenes import scene
from rtseg.errors import UsageError
from rtseg.export import Artifact, export
from rtseg.models.loading import Model
from rtseg.runtime import Drive, DriveLimits, Result, State, Status, read_card
from rtseg.runtime.drive.clock import LoopClock
from rtseg.runtime.drive.drive import build_artifact_task
from rtseg.runtime.drive.engine import InlineEngine
from rtseg.runtime.drive.faults import Fault, FaultPlan, with_faults
from rtseg.runtime.drive.stats import FrameCounts

IMAGE = np.zeros((4, 6, 3), np.uint8)
LIMIT_S = 300.0  # reached by nothing but a defect, however busy the machine is


def frames(count: int) -> Iterator[Frame]:
    for index in range(count):
        yield Frame(np.full_like(IMAGE, index % 250), index, time.monotonic_ns(), f"f{index}")


def first_channel(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return image[:, :, 0].copy()


def test_every_frame_of_a_log_is_answered() -> None:
    got: list[Any] = []

    def keep(message: Result | Status) -> None:
        got.append(message)

    keep.capacity = 1000  # type: ignore[attr-defined]
    states: list[State] = []
    drive = Drive(frames(300), first_channel, [keep], every_frame=True)
    report = drive.run(on_state=lambda at_s, health: states.append(health.state))
    assert [r.index for r in got] == list(range(300))
    assert all((r.labels == r.index % 250).all() for r in got)
    assert report.frames == FrameCounts(300, 300, {}, 0)
    assert report.ended == "source ended"
    assert (report.state, states[-1]) == ("running", State.running)
    assert report.sinks[0].delivered == 300
    assert report.results_by_level == {"first_channel": 300}
    json.dumps(report.to_dict())
    assert drive.snapshot().ended == "source ended"


def test_a_blocked_sink_delays_neither_inference_nor_the_end() -> None:
    never, others = threading.Event(), []

    def blocked(message: Result | Status) -> None:
        never.wait(LIMIT_S)

    def other(message: Result | Status) -> None:
        others.append(message)

    other.capacity = 1000  # type: ignore[attr-defined]
    drive = Drive(endless(), first_channel, [blocked, other])

    def stop() -> None:
        while len(others) < 200:
            time.sleep(0.005)
        drive.stop()

    threading.Thread(target=stop, daemon=True).start()
    report = drive.run(LIMIT_S)
    never.set()
    assert report.ended == "stop()"
    sinks = {sink.name: sink for sink in report.sinks}
    assert sinks["blocked"].delivered == 0
    assert sinks["blocked"].dropped >= 190
    assert sinks["blocked"].unflushed == 5  # one in its hands, four in its queue
    published = report.frames.published + sum(report.statuses.values())
    assert sinks["other"].delivered == published
    assert report.frames.open == 0


def test_what_a_sink_accepted_is_flushed_at_the_end() -> None:
    """A sink that is slower than the source still holds most of it when the source ends."""
    got: list[int] = []

    def slow(message: Result | Status) -> None:
        time.sleep(0.01)
        if isinstance(message, Result):
            got.append(message.index)

    slow.capacity = 1000  # type: ignore[attr-defined]
    report = Drive(
        frames(60), first_channel, [slow], every_frame=True, limits=DriveLimits(max_age_ms=None)
    ).run()
    assert got == list(range(60))
    assert (report.sinks[0].delivered, report.sinks[0].unflushed) == (60, 0)


def endless() -> Iterator[Frame]:
    for frame in frames(10**9):
        yield frame
        time.sleep(0.002)


def test_a_source_that_is_lost_ends_the_drive() -> None:
    def source() -> Iterator[Frame]:
        yield from frames(3)
        raise OSError("unplugged")

    report = Drive(source(), first_channel, every_frame=True).run(LIMIT_S)
    assert report.ended == "source lost"
    assert report.state == "failed"
    assert "unplugged" in report.reasons[0]
    assert report.frames.published == 3


def test_masks_come_back_with_the_camera() -> None:
    """One that breaks, cannot be opened for a while, and is there again. How soon they do follows
    from the back-off, which has tests of its own."""
    back = [0.0]

    class Camera:
        def __iter__(self) -> Iterator[Frame]:
            if back[0] and time.monotonic() < back[0]:
                raise OSError("no such device")
            for frame in frames(20 if not back[0] else 10**6):
                yield frame
                time.sleep(0.02)
            back[0] = time.monotonic() + 1.5
            raise OSError("unplugged")

    results: list[Result] = []
    statuses: list[Status] = []

    def keep(message: Result | Status) -> None:
        (results if isinstance(message, Result) else statuses).append(message)  # type: ignore[arg-type]
        if back[0] and isinstance(message, Result) and message.captured_ns > back[0] * 1e9:
            drive.stop()

    drive = Drive(Camera(), first_channel, [keep])
    report = drive.run(LIMIT_S)
    assert report.ended == "stop()"
    assert results[-1].captured_ns > back[0] * 1e9
    assert "camera" in {status.cause for status in statuses}
    assert any("unplugged" in status.text for status in statuses)


@pytest.mark.parametrize(
    ("segmenter", "message"),
    [([], "needs a segmenter"), ([first_channel, "x.onnx"], "not some of each")],
)
def test_segmenters_that_do_not_go_together(segmenter: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Drive([], segmenter)


SIZE = 64, 128


@pytest.fixture(scope="module")
def artifacts(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    out = tmp_path_factory.mktemp("artifacts")
    return export(nano, [SIZE, (32, 64)], out=out)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames as Cityscapes lays out a sequence."""
    folder = tmp_path_factory.mktemp("clip") / "leftImg8bit_sequence" / "val" / "ulm"
    folder.mkdir(parents=True)
    for index in range(12):
        file = folder / f"ulm_000000_{index:06d}_leftImg8bit.png"
        cv2.imwrite(str(file), scene((90, 160), index))
    return folder.parents[1]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_command_labels_a_clip(
    artifacts: list[Artifact], clip: Path, tmp_path: Path, rtseg: Run
) -> None:
    done = rtseg(
        "drive", clip, "--model", artifacts[0].path, "--rate", 0, "--backend", "onnxruntime",
        "--out", tmp_path / "labels", "--out", tmp_path / "drive.mp4", "--report",
        tmp_path / "report.json", "--json",
    )  # fmt: skip
    facts = as_json(done)
    assert facts["frames"] == {"captured": 12, "published": 12, "dropped": {}, "open": 0}
    assert facts["age_ms"]["count"] == 12
    assert facts == json.loads((tmp_path / "report.json").read_text())
    files = sorted((tmp_path / "labels").iterdir())
    assert len(files) == 12
    assert files[3].name == "00000003_ulm_000000_000003_leftImg8bit.png"
    assert (tmp_path / "drive.mp4").stat().st_size > 1000
    from rtseg.runtime import load

    with load(artifacts[0].path, "onnxruntime", "cpu") as segment:
        expected = segment(scene((90, 160), 3))
    assert (read_image(files[3])[:, :, 0] == expected).all()


def test_a_worker_that_dies_is_replaced_while_the_fallback_serves(
    artifacts: list[Artifact],
) -> None:
    plan = FaultPlan([Fault(0, "worker_death")], time.monotonic_ns())
    task = with_faults(build_artifact_task([artifacts[0].path], "onnxruntime", "cpu"), plan)
    first = artifacts[0].path.name

    def until_recovered(message: Result | Status) -> None:
        if isinstance(message, Result) and message.level == first:
            drive.stop()

    drive = Drive(
        endless(),
        task,
        [until_recovered],
        fallback=artifacts[1].path,
        limits=DriveLimits(max_age_ms=1000 * LIMIT_S),
    )
    report = drive.run(10 * LIMIT_S)
    assert report.ended == "stop()"
    assert [failure.reason for failure in report.engine_failures] == [
        "the worker process ended with exit code 70"
    ]
    assert report.frames.open == 0


def test_the_command_judges_the_faults_that_it_brings_about(
    artifacts: list[Artifact], clip: Path, tmp_path: Path, rtseg: Run
) -> None:
    plan = tmp_path / "faults.yaml"
    plan.write_text("- {at: 3600, fault: camera_cut, seconds: 1}")  # the clip is over long before
    done = rtseg(
        "drive", clip, "--model", artifacts[0].path, "--rate", 0, "--inject", plan, "--json"
    )
    assert done.returncode == 1
    assert "a fault went unnoticed" in done.stderr
    (row,) = json.loads(done.stdout)["injected"]["faults"]
    assert (row["fault"], row["state"]) == ("camera_cut", None)


def test_sigterm_ends_it_within_a_second(
    artifacts: list[Artifact], clip: Path, tmp_path: Path
) -> None:
    health, out = tmp_path / "health.json", tmp_path / "labels"
    command = [
        sys.executable, "-m", "rtseg", "drive", clip, "--model", artifacts[0].path, "--loop",
        "--rate", "20", "--max-age", "5000", "--health", health, "--out", out, "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        _until_running(health, process)
        os.kill(process.pid, signal.SIGTERM)
        stdout, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    facts = json.loads(stdout)
    assert facts["ended"] == "SIGTERM"
    assert facts["frames"]["open"] == 0
    assert len(list(out.iterdir())) == facts["frames"]["published"]  # all of them flushed
    assert facts["end_s"] < 1
    assert process.returncode == 0


def _until_running(health: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        assert process.poll() is None
        if health.exists() and json.loads(health.read_text())["state"] == "running":
            return
        time.sleep(0.05)
    raise AssertionError("it never ran")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent", "--model", "ARTIFACT"], "no such file or folder: absent"),
        (["absent.mp4", "--model", "ARTIFACT"], "no video at absent.mp4"),
        (["CLIP", "--model", "absent.onnx"], "no artifact at absent.onnx"),
        (["CLIP", "--model", "ARTIFACT", "--model", "ARTIFACT"], "give --deadline MS"),
        (["0", "--model", "ARTIFACT", "--loop"], "a camera has a rate of its own"),
        (["CLIP", "--model", "ARTIFACT", "--out", "x.gif"], "not x.gif"),
        (["CLIP", "--model", "ARTIFACT", "--rate", "-1"], "a rate is 0"),
        (["CLIP", "--model", "ARTIFACT", "--topic", "/camera"], "bags only"),
        (["absent.mcap", "--model", "ARTIFACT"], "no log at absent.mcap"),
        (["CLIP", "--model", "ARTIFACT", "--max-age", "-3"], "max_age_ms must be more than 0"),
        (["CLIP", "--model", "ARTIFACT", "--max-age", "inf"], "max_age_ms must be more than 0"),
        (["CLIP", "--model", "ARTIFACT", "--duration", "nan"], "a drive lasts more than 0"),
        (["CLIP", "--model", "ARTIFACT", "--health", "70000"], "a port is 0 to 65535"),
        (["CLIP", "--model", "ARTIFACT", "--metrics", "65536"], "a port is 0 to 65535"),
        (
            ["CLIP", "--model", "ARTIFACT", "--device", "cpu", "--verify-with", "ARTIFACT"],
            "would be verified with itself",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    options: list[str], message: str, artifacts: list[Artifact], clip: Path, rtseg: Run
) -> None:
    names = {"CLIP": clip, "ARTIFACT": artifacts[0].path}
    done = rtseg("drive", *(names.get(option, option) for option in options))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "change", [{"classes": ("road", "sky")}, {"palette": ((1, 2, 3), (4, 5, 6))}]
)
def test_all_that_may_serve_answers_in_the_same_classes(
    change: dict[str, Any], artifacts: list[Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fallback with two classes swapped gave masks of the wrong meaning, and nothing said so."""
    first, second = (artifact.path for artifact in artifacts)
    other = read_card(second).model_copy(update=change)
    given = {first: read_card(first), second: other}
    monkeypatch.setattr("rtseg.runtime.drive.drive.read_card", given.get)

    def fallback(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return first_channel(image)

    fallback.card = other  # type: ignore[attr-defined]
    build: list[Any] = [
        lambda: build_artifact_task([first, second]),
        lambda: Drive([], [first, second]),
        lambda: Drive([], first, fallback=second),
        lambda: Drive([], build_artifact_task([first]), fallback=second),
        lambda: Drive([], first, fallback=fallback),
    ]
    for each in build:
        with pytest.raises(UsageError, match="has other classes or colors than"):
            each()


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_duration_is_a_time(seconds: float) -> None:
    with pytest.raises(UsageError, match="a drive lasts more than 0"):
        Drive(frames(3), first_channel).run(seconds)


def test_a_recording_does_not_wait_for_ever() -> None:
    drive = Drive(Paced(list(frames(3)), 200.0), first_channel)
    drive.loop.supervisor.primary.start = broken_start
    report = drive.run(LIMIT_S)
    assert report.ended == "no inference"
    assert report.failure() == "no frame was answered: no inference serves: " + (
        "it cannot be started: no GPU answers"
    )
    assert report.frames == FrameCounts(0, 0, {}, 0)


def broken_start() -> InlineEngine:
    raise OSError("no GPU answers")


def test_a_recording_waits_for_inference() -> None:
    """And the start is neither a loss nor a degradation."""
    ready = threading.Event()

    class Starting(InlineEngine):
        def __init__(self, clock: LoopClock):
            super().__init__([first_channel], clock)
            self.ready = False
            threading.Thread(target=self._become_ready, daemon=True).start()

        def _become_ready(self) -> None:
            time.sleep(0.3)
            ready.set()
            self.ready = True
            self.clock.wake()

    def recording() -> Iterator[Frame]:
        assert ready.is_set()
        yield from frames(20)

    class Once:
        def __iter__(self) -> Iterator[Frame]:
            return recording()

    got: list[Result | Status] = []
    drive = Drive(Paced(Once(), 200.0), first_channel, [got.append])
    drive.loop.supervisor.primary.start = lambda: Starting(drive.clock)
    states: list[State] = []
    report = drive.run(LIMIT_S, on_state=lambda at_s, health: states.append(health.state))
    assert report.frames.captured == 20
    assert "starting" not in report.frames.dropped
    assert states == [State.starting, State.running]


@pytest.mark.slow
def test_a_worker_is_steady_over_50_000_frames(artifacts: list[Artifact]) -> None:
    drive = Drive(
        frames(50_000), artifacts[1].path, every_frame=True, limits=DriveLimits(max_age_ms=None)
    )
    report = drive.run()
    assert report.frames.published == 50_000
    assert len(report.usage) > 2
    early, late = report.usage[1], report.usage[-1]  # the first is from before the worker
    assert late.handles <= early.handles
    assert late.workers_mib - early.workers_mib < 16
    assert late.resident_mib - early.resident_mib < 16
