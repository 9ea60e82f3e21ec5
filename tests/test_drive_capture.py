"""The camera's thread: back-off, silent cameras, the mailbox."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from rtseg.data.frames import Frame
from rtseg.data.playback import Paced
from rtseg.runtime.drive import capture as capturing
from rtseg.runtime.drive.capture import Capture, CapturedFrame, Mailbox
from rtseg.runtime.drive.clock import LoopClock
from rtseg.runtime.drive.faults import FaultPlan, FaultySource
from rtseg.runtime.drive.stats import FrameCounters, FrameCounts, TimeHistogram

IMAGE = np.zeros((4, 6, 3), np.uint8)
LIMIT_S = 20.0


def frame(index: int) -> Frame:
    return Frame(IMAGE, index, time.monotonic_ns())


def until(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.002)


def capture_of(source: Any, every_frame: bool = False) -> Capture:
    clock = LoopClock()
    return Capture(source, Mailbox(clock), FrameCounters(), clock, every_frame)


class Breaking:
    """Raises for the first `failures` times that it is opened."""

    def __init__(self, failures: int):
        self.failures, self.opened = failures, 0

    def __iter__(self) -> Iterator[Frame]:
        self.opened += 1
        if self.opened <= self.failures:
            raise OSError("no such device")
        yield frame(0)
        raise OSError("unplugged")


def test_the_mailbox_keeps_the_newest() -> None:
    mailbox = Mailbox(LoopClock())
    frames = [CapturedFrame(i, frame(i), 0) for i in range(3)]
    assert mailbox.put(frames[0]) is None
    assert mailbox.put(frames[1]) is frames[0]
    assert mailbox.put(frames[2]) is frames[1]
    assert mailbox.take() is frames[2]
    assert mailbox.take() is None


def test_a_camera_that_fails_is_opened_again_with_a_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    reasons: list[str] = []

    class Clockless(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout or 0.0)
            reasons.append(capture.lost)
            return self.is_set()

    source = Breaking(failures=7)
    capture = capture_of(source)
    capture._stop = Clockless()
    capture.start()
    until(lambda: source.opened >= 9)
    capture.stop()
    assert waits[:7] == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5, 0.5]
    assert waits[7] == 0.05  # a frame came in between
    assert max(waits) <= 0.5  # so that masks are back within a second of the camera
    assert reasons[:8] == ["OSError: no such device"] * 7 + ["OSError: unplugged"]


def test_a_silent_camera_is_left_to_its_thread() -> None:
    stuck, opened = threading.Event(), []

    class Silent:
        def __iter__(self) -> Iterator[Frame]:
            opened.append(1)
            if len(opened) == 1:
                yield frame(0)
                stuck.wait(LIMIT_S)
                yield frame(1)  # from before the camera was opened anew: it must not count
            else:
                yield frame(2)
                stuck.wait(LIMIT_S)

    capture = capture_of(Silent())
    capture.start()
    until(lambda: capture.last_ns)
    assert capture.reopen()
    until(lambda: capture.counters.counts().captured == 2)
    stuck.set()
    until(lambda: capture.ended)
    assert capture.counters.counts().captured == 2
    taken = capture.mailbox.take()
    assert taken is not None
    assert taken.frame.index == 2
    assert capture.reopened == 1


def test_no_more_than_a_few_threads_hang() -> None:
    never = threading.Event()

    class Hanging:
        def __iter__(self) -> Iterator[Frame]:
            never.wait(LIMIT_S)
            yield frame(0)

    capture = capture_of(Hanging())
    capture.start()
    assert [capture.reopen() for _ in range(5)] == [True, True, True, False, False]
    capture.stop()
    never.set()


def test_a_generator_that_raises_is_lost_for_good() -> None:
    def source() -> Iterator[Frame]:
        yield frame(0)
        raise ValueError("bad cable")

    capture = capture_of(source())
    capture.start()
    until(lambda: capture.gone)
    assert capture.lost == "ValueError: bad cable"
    assert not capture.reopen()


def test_a_recording_that_breaks_is_not_played_again() -> None:
    class Damaged:
        opened = 0

        def __iter__(self) -> Iterator[Frame]:
            self.opened += 1
            yield frame(0)
            raise ValueError("drive.mcap is damaged")

    once, round_and_round = Damaged(), Damaged()
    capture = capture_of(Paced(once, 0))
    capture.start()
    until(lambda: capture.gone)
    assert once.opened == 1
    capture = capture_of(FaultySource(Paced(round_and_round, 0, loops=True), FaultPlan([], 0)))
    capture.start()
    until(lambda: round_and_round.opened > 1)
    capture.stop()
    assert not capture_of(FaultySource(Paced(once, 0), FaultPlan([], 0))).reopen()


def test_a_source_may_wait_for_inference() -> None:
    capture = capture_of((frame(i) for i in range(5)), every_frame=True)
    capture.start()
    taken: list[int] = []
    while len(taken) < 5:
        waiting = capture.mailbox.take()
        if waiting is not None:
            taken.append(waiting.frame.index)
        capture.clock.wait(0.01)
    assert taken == [0, 1, 2, 3, 4]
    assert capture.counters.counts().dropped == {}


def test_a_waiting_source_ends_when_told() -> None:
    capture = capture_of((frame(i) for i in range(5)), every_frame=True)
    capture.start()
    until(lambda: capture.counters.counts().captured == 2)
    capture.stop()
    capture.join(LIMIT_S)
    assert capture.counters.counts() == FrameCounts(2, 0, {"stopped": 1}, 1)


def test_the_last_back_off_is_short_enough() -> None:
    assert max(capturing.BACK_OFF_S) <= 0.5


def test_quantiles_are_right_to_one_percent() -> None:
    times = np.random.default_rng(0).lognormal(3, 1, 20_000)
    spread = TimeHistogram()
    for ms in times:
        spread.add(float(ms))
    facts = asdict(spread.summary())
    for name, share in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert facts[name] == pytest.approx(np.percentile(times, share), rel=0.011)
    assert facts["max"] == pytest.approx(times.max(), abs=0.001)
    assert facts["mean"] == pytest.approx(times.mean(), rel=1e-6, abs=0.001)
