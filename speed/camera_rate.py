"""At a camera's rate: frames come when they are due, whether or not the last one is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .timing import MS, Now, Timing

RATES_HZ = (10.0, 17.0, 30.0, 60.0)  # lidar-synchronized, Cityscapes, and common cameras
Sleep = Callable[[float], None]  # takes seconds
Label = Callable[[int], object]  # labels the frame of an index; returns when its labels lie ready


@dataclass(frozen=True)
class Shot:
    """A frame that was due at `due_ns`; `started_ns` and `ended_ns` are None if it was dropped."""

    due_ns: int
    started_ns: int | None = None
    ended_ns: int | None = None


def play(
    label: Label,
    count: int,
    rate_hz: float,
    now: Now = time.perf_counter_ns,
    sleep: Sleep = time.sleep,
) -> list[Shot]:
    """Show `count` frames at `rate_hz` to `label`, which always takes the newest that is due.

    As a vehicle does: a frame that is still waiting when the next is due is dropped. The last frame
    is never dropped. Returns all frames in the order they were due.
    """
    if rate_hz <= 0 or count < 1:
        raise UsageError("a camera needs a rate above 0 Hz and at least one frame")
    start = now()
    # From the start, not from one another: a late frame must not delay all after it.
    due = [start + round(index * 1e9 / rate_hz) for index in range(count)]
    shots = [Shot(moment) for moment in due]
    following = 0
    while following < count:
        newest = _newest_due(due, following, now())
        if newest < following:
            sleep((due[following] - now()) / 1e9 if due[following] > now() else 0.0)
            continue
        started = now()
        label(newest)
        shots[newest] = Shot(due[newest], started, now())
        following = newest + 1
    return shots


def _newest_due(due: Sequence[int], following: int, moment: int) -> int:
    """The last frame that is due at `moment`, from `following` on; `following` - 1 if none is."""
    while following < len(due) and due[following] <= moment:
        following += 1
    return following - 1


@dataclass(frozen=True)
class Pace:
    """How a contestant kept up with a camera.

    `from_due`: for every frame, dropped ones included, the time from when it was due until labels
    of it or of a newer frame were ready, so that a stall is charged to every frame that it delays.
    `service`: the calls alone; against a burst's it shows what idle gaps cost. `missed`: frames
    whose `from_due` is above `deadline_ms`, by default one period of the camera.
    """

    rate_hz: float
    frames: int
    dropped: int
    deadline_ms: float
    missed: int
    miss_ratio: float
    from_due: Timing
    service: Timing

    @classmethod
    def of(cls, shots: Sequence[Shot], rate_hz: float, deadline_ms: float | None = None) -> Pace:
        """Of one play or several, one after another."""
        deadline = deadline_ms or 1e3 / rate_hz
        waited = answered_ms(shots)
        missed = int((waited > deadline).sum())
        taken = [shot for shot in shots if shot.ended_ns is not None]
        service = np.array([(shot.ended_ns - shot.started_ns) * MS for shot in taken])  # type: ignore[operator]
        return cls(
            rate_hz=rate_hz,
            frames=len(shots),
            dropped=len(shots) - len(taken),
            deadline_ms=round(deadline, 4),
            missed=missed,
            miss_ratio=round(missed / len(shots), 6),
            from_due=Timing.of(waited),
            service=Timing.of(service),
        )


def answered_ms(shots: Sequence[Shot]) -> NDArray[np.float64]:
    """(frames,) ms from when each frame was due until labels at least as new as it were ready."""
    times = np.empty(len(shots))
    ready = None
    # Backwards: a frame that was dropped is answered by the next one that was not.
    for index in range(len(shots) - 1, -1, -1):
        shot = shots[index]
        ready = shot.ended_ns if shot.ended_ns is not None else ready
        assert ready is not None, "the last frame of a play is never dropped"
        times[index] = (ready - shot.due_ns) * MS
    return times


class Stalled:
    """`call`, held up by `stall_ms` once every `every_s`: what a page fault, a logger's flush or a
    neighbor does. A measurement that does not show it in p99.9 hides such things."""

    def __init__(
        self,
        call: Label,
        stall_ms: float,
        every_s: float = 10.0,
        now: Now = time.perf_counter_ns,
        sleep: Sleep = time.sleep,
    ):
        self.call, self.stall_ms, self.every_ns = call, stall_ms, round(every_s * 1e9)
        self.now, self.sleep = now, sleep
        self.next_ns = now() + self.every_ns

    def __call__(self, index: int) -> object:
        if self.now() >= self.next_ns:
            # By the plan, not from now: as many stalls as the time holds, however long each call
            # takes.
            self.next_ns += self.every_ns
            self.sleep(self.stall_ms / 1e3)
        return self.call(index)
