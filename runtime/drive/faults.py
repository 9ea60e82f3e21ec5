"""Fault injection: a drive is trusted once it has been seen to survive these faults.

A plan is a YAML list, times in seconds from the start:

    - {at: 20, fault: camera_stall, seconds: 3}

What each kind does is in `KINDS`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...data.files import write_atomically
from ...data.frames import Frame, Unreadable
from ...data.limits import read_yaml
from ...errors import MissingPackage, UsageError
from ..bounds import Details
from ..segmenter import Segmenter
from .clock import LONGEST
from .engine import Picture
from .messages import Message
from .worker import WorkerTask

KINDS = {
    "camera_stall": "the camera hangs for `seconds`",
    "camera_cut": "the camera raises, and cannot be opened for `seconds`",
    "corrupt_frames": "every frame is damaged for `seconds`",
    "backend_error": "the backend raises once",
    "backend_hang": "inference does not return for `seconds`",
    "worker_death": "the worker process dies",
    "sink_block": "a sink does not return for `seconds`",
    "sink_error": "a sink raises at every message for `seconds`",
}
IN_CAMERA = ("camera_stall", "camera_cut", "corrupt_frames")
IN_WORKER = ("backend_error", "backend_hang", "worker_death")
FAULTY_LOADER = f"{__name__}:load_faulty"


@dataclass(frozen=True)
class Fault:
    """A fault to inject.

    Attributes:
        at: seconds from the start.
        fault: one of KINDS.
        seconds: how long it lasts.
        camera: of several, the one that a camera's fault strikes; "": all.
    """

    at: float
    fault: str
    seconds: float = 0.0
    camera: str = ""

    def __post_init__(self) -> None:
        if self.fault not in KINDS:
            raise UsageError(f"no fault is called {self.fault!r}: choose from {', '.join(KINDS)}")
        if not (0 <= self.at <= LONGEST and 0 <= self.seconds <= LONGEST):
            raise UsageError(f"{self.fault}: `at` and `seconds` are 0 to {LONGEST:g}")
        if self.camera and self.fault not in IN_CAMERA:
            raise UsageError(f"{self.fault} strikes no camera: leave `camera` out")


class FaultPlan:
    """Faults and the moment that they count from (monotonic nanoseconds)."""

    def __init__(self, faults: Sequence[Fault], start_ns: int):
        self.faults, self.start_ns = tuple(faults), start_ns

    def now_s(self) -> float:
        return (time.monotonic_ns() - self.start_ns) / 1e9

    def lasting(self, kind: str, camera: str = "") -> float:
        """Seconds that a fault of that kind will still last, at that camera where it is one of a
        camera; 0 if there is none now."""
        now = self.now_s()
        here = [f for f in self.faults if f.fault == kind and f.camera in ("", camera)]
        ends = [f.at + f.seconds for f in here if f.at <= now]
        return max((end - now for end in ends), default=0.0)


def read_plan(path: Path) -> list[Fault]:
    """The faults of a YAML file, by time.

    Raises:
        UsageError: names the entry that is wrong.
        MissingPackage: PyYAML is not installed.
    """
    try:
        entries = read_yaml(path)
    except ImportError as error:
        raise MissingPackage('--inject needs PyYAML: pip install "rtseg[drive]"') from error
    if not isinstance(entries, list):
        raise UsageError(f"{path} should be a list of `- {{at: 20, fault: camera_stall, ...}}`")
    try:
        faults = [Fault(**entry) for entry in entries]
    except TypeError as error:
        raise UsageError(
            f"{path}: an entry has `at`, `fault` and `seconds`, and may have `camera` ({error})"
        ) from error
    return sorted(faults, key=lambda fault: fault.at)


def check_cameras(faults: Iterable[Fault], cameras: Sequence[str]) -> None:
    """Raises UsageError if a fault is for a camera that is not there."""
    for fault in faults:
        if fault.camera and fault.camera not in cameras:
            here = ", ".join(cameras) or "one without a name"
            raise UsageError(f"a fault is for {fault.camera!r}; the cameras here: {here}")


class FaultySource:
    """A source with the plan's camera faults. camera: its name, in a drive of several."""

    def __init__(self, source: Iterable[Frame | Unreadable], plan: FaultPlan, camera: str = ""):
        self.source, self.plan, self.camera = source, plan, camera
        self.restarts: bool = getattr(source, "restarts", True)
        self.recorded: bool = getattr(source, "recorded", False)
        self.rate_hz: float | None = getattr(source, "rate_hz", None)
        self.decoded: bool = getattr(source, "decoded", False)
        self.where: str = getattr(source, "where", type(source).__name__)

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        for item in self.source:
            if self.plan.lasting("camera_cut", self.camera) > 0:
                raise OSError("the camera was cut off (injected)")
            while (left_s := self.plan.lasting("camera_stall", self.camera)) > 0:
                time.sleep(left_s)
            if self.plan.lasting("corrupt_frames", self.camera) > 0:
                yield Unreadable(getattr(item, "name", ""), "damaged (injected)")
                continue
            # A source of files hands over what piled up during a stall, which a camera would have
            # lost.
            if isinstance(item, Frame) and item.captured_ns < time.monotonic_ns() - 10**9:
                continue
            yield item


