"""Stamps of other clocks: the driver's, a sender's, another machine's, broken ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.camera import Camera
from rtseg.data.frames import Frame
from rtseg.data.playback import Paced
from rtseg.data.stamp_clock import Placed, StampClock, place_recorded
from rtseg.runtime.drive.stream_watch import StreamWatch

MS = 1_000_000
SECOND = 1000 * MS
HOUR = 3600 * SECOND
PERIOD = 40 * MS


class Machine:
    """A machine whose wall clock may jump."""

    def __init__(self) -> None:
        self.now = 50 * SECOND
        self.wall_ahead = 10**18

    def clock(self, reference: str, source: str = "sender") -> StampClock:
        wall = lambda: self.now + self.wall_ahead  # noqa: E731
        return StampClock(reference, source, wall, lambda: self.now)

    def stream(
        self, clock: StampClock, ahead: int, lags_ms: list[float]
    ) -> Iterator[tuple[Placed, float]]:
        """Frames of a sender whose clock is `ahead` of the monotonic one, with the age that each is
        given in ms; lags_ms: how much later than its exposure each comes."""
        for lag_ms in lags_ms:
            self.now += PERIOD
            taken = self.now - int(lag_ms * MS)
            placed = clock.place(taken + ahead, self.now)
            yield placed, (self.now - placed.captured_ns) / 1e6


def ages(found: Iterator[tuple[Placed, float]]) -> list[float]:
    return [age for _, age in found]


def test_stamps_of_this_machine_are_taken_as_they_are() -> None:
    machine = Machine()
    for reference, ahead in (("monotonic", 0), ("wall", machine.wall_ahead)):
        found = list(machine.stream(machine.clock(reference, "driver"), ahead, [20, 35, 20]))
        assert [age for _, age in found] == pytest.approx([20, 35, 20])
        assert {placed.age_source for placed, _ in found} == {"driver"}
        assert not any(placed.notice for placed, _ in found)


def test_a_stream_that_falls_behind_is_found_by_its_own_clock() -> None:
    """The zero of its clock is unknown, so the fastest frame counts as on time."""
    machine = Machine()
    clock = machine.clock("own")
    lags = [100, 60, 50, 50, *range(50, 2050, 10), *[2050] * 5000]  # the last for 200 s
    found = list(machine.stream(clock, HOUR, [float(lag) for lag in lags]))
    assert {placed.age_source for placed, _ in found} == {"arrival"}
    assert found[203][1] == pytest.approx(1990, abs=1)
    # It stays behind, and is told so: only what two clocks may run apart is forgiven.
    assert 1970 < found[-1][1] < 2000


def test_clocks_that_run_apart_are_no_lag() -> None:
    machine = Machine()
    clock = machine.clock("own")
    found = []
    for _ in range(10_000):
        machine.now += PERIOD
        slow = round(machine.now * (1 - 50e-6))
        found.append((machine.now - clock.place(slow, machine.now).captured_ns) / 1e6)
    assert max(found) < 0.1


def test_another_machines_clock_is_told_and_ages_count_from_arrival() -> None:
    machine = Machine()
    clock = machine.clock("wall")
    found = list(machine.stream(clock, machine.wall_ahead + HOUR, [30, 30, 80, 30]))
    assert [placed.age_source for placed, _ in found] == ["arrival"] * 4
    assert [age for _, age in found] == pytest.approx([0, 0, 50, 0], abs=0.1)
    notices = [placed.notice for placed, _ in found]
    assert notices[0].startswith("its stamps are 3599970 ms ahead of this machine's clock")
    assert notices[1:] == ["", "", ""]  # once is enough


def test_a_clock_that_is_set_right_is_believed_again() -> None:
    machine = Machine()
    clock = machine.clock("wall")
    list(machine.stream(clock, machine.wall_ahead + HOUR, [30] * 10))
    found = list(machine.stream(clock, machine.wall_ahead, [30] * 200))
    assert found[0][0].age_source == "arrival"
    assert "ran back by" in found[0][0].notice
    assert found[-1][0].age_source == "sender"
    assert found[-1][1] == pytest.approx(30)
    assert sum(bool(placed.notice) for placed, _ in found) == 2


def test_a_jump_of_the_wall_clock_does_not_make_masks_old_or_young() -> None:
    """Of this machine, whose camera driver keeps to its own clock."""
    machine = Machine()
    clock = machine.clock("wall")
    list(machine.stream(clock, machine.wall_ahead, [30] * 10))
    sender = machine.wall_ahead
    machine.wall_ahead += HOUR  # ours jumps, the sender's does not
    assert ages(machine.stream(clock, sender, [30, 30, 70])) == pytest.approx([0, 0, 40], abs=0.1)
    machine.wall_ahead -= 2 * HOUR
    assert max(ages(machine.stream(clock, sender, [30] * 5))) < 1


def test_stamps_that_run_backwards_begin_anew() -> None:
    machine = Machine()
    for reference in ("own", "monotonic"):
        clock = machine.clock(reference)
        list(machine.stream(clock, 0, [20] * 10))
        found = list(machine.stream(clock, -5 * SECOND, [20] * 10))
        assert found[0][0].notice == "its clock ran back by 4960 ms: ages count from arrival"
        assert max(age for _, age in found) < 1
        assert {placed.age_source for placed, _ in found} == {"arrival"}


def test_frames_out_of_turn_are_no_clock_that_runs_back() -> None:
    machine = Machine()
    clock = machine.clock("monotonic", "driver")
    found = list(machine.stream(clock, 0, [20, 20, 100, 20]))
    assert [placed.notice for placed, _ in found] == [""] * 4
    assert found[2][1] == pytest.approx(100)


class Buffers:
    """cv2.VideoCapture with a V4L2 driver's stamps: ms of the monotonic clock."""

    ago_ms = 33.0
    backend = "V4L2"

    def __init__(self, *arguments: Any):
        pass

    def getBackendName(self) -> str:
        return self.backend

    def get(self, what: int) -> float:
        now_ms = time.monotonic_ns() / 1e6
        return now_ms - self.ago_ms if what == cv2.CAP_PROP_POS_MSEC else 64.0

    def isOpened(self) -> bool:
        return True

    def set(self, *what: Any) -> bool:
        return True

    def grab(self) -> bool:
        return True

    def retrieve(self) -> tuple[bool, Any]:
        return True, np.zeros((64, 64, 3), np.uint8)

    def release(self) -> None:
        pass


