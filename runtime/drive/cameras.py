"""Cameras of one drive: their names, and their turns at the one engine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import PurePath
from typing import cast

import numpy as np

from ...data.frames import Frame, Unreadable
from ...data.ros.links import is_ros_address
from ...errors import UsageError
from ..sinks.queue import SinkQueue
from .capture import Source
from .loop import InferenceJob, Loop

MOST_CAMERAS = 16
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")  # of a camera: it becomes part of ROS topics
Sources = Source | Sequence[Source] | Mapping[str, Source]


def name_sources(given: Sources) -> dict[str, Source]:
    """The sources of a drive by their cameras' names; a single one that was given none has the
    name "".

    Args:
        given: one source, several, or a mapping from names to them.

    Raises:
        UsageError: no source, too many, or a name that cannot be part of a topic.
    """
    if isinstance(given, Mapping):
        named = dict(given)
    elif _are_several(given):
        several = cast("Sequence[Source]", given)
        named = dict(zip(name_cameras([describe_source(s) for s in several]), several, strict=True))
    else:
        return {"": cast("Source", given)}
    if not 1 <= len(named) <= MOST_CAMERAS:
        raise UsageError(f"a drive takes 1 to {MOST_CAMERAS} cameras, not {len(named)}")
    for name in named:
        if not NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} names no camera: a name is a letter, then letters, digits and _, 32 "
                "at most"
            )
    return named


def _are_several(given: object) -> bool:
    """Whether a list holds sources, rather than being one, of frames."""
    if not isinstance(given, (list, tuple)) or not given:
        return False
    return all(
        isinstance(each, Iterable) and not isinstance(each, (Frame, Unreadable, np.ndarray))
        for each in given
    )


def describe_source(source: object) -> str:
    """Where a source's frames come from: of a stream's address without the password, which a log
    would keep."""
    return re.sub(r"//[^/@]*@", "//", str(getattr(source, "where", type(source).__name__)))


def name_cameras(places: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """A name a camera, each once: the given one, else what its address ends in.

    Args:
        places: addresses of the sources.
        given: names, "" where there is none.

    Raises:
        UsageError: a name is given twice.
    """
    wished = [*given, *[""] * (len(places) - len(given))]
    taken = {name for name in wished if name}
    if len(taken) < sum(map(bool, wished)):
        raise UsageError(f"each camera needs a name of its own, not {', '.join(given)}")
    found = []
    for name, place in zip(wished, places, strict=True):
        plain = name or _name_of(place)
        tries = (plain if n == 1 else f"{plain[:28]}_{n}" for n in count(1))
        found.append(name or next(each for each in tries if each not in taken))
        taken.add(found[-1])
    return found


def _name_of(place: str) -> str:
    if place.isdigit():
        return f"camera{place}"
    where = "" if "!" in place else place.split("?")[0]  # a pipeline has no name
    # Of a file or a stream the last part; topics differ in their first.
    last = where.partition(":")[2] if is_ros_address(where) else PurePath(where).stem
    plain = re.sub(r"\W+", "_", last, flags=re.ASCII).strip("_")
    return (plain if plain[:1].isalpha() else f"camera_{plain}".rstrip("_"))[:32].rstrip("_")


class CameraLoops:
    """The loops of a drive's cameras over one supervisor.

    One frame is in inference at a time, or one each of as many cameras as the artifact takes in a
    batch. Of the cameras with a frame that waits, the one served longest ago goes first, so
    that none starves, whatever the others' rates. A camera that fails has no frame, and costs the
    others nothing.

    Args:
        by_name: a loop a camera; that of a single one by the name "".
        queues: of all sinks.

    Attributes:
        places: where each camera's frames come from.
    """

    def __init__(self, by_name: Mapping[str, Loop], queues: Sequence[SinkQueue] = ()):
        self.by_name, self.queues = dict(by_name), queues
        self.all = list(self.by_name.values())
        self._turns = [*self.all]  # the one served longest ago is the first
        self._jobs = 0
        self.places = {name: describe_source(loop.capture.source) for name, loop in by_name.items()}

    def step(self) -> None:
        """Act on everything that came since the last step; never waits."""
        # Answers of all first: the checks of one may end an engine that another's came from.
        self.publish_finished()
        for loop in self.all:
            loop.check()
        if not self.busy():
            self.submit_newest()
        elif len(self.all) > 1:
            names = ", ".join(loop.camera for loop in self.busy())
            for loop in self.all:
                if loop.job is None:
                    loop.report_busy(names)

    def publish_finished(self) -> None:
        """Publish what has come from inference."""
        busy = self.busy()
        answer = busy[0].job.engine.take() if busy and busy[0].job else None
        if answer is not None:
            for loop in busy:
                loop.finish(answer)

    def submit_newest(self) -> None:
        """Hand the engine the newest frame of the camera that was served longest ago, with those of
        the next ones in the same batch."""
        jobs: list[InferenceJob] = []
        for loop in list(self._turns):
            if (captured := loop.take_newest()) is None:
                continue
            if not jobs:
                self._jobs += 1
            jobs.append(loop.begin(self._jobs, captured, len(jobs)))
            # To the end, each in its turn: of a batch, too, one was first.
            self._turns.remove(loop)
            self._turns.append(loop)
            # One artifact computes them all: the first one's choice.
            jobs[-1].level = jobs[0].level
            if len(jobs) == jobs[0].engine.batches[jobs[0].level]:
                break
        if not jobs:
            return
        images, first = [job.captured.frame.image for job in jobs], jobs[0]
        if len(jobs) == 1:
            first.engine.submit(first.number, images[0], first.level)
        else:
            first.engine.submit_batch(first.number, images, first.level)

    def busy(self) -> list[Loop]:
        """The loops whose frames are in inference."""
        return [loop for loop in self.all if loop.job is not None]

    def wake_s(self) -> float:
        """Seconds until a step has work that no event will wake the loops for."""
        return min(loop.wake_s() for loop in self.all)

    @property
    def over(self) -> bool:
        return all(loop.over for loop in self.all)

    def start_recordings(self) -> None:
        """Open the recordings that waited for inference, if it is there."""
        for loop in self.all:
            if loop.capture.waits and loop.supervisor.serving():
                loop.capture.start()