class FaultySink:
    """A sink that does nothing, with the plan's sink faults."""

    name = "faulty sink"

    def __init__(self, plan: FaultPlan):
        self.plan = plan

    def __call__(self, message: Message) -> None:
        if (left_s := self.plan.lasting("sink_block")) > 0:
            time.sleep(left_s)
        if self.plan.lasting("sink_error") > 0:
            raise RuntimeError("the sink fails (injected)")


class FaultySegmenter(Segmenter):
    """A Segmenter with the plan's faults. Each strikes once, whatever became of the worker that it
    struck: `marks` is a folder where those that did are noted."""

    def __init__(self, inner: Segmenter, plan: FaultPlan, marks: Path):
        super().__init__(inner.backend)
        self.plan, self.marks = plan, marks

    def label_each(self, frames: Sequence[Any]) -> list[Picture]:
        self._strike_due()
        return super().label_each(frames)

    def details(self, frame: Any) -> Details:
        self._strike_due()
        return super().details(frame)

    def _strike_due(self) -> None:
        for number, fault in enumerate(self.plan.faults):
            mark = self.marks / str(number)
            if fault.at <= self.plan.now_s() and not mark.exists():
                # Before it strikes: a worker that dies leaves nothing else behind.
                write_atomically(mark, b"")
                _strike(fault)


def _strike(fault: Fault) -> None:
    if fault.fault == "backend_error":
        raise RuntimeError("the backend fails (injected)")
    if fault.fault == "backend_hang":
        time.sleep(fault.seconds)
    if fault.fault == "worker_death":
        # Not sys.exit: a crash runs no handlers either.
        os._exit(70)


def load_faulty(
    paths: list[str],
    backend: str | None,
    device: str | None,
    faults: list[dict[str, Any]],
    start_ns: int,
    marks: str,
    certify: bool = False,
) -> list[Segmenter]:
    """A worker's loader, see `WorkerTask`: artifacts of which the first has the plan's faults."""
    # Not at the head: that is the program that a worker runs, and Python warns where a program was
    # imported before.
    from .worker_process import load_artifacts

    plan = FaultPlan([Fault(**f) for f in faults if f["fault"] in IN_WORKER], start_ns)
    first, *others = load_artifacts(paths, backend, device, certify)
    faulty = FaultySegmenter(first, plan, Path(marks))
    faulty.certifies, faulty.picks_size = first.certifies, first.picks_size
    return [faulty, *others]


def with_faults(task: WorkerTask, plan: FaultPlan) -> WorkerTask:
    """A worker's task whose artifacts have the plan's faults."""
    arguments = task.arguments | {
        "faults": [asdict(fault) for fault in plan.faults],
        "start_ns": plan.start_ns,
        "marks": tempfile.mkdtemp(prefix="rtseg-faults-"),
    }
    return replace(task, arguments=arguments, loader=FAULTY_LOADER)
