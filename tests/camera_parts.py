"""Simulated cameras, and a sink that keeps what it gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rtseg.data.frames import Frame
from rtseg.runtime import DriveLimits, Result
from rtseg.runtime.drive.camera_report import assess_cameras
from rtseg.runtime.drive.cameras import CameraLoops
from rtseg.runtime.drive.capture import Capture, Mailbox
from rtseg.runtime.drive.health import History
from rtseg.runtime.drive.loop import Loop
from rtseg.runtime.drive.messages import Message
from rtseg.runtime.drive.stats import FrameCounters
from rtseg.runtime.drive.supervisor import Supervisor
from simulated import SECOND, Recorder, SimulatedClock, SimulatedEngine

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
