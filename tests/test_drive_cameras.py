"""Several cameras in one drive: turns at the engine, isolation, names, sinks and reports."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
import torch
from rtseg.cli._cameras import open_cameras
from rtseg.data.classes import CAMVID
from rtseg.data.frames import Frame, Unreadable
from rtseg.data.images import blend
from rtseg.data.scenes import scenes
from rtseg.demo.live import LivePage
from rtseg.errors import UsageError
from rtseg.export import export
from rtseg.models.loading import load_model
from rtseg.runtime import Drive, DriveLimits, Result, Status, StatusKind, load
from rtseg.runtime.drive.camera_report import assess_cameras, snapshot_cameras
from rtseg.runtime.drive.cameras import MOST_CAMERAS, CameraLoops, name_cameras
from rtseg.runtime.drive.capture import Capture, Mailbox
from rtseg.runtime.drive.faults import Fault, FaultPlan, FaultySource, check_cameras
from rtseg.runtime.drive.health import History
from rtseg.runtime.drive.loop import Loop
from rtseg.runtime.drive.messages import Message
from rtseg.runtime.drive.stats import FrameCounters
from rtseg.runtime.drive.supervisor import Supervisor
from rtseg.runtime.drive.worker import Worker
from rtseg.runtime.sinks import open_sinks
from rtseg.runtime.sinks.prometheus import PrometheusCollector
from rtseg.runtime.sinks.queue import SinkQueue
from simulated import SECOND, Recorder, SimulatedClock, SimulatedEngine
from torch import nn

IMAGE = np.zeros((4, 6, 3), np.uint8)


class Cameras:
    """Cameras and their loops over one simulated engine. Frames of a camera are one value all
    over: ten times its place, plus one for each."""

    def __init__(
        self,
        names: Sequence[str] = ("front", "rear"),
        latency_s: float = 0.01,
        plan: list[str] | None = None,
        batch: int = 1,
        **limits: Any,
    ):
        self.clock = clock = SimulatedClock()
        self.engines: list[SimulatedEngine] = []

        def start() -> SimulatedEngine:
            engine = SimulatedEngine(clock, lambda level: latency_s, plan=plan, batch=batch)
            self.engines.append(engine)
            return engine

        self.supervisor = Supervisor(clock, start)
        self.recorders = {name: Recorder(clock) for name in names}
        self.loops = CameraLoops({name: self._loop(name, **limits) for name in names})
        self.began, self.history = clock.now, History()

    def _loop(self, name: str, **limits: Any) -> Loop:
        counters, mailbox, limit = FrameCounters(), Mailbox(self.clock), DriveLimits(**limits)
        capture = Capture([], mailbox, counters, self.clock, max_age_ms=limit.max_age_ms)
        capture.reopen = lambda: True  # type: ignore[method-assign]
        queues: Any = [self.recorders[name]]
        return Loop(capture, mailbox, self.supervisor, queues, counters, self.clock, limit, name)

    def show(self, name: str, period_s: float, to_s: float, from_s: float = 0.0) -> None:
        def one(index: int) -> None:
            image = np.full_like(IMAGE, index % 250)
            loop = self.loops.by_name[name]
            loop.capture.accept(Frame(image, index, self.clock.now))

        for index in range(round((to_s - from_s) / period_s)):
            at_s = from_s + index * period_s - self.seconds
            self.clock.after(at_s, lambda index=index: one(index))

    @property
    def seconds(self) -> float:
        return (self.clock.now - self.began) / SECOND

    def run(self, until_s: float) -> None:
        while self.seconds < until_s:
            self.clock.wait(min(self.loops.wake_s(), until_s - self.seconds + 1e-9))
            self.loops.step()
            self.history.note(self.seconds, assess_cameras(self.loops)[0])

    def messages(self, name: str, kind: type[Message]) -> list[Any]:
        return [m for _, m in self.recorders[name].messages if isinstance(m, kind)]

    def counts(self, name: str) -> Any:
        return self.loops.by_name[name].counters.counts()

    def cut(self, name: str) -> None:
        self.loops.by_name[name].capture._lose(0, OSError("unplugged"))


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


def endless(value: int = 0, period_s: float = 0.01) -> Iterator[Frame]:
    index = 0
    while True:
        yield Frame(np.full_like(IMAGE, index % 250), index, time.monotonic_ns())
        index += 1
        time.sleep(period_s)


def first_channel(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return image[:, :, 0].copy()


class Camera:
    """A source that can be opened again, until it is broken."""

    def __init__(self, where: str, shape: tuple[int, int] = (4, 6)):
        self.where, self.shape, self.broken = where, shape, threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        if self.broken.is_set():
            raise OSError("unplugged")
        for index in range(1_000_000):
            if self.broken.is_set():
                raise OSError("unplugged")
            image = np.full((*self.shape, 3), index % 250, np.uint8)
            yield Frame(image, index, time.monotonic_ns())
            time.sleep(0.01)


class Collector:
    """A sink that keeps what it gets, and calls `then` after each message."""

    capacity = 10_000

    def __init__(self, camera: str | None = None, then: Callable[[], None] = lambda: None):
        self.camera, self.then = camera, then
        self.got: list[Message] = []

    def __call__(self, message: Message) -> None:
        self.got.append(message)
        self.then()

    def results(self, camera: str) -> list[Result]:
        return [m for m in self.got if isinstance(m, Result) and m.camera == camera]


def test_two_cameras_in_one_drive_with_one_of_them_failing() -> None:
    """Sizes differ; sinks of all and of one camera; the rear one is unplugged on the way."""
    front, rear = Camera("front.mp4"), Camera("rear.mp4", (6, 8))
    every, of_rear = Collector(), Collector("rear")
    drive = Drive([front, rear], first_channel, [every, of_rear])

    def watch() -> None:
        if not rear.broken.is_set():
            if len(every.results("rear")) >= 5:
                rear.broken.set()
                watch.seen = len(every.results("front"))  # type: ignore[attr-defined]
        elif len(every.results("front")) >= watch.seen + 30:  # type: ignore[attr-defined]
            drive.stop()

    every.then = watch
    report = drive.run(300)
    assert report.ended == "stop()"
    assert (report.state, list(report.cameras)) == ("degraded", ["front", "rear"])
    assert report.cameras["front"].state == "running"
    assert "unplugged" in report.cameras["rear"].reasons[0]
    assert report.failure() == ""
    assert {m.camera for m in of_rear.got} == {"rear"}
    assert {r.labels.shape for r in every.results("rear")} == {(6, 8)}
    assert {r.labels.shape for r in every.results("front")} == {(4, 6)}
    for each in (report, *report.cameras.values()):
        frames = each.frames
        assert frames.captured == frames.published + sum(frames.dropped.values())
    assert report.frames.captured == sum(c.frames.captured for c in report.cameras.values())
    facts = report.to_dict()
    assert json.loads(json.dumps(facts))["cameras"]["rear"]["source"] == "rear.mp4"
    assert "engines" not in facts["cameras"]["rear"]
    assert "| front" in report.to_markdown()


def test_recordings_all_end_and_a_lost_one_is_a_failure() -> None:
    def frames(count: int) -> Iterator[Frame]:
        for index in range(count):
            yield Frame(np.full_like(IMAGE, index), index, time.monotonic_ns())

    def torn() -> Iterator[Frame]:
        yield from frames(3)
        raise OSError("the file ends here")

    every = Collector()
    sources = {"a": frames(20), "b": frames(30), "torn": torn()}
    report = Drive(sources, first_channel, [every], every_frame=True).run(300)
    assert [len(every.results(name)) for name in sources] == [20, 30, 3]
    assert report.ended == "source ended"
    assert report.cameras["torn"].ended == "source lost"
    assert report.failure().startswith("camera torn: the source is lost")
    assert "the file ends here" in report.failure()


def test_one_slow_sink_of_a_camera_does_not_cost_the_others_masks() -> None:
    """A shared queue that is full loses the oldest of the camera that fills it."""
    queue = SinkQueue(Collector(), cameras=2)
    queue.capacity = 4
    status = Status(*("LOST", "camera", "gone", 0, 0), camera="rear")  # type: ignore[arg-type]
    mask = Status(*("LATE", "late", "a mask", 0, 0), camera="front")  # type: ignore[arg-type]
    queue.offer(mask)
    for _ in range(10):
        queue.offer(status)
    assert mask in queue._queue
    assert queue.dropped == 7


def test_cameras_have_names_that_differ() -> None:
    places = ["0", "rtsp://10.0.0.7/front.sdp", "ros2:/rear/image_raw?domain=3", "night/front.mp4"]
    assert name_cameras(places) == ["camera0", "front", "rear_image_raw", "front_2"]
    assert name_cameras(["0", "0"], ["", "left"]) == ["camera0", "left"]
    assert name_cameras(["0", "0", "0"]) == ["camera0", "camera0_2", "camera0_3"]
    assert name_cameras(["videotestsrc ! appsink", "9 Straße.mp4"]) == ["camera", "camera_9_Stra_e"]
    with pytest.raises(UsageError, match="a name of its own"):
        name_cameras(["0", "1"], ["left", "left"])


def test_bad_sources_are_refused() -> None:
    with pytest.raises(UsageError, match=f"1 to {MOST_CAMERAS} cameras, not {MOST_CAMERAS + 1}"):
        Drive([endless() for _ in range(MOST_CAMERAS + 1)], first_channel)
    with pytest.raises(UsageError, match="names no camera"):
        Drive({"rear left": endless()}, first_channel)
    with pytest.raises(UsageError, match="not 0"):
        Drive({}, first_channel)
    with pytest.raises(UsageError, match="no camera here"):
        Drive([endless(), endless()], first_channel, [Collector("side")])


def test_a_list_of_frames_is_one_source() -> None:
    every = Collector()
    frames = [Frame(np.full_like(IMAGE, i), i, time.monotonic_ns()) for i in range(2)]
    report = Drive(frames, first_channel, [every], every_frame=True).run(300)
    assert report.cameras == {}
    assert "cameras" not in report.to_dict()
    assert "camera" not in every.got[0].facts()


def results_of(camera: str) -> list[Message]:
    """A mask and a status."""
    labels = np.full((4, 6), len(camera), np.uint8)
    mask = Result(
        *(0, 0, "f", 1, 1, labels, IMAGE, "large", {}, 1.0, 2, 1 << 62),  # type: ignore[arg-type]
        camera=camera,
    )
    return [mask, Status(StatusKind.LOST, "camera", "unplugged", 3, 3, camera=camera)]


def test_files_and_topics_are_by_camera(tmp_path: Path) -> None:
    pytest.importorskip("mcap", reason='needs mcap: pip install "rtseg[drive]"')
    from mcap.reader import make_reader

    card: Any = SimpleNamespace(classes=CAMVID.names, palette=CAMVID.palette)
    paths = [tmp_path / name for name in ("labels", "seen.mp4", "log.mcap", "out.ring")]
    cameras = ["front", "rear"]
    sinks: list[Any] = open_sinks(paths, card, blend, None, True, cameras)
    assert [getattr(sink, "camera", None) for sink in sinks] == [*cameras, *cameras, None, *cameras]
    for sink in sinks:
        for message in [*results_of("front"), *results_of("rear")]:
            if getattr(sink, "camera", None) in (None, message.camera):
                sink(message)
        sink.close() if hasattr(sink, "close") else None
    assert [sink.path.name for sink in sinks[-2:]] == ["out_front.ring", "out_rear.ring"]
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert names == [
        *("labels/front/00000000_f.png", "labels/rear/00000000_f.png"),
        *("log.mcap", "seen_front.mp4", "seen_rear.mp4"),
    ]
    with (tmp_path / "log.mcap").open("rb") as file:
        topics = {channel.topic for _, channel, _ in make_reader(file).iter_messages()}
    kinds = ("overlay", "labels", "result", "status", "ros/labels", "ros/label_info")
    assert topics >= {f"/rtseg/{name}/{kind}" for name in cameras for kind in kinds}


def test_metrics_have_the_camera_as_a_label() -> None:
    pytest.importorskip("prometheus_client", reason='needs prometheus: pip install "rtseg[drive]"')
    cameras = Cameras()
    cameras.show("front", 0.1, 1.0)
    cameras.run(1.0)
    found = PrometheusCollector(lambda: snapshot_cameras(cameras.loops)).collect()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for metric in found
        for sample in metric.samples
    }
    assert samples["rtseg_frames_captured_total", ("camera", "front")] == 10
    assert samples["rtseg_frames_captured_total", ("camera", "rear")] == 0
    assert samples["rtseg_camera_state", ("camera", "front"), ("state", "running")] == 1
    assert samples["rtseg_camera_state", ("camera", "rear"), ("state", "starting")] == 1
    assert samples["rtseg_age_seconds", ("camera", "front"), ("quantile", "max")] > 0


def test_a_fault_strikes_the_camera_that_it_names() -> None:
    plan = FaultPlan([Fault(0, "corrupt_frames", 1e6, camera="rear")], time.monotonic_ns())
    kinds = {}
    for name in ("front", "rear"):
        kinds[name] = type(next(iter(FaultySource(Camera(name), plan, name))))
    assert kinds == {"front": Frame, "rear": Unreadable}
    with pytest.raises(UsageError, match="the cameras here: front, left"):
        check_cameras(plan.faults, ["front", "left"])
    with pytest.raises(UsageError, match="strikes no camera"):
        Fault(0, "worker_death", camera="rear")


def test_the_page_shows_the_camera_that_is_chosen() -> None:
    pytest.importorskip("starlette", reason='needs Starlette: pip install "rtseg[web]"')
    from rtseg.demo.web import Server

    pages = [LivePage(CAMVID, "nano", camera=name) for name in ("front", "rear")]
    for page, frame_id in zip(pages, (3, 4), strict=True):
        mask = results_of(page.camera or "")[0]
        assert isinstance(mask, Result)
        page(replace(mask, frame_id=frame_id, published_ns=time.monotonic_ns()))
    with Server(pages, port=0) as server:
        ask = lambda path: urlopen(f"{server.url}{path}", timeout=300)  # noqa: E731
        assert json.load(ask("classes"))["cameras"] == ["front", "rear"]
        for query, frame_id in (("", 3), ("?camera=front", 3), ("?camera=rear", 4)):
            assert json.loads(ask(f"frame{query}").headers["X-Frame"])["frame_id"] == frame_id
        assert json.load(ask("status?camera=rear"))["published"] == 1
        with pytest.raises(HTTPError, match="404"):
            ask("frame?camera=left")


def test_the_command_refuses_what_cannot_be_opened_together(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    cv2.imwrite(str(clip / "0.png"), IMAGE)
    opened = open_cameras([f"front={clip}", str(clip), "7"], None, False, None)
    assert list(opened) == ["front", "clip", "camera7"]
    assert list(open_cameras([str(clip)], None, False, None)) == [""]
    for given, loop, message in (
        ([str(clip), "0"], True, "no --loop"),
        (["0", "front=0"], False, "0 is given twice"),
        ([f"a={clip}", f"a={clip}"], False, "a name of its own"),
        ([str(clip)] * 17, False, "1 to 16 cameras, not 17"),
        ([str(clip), "none.mp4"], False, "no video at none.mp4"),
    ):
        with pytest.raises(UsageError, match=message):
            open_cameras(given, None, loop, None)
