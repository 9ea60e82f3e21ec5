"""Inference as the loop sees it: submit a frame, carry on, be woken when the labels are ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..bounds import Details
from ..segmenter import Segmenter
from .clock import LoopClock

Picture = NDArray[np.uint8]
Logits = NDArray[np.float32]
Segment = Callable[[Picture], NDArray[np.uint8] | Details]


@dataclass(frozen=True)
class Answer:
    """What came of one frame.

    Attributes:
        job: its number, as submitted.
        labels: (H, W) uint8 of the frame, the receiver's own; None if it went wrong.
        batch: of several frames that were one job, the labels of each, in place of `labels`.
        network: the labels before some were held steady; None where none were.
        logits: (channels, h, w) float32, the coarse ones that the labels were made of, where they
            were asked for and the backend gives them.
        inference_ms: of the Segmenter's call.
        error: what went wrong.
        certified, confidence: as of `Details`, where they were asked for; why: where they cannot be
            had.
    """

    job: int
    labels: Picture | None
    inference_ms: float = 0.0
    error: str = ""
    certified: NDArray[np.bool_] | None = None
    confidence: Picture | None = None
    why: str = ""
    batch: tuple[Picture, ...] = ()
    network: Picture | None = None
    logits: Logits | None = None

    def of_place(self, place: int) -> Answer:
        """What came of one frame of a batch, or of the only one."""
        return replace(self, labels=self.batch[place], batch=()) if self.batch else self


class InferenceEngine(Protocol):
    """Runs one frame at a time at one of several levels. Wakes the loop when `ready`, `fault` or
    an answer changes. Methods return at once; none raises.

    Attributes:
        levels: names, largest first.
        ready: whether it takes frames.
        fault: why it will never take one again, or "".
        baselines_ms: p95 latency of each level, once ready.
        batches: how many frames each level takes at once.
    """

    @property
    def levels(self) -> Sequence[str]: ...

    @property
    def baselines_ms(self) -> Sequence[float]: ...

    @property
    def batches(self) -> Sequence[int]: ...

    ready: bool
    fault: str

    def submit(self, job: int, image: Picture, level: int) -> None: ...

    def submit_batch(self, job: int, images: Sequence[Picture], level: int) -> None:
        """Several frames as one job, at most as many as the level's batch."""
        ...

    def take(self) -> Answer | None:
        """The answer that came since the last call."""
        ...

    def kill(self) -> None:
        """End it now, whatever it is doing, and free what it holds."""
        ...


EngineFactory = Callable[[], InferenceEngine]


class InlineEngine:
    """Python callables in a thread of this process: for tests, and for segmenters that need no
    protection. A callable that hangs cannot be ended, only left alone."""

    def __init__(self, segmenters: Sequence[Segment], clock: LoopClock, logits: bool = False):
        self.segmenters, self.clock, self.logits = segmenters, clock, logits
        self.levels = level_names(segmenters)
        self.ready, self.fault = True, ""
        self.baselines_ms = [0.0] * len(segmenters)
        self.batches = [1] * len(segmenters)
        self._job: tuple[int, Picture, int] | None = None
        self._answer: Answer | None = None
        self._news = threading.Condition()
        self._killed = False
        threading.Thread(target=self._run, name="inference", daemon=True).start()

    def submit(self, job: int, image: Picture, level: int) -> None:
        with self._news:
            self._job = job, image, level
            self._news.notify()

    def submit_batch(self, job: int, images: Sequence[Picture], level: int) -> None:
        # `batches` says so, and whoever submits goes by it.
        raise AssertionError("callables take one frame at a time")

    def take(self) -> Answer | None:
        answer, self._answer = self._answer, None
        return answer

    def kill(self) -> None:
        with self._news:
            self._killed, self.ready = True, False
            self._news.notify()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._job is not None or self._killed)
                if self._killed or self._job is None:
                    return
                (job, image, level), self._job = self._job, None
            answer = run_segmenter(job, self.segmenters[level], image)
            if self.logits and answer.labels is not None:
                answer = replace(answer, logits=read_logits(self.segmenters[level]))
            self._answer = answer
            self.clock.wake()


def run_segmenter(job: int, segment: Segment, image: Picture) -> Answer:
    """The answer of a segmenter, which gives labels or Details, or what it raised; labels of
    another shape are an error too."""
    card = getattr(segment, "card", None)
    if isinstance(segment, Segmenter) and segment.certifies:
        segment = segment.details
    began = time.perf_counter()
    try:
        found: object = segment(image)
        took_ms = (time.perf_counter() - began) * 1000
        details = found if isinstance(found, Details) else None
        camera = (card.camera_size or card.size) if card and card.takes_camera else None
        labels = check_labels(details.labels if details else found, camera or image.shape[:2])
    except Exception as error:  # a backend raises what it likes
        return Answer(job, None, error=f"{type(error).__name__}: {error}")
    if details is None:
        return Answer(job, labels, took_ms)
    maps = details.certified, details.confidence, details.why
    return Answer(job, labels, took_ms, "", *maps)


def read_logits(segment: Segment) -> Logits | None:
    """The coarse logits that a segmenter's last labels were made of, (channels, h, w), the caller's
    own; None where its graph makes the labels itself."""
    maker = segment.backend.maker if isinstance(segment, Segmenter) else None
    return maker.coarse[0].copy() if maker is not None and maker.coarse.size else None


def run_batch(job: int, segment: Segment, images: Sequence[Picture]) -> Answer:
    """The answer of an artifact's Segmenter to several frames at once, or what it raised."""
    began = time.perf_counter()
    try:
        found: Sequence[object] = segment.label_each(images)  # type: ignore[attr-defined]
        took_ms = (time.perf_counter() - began) * 1000
        pairs = zip(found, images, strict=True)
        batch = tuple(check_labels(labels, image.shape[:2]) for labels, image in pairs)
    except Exception as error:  # a backend raises what it likes
        return Answer(job, None, error=f"{type(error).__name__}: {error}")
    return Answer(job, None, took_ms, batch=batch)


def check_labels(labels: object, size: tuple[int, ...]) -> Picture:
    """The labels, if they are a label map of a picture of `size`.

    Raises:
        ValueError: they are none.
    """
    if not isinstance(labels, np.ndarray) or labels.dtype != np.uint8:
        raise ValueError("a segmenter gives a numpy array of uint8 class ids")
    if labels.shape != size:
        raise ValueError(f"labels of shape {labels.shape} for a frame of {size}")
    return labels


def level_names(segmenters: Sequence[Segment]) -> list[str]:
    """What to call them: the model and size on their cards, else the callables' own names."""
    names = []
    for place, segmenter in enumerate(segmenters):
        card = getattr(segmenter, "card", None)
        name = getattr(segmenter, "__name__", f"level {place}")
        names.append(f"{card.model} {card.size[0]}x{card.size[1]}" if card else name)
    return names
