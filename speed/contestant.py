"""Contestants of a measurement: their interface, and artifacts run through their backends."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from ..data.letterbox import restore_labels
from ..runtime import Segmenter, load
from ..runtime.backends.backend import Backend, Image, Labels
from .result import STAGES, Subject
from .timing import MS, device_ms

Frame = NDArray[np.uint8]  # (H, W, 3) BGR, of any size
Frames = Sequence[Frame]
QUEUED = 8  # networks that the papers' protocol queues on a GPU before it waits


class Contestant(Protocol):
    """Takes frames in turn, a batch of its subject's in a call. `laps`: ms by stage, one entry
    a `time_stages` call."""

    laps: list[dict[str, float]]

    @property
    def subject(self) -> Subject: ...

    def label(self, frame: Frame) -> NDArray[np.uint8]:
        """One frame (H, W, 3) uint8 in host memory to labels (H, W) uint8 in host memory."""
        ...

    def frame_to_labels(self) -> object:
        """`label` of the next of its frames, or of as many as a batch has."""
        ...

    def take_noise(self) -> None:
        """Put random input for `run_queued` where the network computes, untimed."""
        ...

    def run_queued(self, count: int) -> object:
        """As papers time it: `count` networks on random input, one after another, and one wait; of
        every contestant from pixels on the device to labels on it."""
        ...

    def network(self) -> object:
        """The network alone, on a frame that is already where it computes."""
        ...

    def device_ms(self) -> float | None:
        """The median of `network` on the GPU's own clock; None on a CPU, and where the runtime
        keeps its stream to itself."""
        ...

    def time_stages(self) -> object:
        """`frame_to_labels`, with a stop after each stage; adds to `laps`."""
        ...

    def close(self) -> None: ...


class Laps:
    """Times of the stages of one frame, in ms by name; a stage may come twice and adds up."""

    def __init__(self) -> None:
        self.times = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter_ns()

    def lap(self, stage: str) -> None:
        now = time.perf_counter_ns()
        self.times[stage] += (now - self._last) * MS
        self._last = now


class _Stopwatch:
    """A backend that takes its steps one after another, each to its end, and times them."""

    def __init__(self, backend: Backend):
        self.backend, self.card, self.info = backend, backend.card, backend.info
        self.laps = Laps()

    def __call__(self, image: Image) -> Labels:
        self.laps.lap("preprocess")
        self.backend.upload(image)
        self.backend.synchronize()
        self.laps.lap("host_to_device")
        self.backend.compute()
        self.backend.synchronize()
        self.laps.lap("compute")
        labels = self.backend.download()
        self.laps.lap("device_to_host")
        return labels

    def __getattr__(self, name: str) -> object:
        return getattr(self.backend, name)


class ArtifactContestant:
    """An artifact through the runtime, as a vehicle would run it.

    What the graph holds counts as network: normalization, resize and argmax for labels, and the
    color conversion of a camera's format, whose bytes are made of `frames` before.
    """

    def __init__(self, segmenter: Segmenter, frames: Frames, name: str = ""):
        self.segmenter = segmenter
        # By identity: protocols that ask for the labels of a frame hold it in memory all along.
        self._taken: dict[int, tuple[Frame, Frame]] = {}
        self.frames = itertools.cycle([self._as_camera(frame) for frame in frames])
        self.laps: list[dict[str, float]] = []
        card, info = segmenter.card, segmenter.info
        self.subject = Subject(
            model=card.model,
            weights=card.weights,
            trained=card.trained,
            size=card.size,
            precision=info.precision,
            backend=info.name,
            version=info.version,
            device=info.device,
            threads=info.threads,
            options=dict(info.options),
            macs=card.macs,
            artifact=name,
            batch=card.batch,
        )
        noise = card.encode(random_frame(card.size))
        self._random = np.repeat(noise[None], card.batch, axis=0)
        self._stopwatch = _Stopwatch(segmenter.backend)
        # The Segmenter's own fitting and mapping are part of the time, so it is the one that is
        # called.
        self._staged = Segmenter(cast(Backend, self._stopwatch))
        # Now, so that a network that cannot run fails before the race, and its first frame is not
        # timed.
        self.frame_to_labels()

    @classmethod
    def open(cls, path: Path, backend: str, frames: Frames, **options: Any) -> ArtifactContestant:
        """Raises ArtifactError if the artifact cannot run here."""
        return cls(load(path, backend, **options), frames, path.name)

    def frame_to_labels(self) -> object:
        return self._label_next(self.segmenter)

    def _label_next(self, segmenter: Segmenter) -> object:
        if self.subject.batch == 1:
            return segmenter(next(self.frames))
        return segmenter.label_each(list(itertools.islice(self.frames, self.subject.batch)))

    def _as_camera(self, frame: Frame) -> Frame:
        """A picture as the artifact's camera gives it."""
        if not self.segmenter.card.takes_camera:
            return frame
        kept = self._taken.setdefault(id(frame), (frame, self.segmenter.card.encode(frame)))
        return kept[1]

    def label(self, frame: Frame) -> NDArray[np.uint8]:
        labels, card = self.segmenter(self._as_camera(frame)), self.segmenter.card
        size = (frame.shape[0], frame.shape[1])
        return restore_labels(labels, size, card.fit) if card.takes_camera else labels

    def network(self) -> object:
        backend = self.segmenter.backend
        backend.compute()
        backend.synchronize()
        return backend

    def device_ms(self) -> float | None:
        backend: Any = self.segmenter.backend
        if hasattr(backend, "time_on_device"):
            return round(float(statistics.median(backend.time_on_device())), 4)
        if self.segmenter.info.name == "torch":  # which computes in PyTorch's current stream
            return device_ms(backend.compute, str(backend.device))
        return None

    def take_noise(self) -> None:
        """The next `network` takes the random frame too, until another is uploaded."""
        self.segmenter.backend.upload(self._random)
        self.segmenter.backend.synchronize()

    def run_queued(self, count: int) -> object:
        backend = self.segmenter.backend
        for _ in range(count):
            backend.compute()
        backend.synchronize()
        return backend

    def time_stages(self) -> object:
        laps = self._stopwatch.laps = Laps()
        labels = self._label_next(self._staged)
        laps.lap("post")
        self.laps.append(laps.times)
        return labels

    def close(self) -> None:
        self.segmenter.close()


def random_frame(size: tuple[int, int]) -> Frame:
    """(H, W, 3) of noise, the same every time."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)


def per_run(contestant: Contestant) -> int:
    """Networks in one timed call of the papers' protocol; only on a GPU does waiting cost."""
    return 1 if contestant.subject.threads else QUEUED
