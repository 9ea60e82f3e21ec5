"""Sinks: the queue before them, and each of those that ship."""

from __future__ import annotations

import contextlib
import json
import struct
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from made_messages import result, status
from rtseg.data.classes import CAMVID
from rtseg.data.frames import Frame, Unreadable
from rtseg.data.images import blend
from rtseg.data.mcap_reader import McapLog
from rtseg.errors import MissingPackage
from rtseg.runtime.drive.messages import Message, Result, Status, StatusKind
from rtseg.runtime.drive.report import DriveSnapshot
from rtseg.runtime.drive.stats import FrameCounts, TimeSummary
from rtseg.runtime.sinks.label_files import LabelPngs, OverlayVideo
from rtseg.runtime.sinks.mcap_writer import McapRecorder
from rtseg.runtime.sinks.prometheus import serve_metrics
from rtseg.runtime.sinks.queue import SinkCounts, SinkQueue
from simulated import SECOND, SimulatedClock

LIMIT_S = 20.0


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


class Blocked:
    """Holds on to its first message until it is let go."""

    def __init__(self) -> None:
        self.holds, self.goes_on = threading.Event(), threading.Event()
        self.taken: list[Message] = []
        self.closed = False

    def __call__(self, message: Message) -> None:
        self.holds.set()
        self.goes_on.wait(LIMIT_S)
        self.taken.append(message)

    def close(self) -> None:
        self.closed = True


def start_queue(sink: Any, clock: SimulatedClock | None = None) -> SinkQueue:
    queue = SinkQueue(sink, clock or SimulatedClock())
    queue.start()
    return queue


def test_a_blocked_sink_loses_the_oldest_and_nobody_waits() -> None:
    clock, sink = SimulatedClock(), Blocked()
    queue = start_queue(sink, clock)
    queue.offer(result(0, clock.now))
    assert sink.holds.wait(LIMIT_S)
    for frame_id in range(1, 11):
        queue.offer(result(frame_id, clock.now))
    assert queue.blocked_s() == 0
    clock.now += SECOND // 4
    assert queue.counts().dropped == 6
    clock.now += SECOND  # less than max_age would be
    assert queue.blocked_s() == 1.25
    clock.now -= SECOND
    sink.goes_on.set()
    queue.close()
    assert queue.join(LIMIT_S)
    assert [m.frame_id for m in sink.taken] == [0, 7, 8, 9, 10]
    assert sink.closed
    assert queue.blocked_s() == 0


def test_a_sink_that_never_ends_is_left_and_counted() -> None:
    sink = Blocked()
    queue = start_queue(sink)
    for frame_id in range(3):
        queue.offer(status(frame_id=frame_id))
    assert sink.holds.wait(LIMIT_S)
    queue.close()
    assert queue.join(0.01) is False
    assert queue.unflushed == 3
    sink.goes_on.set()


def test_a_sink_that_raises_is_counted_and_asked_again() -> None:
    taken: list[Message] = []

    def unlucky(message: Message) -> None:
        if message.frame_id == 1:
            raise KeyError("no such topic")
        taken.append(message)

    queue = start_queue(unlucky)
    for frame_id in range(3):
        queue.offer(status(frame_id=frame_id))
    queue.close()
    assert queue.join(LIMIT_S)
    assert [m.frame_id for m in taken] == [0, 2]
    assert (queue.failed, queue.delivered) == (1, 2)
    assert queue.last_error == "KeyError: 'no such topic'"
    assert queue.name == "unlucky"


@pytest.mark.parametrize("records", [False, True])
def test_a_mask_that_waited_too_long_becomes_a_status(records: bool) -> None:
    """But not for a sink that keeps things for later."""
    clock, sink = SimulatedClock(), Blocked()
    sink.records = records  # type: ignore[attr-defined]
    queue = start_queue(sink, clock)
    queue.offer(status())
    assert sink.holds.wait(LIMIT_S)
    queue.offer(result(3, clock.now))
    clock.now += SECOND // 2 + 1
    sink.goes_on.set()
    queue.close()
    assert queue.join(LIMIT_S)
    last = sink.taken[-1]
    assert last.frame_id == 3
    assert isinstance(last, Result if records else Status)
    assert queue.withheld == (not records)
    assert records or last.kind is StatusKind.LATE  # type: ignore[union-attr]


def test_label_pngs(tmp_path: Path) -> None:
    sink = LabelPngs(tmp_path / "labels")
    sink(result(4))
    sink(status())
    (file,) = (tmp_path / "labels").iterdir()
    assert file.name == "00000004_street_4.png"
    assert (cv2.imread(str(file), cv2.IMREAD_UNCHANGED) == result(4).labels).all()


