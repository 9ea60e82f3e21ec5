"""Streams that come, but late, slowly or by a clock that jumps: told, and no old mask published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rtseg.data.frames import Frame
from rtseg.data.stamp_clock import StampClock
from rtseg.runtime.drive.health import assess_health, find_cause
from rtseg.runtime.drive.messages import State, StatusKind
from simulated import SECOND, SimulatedClock, SimulatedEngine, Simulation

PERIOD = 0.04


class Stream:
    """A camera on a wire: each frame comes `lag_s(t)` after it was taken, with a stamp of the
    camera's own clock, which is `ahead_s(t)` ahead of ours."""

    def __init__(self, drive: Simulation, reference: str = "own"):
        self.drive, clock = drive, drive.clock
        self.clock = StampClock(reference, "sender", clock.wall_ns, clock.now_ns)
        self.count = 0

    def send(self, times: Sequence[float], lag_s: Any = lambda t: 0.0, ahead_s: Any = None) -> None:
        for t in times:
            taken = self.drive.began + round(t * SECOND)
            ahead = 3600 * SECOND if ahead_s is None else round(ahead_s(t) * SECOND)
            self.drive.clock.after(
                t + lag_s(t) - self.drive.seconds, lambda stamp=taken + ahead: self._arrive(stamp)
            )

    def _arrive(self, stamp: int) -> None:
        now = self.drive.clock.now
        placed = self.clock.place(stamp, now)
        image = np.full((4, 6, 3), self.count % 251, np.uint8)
        facts: dict[str, Any] = {"age_source": placed.age_source, "notice": placed.notice}
        frame = Frame(image, self.count, placed.captured_ns, received_ns=now, **facts)
        self.drive.capture.accept(frame)
        self.count += 1


def drive_of(**limits: Any) -> Simulation:
    return Simulation(lambda clock: [lambda: SimulatedEngine(clock, lambda level: 0.01)], **limits)


def every(period_s: float, from_s: float, to_s: float) -> list[float]:
    return [from_s + i * period_s for i in range(round((to_s - from_s) / period_s))]


def reasons(drive: Simulation) -> str:
    return "; ".join(r for entry in drive.history.entries for r in entry.reasons)


def test_a_stream_that_falls_behind_is_told_and_no_mask_of_it_is_older_than_max_age() -> None:
    """10 s on time, then 10 % slower than the camera until it is 2 s behind; it stays so."""
    drive = drive_of(max_age_ms=300.0)
    lag_s = lambda t: 0.05 + min(2.0, 0.1 * max(0.0, t - 10))  # noqa: E731
    Stream(drive).send(every(PERIOD, 0, 60), lag_s)
    drive.run(11.9)
    assert assess_health(drive.loop).state is State.degraded
    assert find_cause(drive.loop) == "lag"
    drive.run(50)
    health = assess_health(drive.loop)
    assert health.state is State.stale
    assert health.reasons[0].startswith("the stream is 19")
    # What the wire took at best is not known: that much older are the masks in truth.
    true_ages = [r.age_ms + 50 for _, r in drive.results]
    assert max(true_ages) <= 300 + 50
    assert {r.age_source for _, r in drive.results} == {"arrival"}
    behind = [(t, s) for t, s in drive.statuses if s.cause == "behind"]
    assert {s.kind for _, s in behind} == {StatusKind.STALE}
    assert drive.frames["dropped"]["behind"] == len(behind) > 850
    assert drive.frames["open"] == 0


def test_a_stream_that_catches_up_is_on_time_again() -> None:
    drive = drive_of(max_age_ms=300.0)
    lag_s = lambda t: 2.0 if 5 < t < 8 else 0.05  # noqa: E731
    Stream(drive).send(every(PERIOD, 0, 20), lag_s)
    drive.run(20)
    assert "the stream is 19" in reasons(drive)
    assert drive.states[-1] == "running"


def test_jitter_is_no_lag() -> None:
    drive = drive_of()
    random = np.random.default_rng(0)
    jitter = dict.fromkeys(every(PERIOD, 0, 60), 0.0)
    jitter |= {t: min(0.03, float(random.exponential(0.008))) for t in jitter}
    Stream(drive).send(list(jitter), lambda t: 0.05 + jitter[t])
    drive.run(60)
    assert drive.states == ["starting", "running"]


