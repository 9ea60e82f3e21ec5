"""Several cameras in a real drive: threads, sinks, metrics, the page, the command."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import cv2
import numpy as np
import pytest
from camera_parts import IMAGE, Cameras, Collector
from rtseg.data.classes import CAMVID
from rtseg.data.frames import Frame, Unreadable
from rtseg.data.images import blend
from rtseg.demo.live import LivePage
from rtseg.errors import UsageError
from rtseg.runtime import Drive, Result, Status, StatusKind
from rtseg.runtime.drive.camera_report import snapshot_cameras
from rtseg.runtime.drive.cameras import MOST_CAMERAS, name_cameras
from rtseg.runtime.drive.faults import Fault, FaultPlan, FaultySource, check_cameras
from rtseg.runtime.drive.messages import Message
from rtseg.runtime.drive.named_sources import open_cameras
from rtseg.runtime.sinks import open_sinks
from rtseg.runtime.sinks.prometheus import PrometheusCollector
from rtseg.runtime.sinks.queue import SinkQueue


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