@pytest.mark.parametrize(("count", "hz"), [(3, 20), (25, 20), (12, 29.97), (12, 5000)])
def test_an_overlay_video(tmp_path: Path, count: int, hz: float) -> None:
    path = tmp_path / "drive.mp4"
    sink = OverlayVideo(path, CAMVID.palette, blend)
    for frame_id in range(count):
        sink(result(frame_id, int(frame_id * SECOND / hz)))
    assert not path.exists()
    sink.close()
    video = cv2.VideoCapture(str(path))
    assert int(video.get(cv2.CAP_PROP_FRAME_COUNT)) == count
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(min(hz, 240), rel=1e-3)
    more, picture = video.read()
    assert more
    expected = blend(result(0).image, result(0).labels, CAMVID.palette)
    assert np.abs(picture.astype(int) - expected).mean() < 12


def test_a_recording_reads_back_as_foxglove_images(tmp_path: Path) -> None:
    pytest.importorskip("mcap")
    path = tmp_path / "drive.mcap"
    sink = McapRecorder(path, CAMVID.names, CAMVID.palette, blend)
    for frame_id in range(3):
        sink(result(frame_id, 5))
    sink(status(StatusKind.LOST))
    assert not path.exists()
    sink.close()
    with pytest.raises(ValueError, match="images on /rtseg/labels, /rtseg/overlay: name one"):
        McapLog(path)
    frames = list(McapLog(path, "/rtseg/overlay"))
    assert len(frames) == 3
    first = frames[1]
    assert isinstance(first, Frame)
    expected = blend(result(1).image, result(1).labels, CAMVID.palette)
    assert np.abs(first.image.astype(int) - expected).mean() < 5
    assert first.wall_ns == result(1).captured_wall_ns
    labels = list(McapLog(path, "/rtseg/labels"))[2]
    assert isinstance(labels, Frame)
    assert (labels.image[:, :, 0] == result(2).labels).all()
    from mcap.reader import make_reader

    with path.open("rb") as file:
        reader = make_reader(file)
        schemas = {schema.name for schema in reader.get_summary().schemas.values()}  # type: ignore[union-attr]
        assert "foxglove.CompressedImage" in schemas
        (entry,) = (m.data for _, _, m in reader.iter_messages(topics=["/rtseg/status"]))
        assert json.loads(entry)["kind"] == "LOST"
        facts = [json.loads(m.data) for _, _, m in reader.iter_messages(topics=["/rtseg/result"])]
        assert facts[2]["stages_ms"]["inference"] == 5.0
        (metadata,) = reader.iter_metadata()
        assert json.loads(metadata.metadata["classes_and_palette"])[0] == list(CAMVID.names)


def test_a_damaged_picture_in_a_log_is_unreadable(tmp_path: Path) -> None:
    pytest.importorskip("mcap")
    path = tmp_path / "drive.mcap"
    sink = McapRecorder(path, CAMVID.names, CAMVID.palette, blend)
    sink._begin(0)
    sink._add_image("/rtseg/overlay", "jpeg", b"no picture", 1, "camera")
    sink.close()
    (item,) = McapLog(path, "/rtseg/overlay")
    assert isinstance(item, Unreadable)


def video(path: Path) -> OverlayVideo:
    return OverlayVideo(path, CAMVID.palette, blend, fps=20)


def log(path: Path) -> McapRecorder:
    return McapRecorder(path, CAMVID.names, CAMVID.palette, blend)


@pytest.mark.parametrize(("make", "file"), [(video, "drive.mp4"), (log, "drive.mcap")])
def test_no_recording_is_ever_lost(make: Any, file: str, tmp_path: Path) -> None:
    """Neither to a restart after a crash, nor to one after a clean end, nor to a second drive."""
    if make is log:
        pytest.importorskip("mcap")
    path = tmp_path / file
    crashed = make(path)
    crashed(result(0))
    partial = path.with_name(f"{path.name}.partial")
    before = partial.stat()
    second = make(path)
    assert sorted(tmp_path.iterdir()) == [partial]  # it may still be refused: nothing is written
    for frame_id in range(12):
        second(result(frame_id))
    second.close()
    third = make(path)
    third(result(1))
    third.close()
    names = [f"drive-{number}{path.suffix}" for number in (2, 3)]
    assert sorted(tmp_path.iterdir()) == sorted([partial, *(tmp_path / name for name in names)])
    assert (partial.stat().st_ino, partial.stat().st_size) == (before.st_ino, before.st_size)
    crashed.close()  # the first one was only slow
    assert path.exists()


def test_labels_of_a_second_run_go_beside_the_first(tmp_path: Path) -> None:
    for frame_id in (0, 1):
        sink = LabelPngs(tmp_path / "labels")
        sink(result(0))
        sink(result(frame_id))
    assert [len(list((tmp_path / name).iterdir())) for name in ("labels", "labels-2")] == [1, 2]


def test_a_folder_that_cannot_be_written_to_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    makers: list[Callable[[Path], Any]] = [video, LabelPngs]
    for make in makers:
        with pytest.raises(OSError, match="this user may not write there"):
            make(tmp_path / "x")