def test_a_camera_whose_rate_halves_is_degraded_and_not_lost() -> None:
    drive = drive_of()
    stream = Stream(drive)
    stream.send(every(PERIOD, 0, 5))
    stream.send(every(2 * PERIOD, 5, 15))
    drive.run(15)
    assert "in place of 25.0" in reasons(drive)
    assert assess_health(drive.loop).reasons == (
        "rate: the camera gives 12.5 frames a second in place of 25.0",
    )
    assert drive.states == ["starting", "running", "degraded"]
    assert drive.reopened_at == []
    assert len(drive.results) == 250  # a mask for every frame
    stream.send(every(PERIOD, 15, 20))
    drive.run(20)
    assert drive.states[-1] == "running"


def test_frames_that_get_lost_now_and_then_are_no_other_rate() -> None:
    drive = drive_of()
    Stream(drive).send([t for i, t in enumerate(every(PERIOD, 0, 20)) if i % 7])
    drive.run(20)
    assert "frames a second" not in reasons(drive)


def test_a_burst_is_no_rate_of_the_camera_s() -> None:
    """A driver that was held up hands over 50 frames at once, each stamped as it arrives."""
    drive = drive_of()

    def arrive(number: int) -> None:
        image = np.full((4, 6, 3), number % 251, np.uint8)
        drive.capture.accept(Frame(image, number, drive.clock.now))

    times = [*every(PERIOD, 0, 5), *(7 + i * 1e-4 for i in range(50)), *every(PERIOD, 7.04, 15)]
    for number, t in enumerate(times):
        drive.clock.after(t, lambda number=number: arrive(number))
    drive.run(15)
    assert "frames a second" not in reasons(drive)
    assert drive.states[-1] == "running"


def test_frames_that_wait_to_be_decoded_are_a_lag_where_no_clock_tells_it() -> None:
    """Every frame is stamped as it is decoded, so by its stamp none is late."""
    drive = drive_of()

    def arrive(number: int, waiting: int | None) -> None:
        image = np.full((4, 6, 3), number % 251, np.uint8)
        drive.capture.accept(Frame(image, number, drive.clock.now, waiting=waiting))

    for number, t in enumerate(every(PERIOD, 0, 12)):
        waiting = 2 if t < 4 else 30 if t < 8 else None
        drive.clock.after(t, lambda number=number, waiting=waiting: arrive(number, waiting))
    drive.run(3.99)
    assert drive.states == ["starting", "running"]
    drive.run(4.1)
    assert find_cause(drive.loop) == "lag"
    assert "30 frames wait to be decoded, about 1200 ms" in reasons(drive)
    drive.run(12)
    assert drive.states[-1] == "running"


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 0.3, -0.3])
def test_a_jump_of_the_wall_clock_is_told_and_masks_go_on(
    monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    """The camera is of this machine, so its stamps jump too; one frame is under way meanwhile."""
    jumped = lambda now: round(jump_s * SECOND) if now > 1005 * SECOND else 0  # noqa: E731
    monkeypatch.setattr(
        SimulatedClock, "wall_ns", lambda self: 10**18 + self.now + jumped(self.now)
    )
    drive = drive_of(max_age_ms=300.0)
    wall = lambda t: 1e9 + (jump_s if t > 5 else 0)  # noqa: E731
    Stream(drive, "wall").send(every(PERIOD, 0, 14), lambda t: 0.05, wall)
    drive.run(14)
    assert f"this machine's wall clock jumped by {1000 * jump_s:.0f} ms" in reasons(drive)
    late = [r for _, r in drive.results if not 55 <= r.age_ms <= 65]
    # Until the stamps are believed again, ages count from arrival, and are said to.
    assert all(r.age_source == "arrival" for r in late)
    assert len(drive.results) >= 346
    assert drive.results[-1][1].age_source == "sender"
    assert drive.states[-1] == "running"


def test_a_clock_of_another_machine_is_told() -> None:
    drive = drive_of()
    Stream(drive, "wall").send(every(PERIOD, 0, 3), lambda t: 0.05)
    drive.run(1)
    assert "this machine's clock: ages count from arrival" in reasons(drive)
    assert {r.age_source for _, r in drive.results} == {"arrival"}


def test_stamps_that_run_backwards_are_told_and_masks_go_on() -> None:
    drive = drive_of(max_age_ms=300.0)
    Stream(drive).send(every(PERIOD, 0, 10), ahead_s=lambda t: 100.0 if t < 5 else -50.0)
    drive.run(10)
    assert "clock: its clock ran back by" in reasons(drive)
    assert len(drive.results) == 250
    assert max(r.age_ms for _, r in drive.results) < 11
