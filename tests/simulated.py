"""A drive in simulated time: camera and inference are events, and nothing waits or flakes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import count, groupby
from typing import Any

import numpy as np
from rtseg.data.frames import Frame
from rtseg.runtime.drive.capture import Capture, Mailbox
from rtseg.runtime.drive.clock import DriveLimits, LoopClock
from rtseg.runtime.drive.engine import Answer
from rtseg.runtime.drive.health import History, assess_health
from rtseg.runtime.drive.loop import Loop
from rtseg.runtime.drive.messages import Message, Result, Status
from rtseg.runtime.drive.stats import FrameCounters
from rtseg.runtime.drive.supervisor import Supervisor
from rtseg.runtime.sinks.queue import SinkCounts

SECOND = 1_000_000_000
SIZE = 4, 6


class SimulatedClock(LoopClock):
    """Waiting lets the events of that time happen."""

    def __init__(self) -> None:
        self.now = 1000 * SECOND
        self.rung = False
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def now_ns(self) -> int:
        return self.now

    def wall_ns(self) -> int:
        return 10**18 + self.now

    def wake(self) -> None:
        self.rung = True

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        at = self.now + round(seconds * SECOND)
        heapq.heappush(self._events, (at, next(self._order), event))

    def wait(self, timeout_s: float) -> None:
        until = self.now + round(timeout_s * SECOND)
        while not self.rung and self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()
        self.now = self.now if self.rung else until
        self.rung = False


class SimulatedEngine:
    """Labels are the frame's first channel. latency_s(level) of a job; `plan` names what happens
    to the next jobs in turn: "" goes well, "error", "hang" or "die"."""

    def __init__(
        self,
        clock: SimulatedClock,
        latency_s: Callable[[int], float] = lambda level: 0.01,
        levels: Sequence[str] = ("large",),
        baselines_ms: Sequence[float] | None = None,
        plan: list[str] | None = None,
        start_s: float = 0.0,
        batch: int = 1,
    ):
        self.clock, self.latency_s, self.levels = clock, latency_s, levels
        self.baselines_ms = baselines_ms or [1000 * latency_s(i) for i in range(len(levels))]
        self.plan = [] if plan is None else plan
        self.ready, self.fault, self.killed = start_s == 0, "", False
        self.batches, self.sizes = [batch] * len(levels), list[int]()  # of jobs
        self.answer: Answer | None = None
        if start_s:
            clock.after(start_s, self._be_ready)

    def _be_ready(self) -> None:
        self.ready = True
        self.clock.wake()

    def submit(self, job: int, image: np.ndarray[Any, Any], level: int) -> None:
        self.submit_batch(job, [image], level)

    def submit_batch(self, job: int, images: Sequence[np.ndarray[Any, Any]], level: int) -> None:
        self.sizes.append(len(images))
        fate = self.plan.pop(0) if self.plan else ""
        if fate == "hang":
            return
        maps = tuple(image[:, :, 0].copy() for image in images)
        batch = maps if len(maps) > 1 else ()
        answer = Answer(job, None if batch else maps[0], 1000 * self.latency_s(level), batch=batch)
        if fate == "error":
            answer = Answer(job, None, error="CUDA error 700")
        self.clock.after(self.latency_s(level), lambda: self._done(fate, answer))

    def _done(self, fate: str, answer: Answer) -> None:
        if fate == "die":
            self.fault = "the worker process ended by signal 11"
        else:
            self.answer = answer
        self.clock.wake()

    def take(self) -> Answer | None:
        answer, self.answer = self.answer, None
        return answer

    def kill(self) -> None:
        self.killed, self.ready = True, False


class Recorder:
    """An queue that keeps what it is offered, with the time."""

    name = "recorder"
    camera = None
    failed_ns = 0
    last_error = ""

    def __init__(self, clock: LoopClock):
        self.clock = clock
        self.messages: list[tuple[int, Message]] = []

    def offer(self, message: Message) -> None:
        self.messages.append((self.clock.now_ns(), message))

    def blocked_s(self) -> float:
        return 0.0

    def counts(self) -> SinkCounts:
        return SinkCounts(self.name, delivered=len(self.messages))


class Simulation:
    """A loop with a simulated camera and engines. starts: what each further engine is started by;
    the last one stays. reopen: called when the loop opens the camera anew."""

    def __init__(
        self,
        starts: Callable[[SimulatedClock], Sequence[Callable[[], SimulatedEngine]]],
        standby: Callable[[SimulatedClock], SimulatedEngine] | None = None,
        **limits: Any,
    ):
        self.clock = clock = SimulatedClock()
        self.started: list[SimulatedEngine] = []
        self.reopened_at: list[float] = []
        queue = list(starts(clock))
        counters, mailbox = FrameCounters(), Mailbox(clock)
        limit = DriveLimits(**limits)
        self.capture = Capture([], mailbox, counters, clock, max_age_ms=limit.max_age_ms)
        self.capture.reopen = self._reopen  # type: ignore[method-assign]
        self.supervisor = Supervisor(
            clock,
            lambda: self._started(queue.pop(0) if len(queue) > 1 else queue[0]),
            (lambda: standby(clock)) if standby else None,
        )
        self.recorder = Recorder(clock)
        queues: Any = [self.recorder]
        self.loop = Loop(self.capture, mailbox, self.supervisor, queues, counters, clock, limit)
        self.began = clock.now
        self.history = History()
        self._shown = 0
        self.frozen = False

    def _started(self, start: Callable[[], SimulatedEngine]) -> SimulatedEngine:
        self.started.append(start())
        return self.started[-1]

    def _reopen(self) -> bool:
        self.reopened_at.append(self.seconds)
        return True

    @property
    def seconds(self) -> float:
        return (self.clock.now - self.began) / SECOND

    def show(self) -> None:
        """The camera gives a frame whose every value is its index, or 7 if it is frozen."""
        image = np.full((*SIZE, 3), 7 if self.frozen else self._shown % 256, np.uint8)
        self.capture.accept(Frame(image, self._shown, self.clock.now))
        self._shown += 1

    def camera(self, period_s: float, from_s: float, to_s: float) -> None:
        for place in range(round((to_s - from_s) / period_s)):
            at = from_s + place * period_s - self.seconds
            self.clock.after(at, self.show)

    def run(self, until_s: float) -> None:
        while self.seconds < until_s:
            self.clock.wait(min(self.loop.wake_s(), until_s - self.seconds + 1e-9))
            self.loop.step()
            self.history.note(self.seconds, assess_health(self.loop))

    @property
    def results(self) -> list[tuple[float, Result]]:
        """(seconds, result)."""
        return [(t, m) for t, m in self._messages() if isinstance(m, Result)]

    @property
    def statuses(self) -> list[tuple[float, Status]]:
        return [(t, m) for t, m in self._messages() if isinstance(m, Status)]

    def _messages(self) -> list[tuple[float, Message]]:
        return [((t - self.began) / SECOND, m) for t, m in self.recorder.messages]

    @property
    def frames(self) -> Any:
        return asdict(self.loop.counters.counts())

    @property
    def states(self) -> list[str]:
        """One after another, each once until it changes."""
        return [state for state, _ in groupby(entry.state for entry in self.history.entries)]