@pytest.mark.parametrize(("make", "file"), [(video, "drive.mp4"), (log, "drive.mcap")])
def test_a_recording_cut_short_by_a_full_disk_keeps_its_partial_name(
    make: Any, file: str, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if make is log:
        pytest.importorskip("mcap")
    monkeypatch.setattr("rtseg.runtime.sinks.mcap_writer.RETRY_S", 0.0)
    sink = make(small_disk / file)
    noise = np.random.default_rng(0)
    errors, filler = 0, small_disk / "filler"
    filler.write_bytes(bytes((3 << 20) - 150_000))
    for frame_id in range(40):
        shown = replace(result(frame_id, size=(240, 320)), image=noisy(noise, (240, 320)))
        try:
            sink(shown)
        except OSError:
            errors += 1
            filler.write_bytes(b"")  # there is room again
    if make is video:
        with pytest.raises(OSError, match=r"mp4.partial holds \d+ of 40 frames: the disk may be"):
            sink.close()
        assert sorted(path.name for path in small_disk.iterdir()) == ["drive.mp4.partial", "filler"]
        return
    sink.close()
    assert errors
    later = small_disk / "drive-2.mcap"
    assert len(list(McapLog(later, "/rtseg/overlay"))) >= 1  # it went on with another file


@pytest.mark.parametrize("free", [60_000, 110_000, 150_000])
def test_what_a_log_lost_on_a_full_disk_was_not_delivered(
    free: int, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk that was still filling held results that had been counted as delivered."""
    pytest.importorskip("mcap")
    monkeypatch.setattr("rtseg.runtime.sinks.mcap_writer.RETRY_S", 0.0)
    filler = small_disk / "filler"
    filler.write_bytes(bytes((3 << 20) - free))
    queue = start_queue(log(small_disk / "drive.mcap"))
    noise = np.random.default_rng(0)
    for frame_id in range(60):
        if frame_id == 40:
            filler.write_bytes(b"")  # there is room again
        queue.offer(replace(result(frame_id, size=(60, 80)), image=noisy(noise, (60, 80))))
        until(lambda: not queue._queue and not queue._busy_since_ns)
    queue.close()
    assert queue.join(LIMIT_S)
    counts = queue.counts()
    written = sum(count_results(path) for path in small_disk.glob("*.mcap*"))
    assert counts.failed > 0
    assert counts.delivered + counts.failed == 60
    assert written == counts.delivered


def count_results(path: Path) -> int:
    """Of a log, whole or cut short, as `mcap recover` would read it."""
    from mcap.exceptions import McapError
    from mcap.stream_reader import StreamReader

    topics: dict[int, str] = {}
    found = 0
    with path.open("rb") as file, contextlib.suppress(McapError, struct.error):
        for record in StreamReader(file).records:
            if type(record).__name__ == "Channel":
                topics[record.id] = record.topic
            elif type(record).__name__ == "Message":
                found += topics[record.channel_id] == "/rtseg/result"
    return found


def noisy(noise: np.random.Generator, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    return noise.integers(0, 256, (*size, 3), np.uint8)


def test_absent_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("mcap", "mcap.writer", "mcap.reader", "mcap.exceptions", "prometheus_client"):
        monkeypatch.setitem(sys.modules, package, None)
    for call in (
        lambda: McapRecorder(tmp_path / "x.mcap", CAMVID.names, CAMVID.palette, blend),
        lambda: McapLog(tmp_path / "x.mcap"),
        lambda: serve_metrics(DriveSnapshot, 0),
    ):
        with pytest.raises(MissingPackage, match=r"pip install .*\[drive\]"):
            call()


def test_metrics_for_prometheus() -> None:
    pytest.importorskip("prometheus_client")
    times = TimeSummary(7, 22.0, 20.0, 30.0, 40.0, 50.0)
    now = DriveSnapshot(
        state="degraded",
        level="nano",
        levels=["large", "nano"],
        frames=FrameCounts(10, 7, {"replaced": 3}),
        statuses={"LOST": 2},
        deadline_misses=1,
        replaced_workers=4,
        sinks=[SinkCounts("page", delivered=5, dropped=1, withheld=2)],
        age_ms=times,
        latency_ms=times,
        age_sources={"driver": 7},
        stages_ms={"camera": times},
    )
    with closing(serve_metrics(lambda: now, 0)) as server:
        url = f"http://127.0.0.1:{server.port}/metrics"
        lines = urllib.request.urlopen(url, timeout=LIMIT_S).read().decode().splitlines()
    for line in (
        "rtseg_frames_captured_total 10.0",
        'rtseg_frames_dropped_total{cause="replaced"} 3.0',
        'rtseg_statuses_total{kind="LOST"} 2.0',
        'rtseg_sink_withheld_total{sink="page"} 2.0',
        'rtseg_state{state="degraded"} 1.0',
        'rtseg_state{state="running"} 0.0',
        'rtseg_level{level="nano"} 1.0',
        'rtseg_age_seconds{quantile="p99"} 0.04',
        'rtseg_results_by_age_source_total{source="driver"} 7.0',
        'rtseg_age_stage_p99_seconds{stage="camera"} 0.04',
    ):
        assert line in lines, line