@pytest.mark.parametrize(
    ("backend", "ago_ms", "source", "least_ms"),
    [
        ("V4L2", 33.0, "driver", 32.0),
        ("V4L2", 5e4, "arrival", 0.0),
        ("FFMPEG", 9e3, "arrival", 0.0),
    ],
)
def test_a_camera_tells_the_drivers_stamp(
    monkeypatch: pytest.MonkeyPatch, backend: str, ago_ms: float, source: str, least_ms: float
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Buffers)
    monkeypatch.setattr(Buffers, "backend", backend)
    monkeypatch.setattr(Buffers, "ago_ms", ago_ms)
    frames = iter(Camera("0"))
    found = next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert found.age_source == source
    assert found.received_ns is not None
    assert least_ms <= (found.received_ns - found.captured_ns) / 1e6 <= least_ms + 1


def test_frames_that_waited_in_the_drivers_queue_are_as_old_as_they_waited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OpenCV hides V4L2's queue, and the driver's stamps tell how full it is."""
    ticks = count(10**15, 10**4)
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(ticks))
    monkeypatch.setattr(cv2, "VideoCapture", Buffers)
    frames, watch = iter(Camera("0")), StreamWatch()
    for waited_ms in (33.0, 33.0, 200.0, 250.0):
        monkeypatch.setattr(Buffers, "ago_ms", waited_ms)
        frame = next(frames)
        assert isinstance(frame, Frame)
        assert frame.received_ns is not None
        assert (frame.received_ns - frame.captured_ns) / 1e6 == pytest.approx(waited_ms, abs=1)
        found = watch.note(frame, frame.received_ns, time.time_ns(), 33.0)
    frames.close()  # type: ignore[attr-defined]
    assert dict(found)["lag"] in [f"the stream is {ms} ms behind" for ms in (216, 217, 218)]


def test_a_log_is_played_as_old_as_it_was_recorded() -> None:
    logged = 10**18
    now, sent, stamped = place_recorded(logged, logged - 10 * MS, logged - 50 * MS)
    assert now is not None
    assert sent is not None
    assert stamped is not None
    frame = Frame(np.zeros((4, 4, 3), np.uint8), 0, stamped, "", logged, "", "arrival", sent, now)
    (shown,) = Paced([frame], 0)
    assert isinstance(shown, Frame)
    assert shown.received_ns is not None
    assert shown.received_ns >= now
    assert shown.received_ns - shown.captured_ns == 50 * MS
    assert shown.sent_ns == shown.received_ns - 10 * MS
    assert (shown.wall_ns, shown.age_source) == (logged - 50 * MS, "playback")


@pytest.mark.parametrize("other", [0, 10**18 + 1, 10**18 - 11 * SECOND])
def test_times_of_a_log_that_cannot_belong_together_are_left_out(other: int) -> None:
    assert place_recorded(10**18, other)[1] is None
