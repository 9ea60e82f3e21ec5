"""Steady labels: in a video, an uncertain pixel keeps its class for a few frames before it changes.

Hysteresis on the lead of the first class over the second, which `Segmenter.details` gives as a
confidence. Every mask is of the newest frame: certified and confident pixels are never held.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .bounds import Details

Labels = NDArray[np.uint8]


class _GivesDetails(Protocol):
    def details(self, frame: NDArray[np.generic], /) -> Details: ...


class LabelMemory:
    """The last mask of one camera, and for how long each of its pixels was held.

    Args:
        threshold: of confidence, in 0..1, below which a pixel may be held; 0.8 holds labels that,
            with such a lead, are right less than 80 times in 100.
        hold: frames in a row, 1 to 254.

    Raises:
        UsageError: threshold or hold is out of range.
    """

    def __init__(self, threshold: float = 0.8, hold: int = 2):
        if not 0 < threshold <= 1:
            raise UsageError(f"a threshold of confidence lies above 0 and up to 1, not {threshold}")
        if not 1 <= hold <= 254:
            raise UsageError(f"labels are held for 1 to 254 frames, not {hold}")
        self.threshold, self.hold = threshold, hold
        self._last: Labels | None = None
        self._frames = np.zeros(0, np.uint8)

    def forget(self) -> None:
        """The next frame is the first of another sequence."""
        self._last = None

    def steady(self, details: Details, most: int | None = None) -> Details:
        """The details of the next frame, with the last mask's class where a pixel is held.

        Args:
            details: as `Segmenter.details` gives them.
            most: frames in a row that a pixel may be held now, where that is less than `hold`.

        Returns:
            Arrays of its own; a held pixel's confidence is 0.

        Raises:
            UsageError: they have no confidence.
        """
        if details.confidence is None:
            why = details.why or "its network has one class alone"
            raise UsageError(f"labels cannot be held steady, since there is no confidence: {why}")
        # Not before there is a confidence, which needs numba too.
        from .hold_cpu import hold_pixels

        labels, hold = details.labels, self.hold if most is None else min(most, self.hold)
        certified = details.certified
        if certified is None:
            certified = np.zeros(labels.shape, bool)
        if self._last is None or self._last.shape != labels.shape:
            self._last, self._frames = labels.copy(), np.zeros(labels.shape, np.uint8)
        shown, sure = np.empty_like(labels), np.empty_like(details.confidence)
        hold_pixels(
            labels.reshape(-1),
            details.confidence.reshape(-1),
            certified.reshape(-1),
            self._last.reshape(-1),
            self._frames.reshape(-1),
            round(255 * self.threshold),
            hold,
            shown.reshape(-1),
            sure.reshape(-1),
        )
        return replace(details, labels=shown, confidence=sure)


class SteadyLabels:
    """Labels the frames of one camera, in order, with less flicker.

    A pixel that is about to change keeps its class of the last mask where the network's confidence
    in the new one is below `threshold` and the pixel is not certified; for `hold` frames in a row
    at most. So a pixel that really changes while the network is uncertain is shown at most `hold`
    frames late; any other pixel is as the network gives it.

    It remembers the last mask: use one for each camera, from one thread.

    Args:
        segment: a Segmenter whose `details` give a confidence.
        threshold: of it, see `LabelMemory`.
        hold: frames, 1 to 254.

    Raises:
        UsageError: threshold or hold is out of range.
    """

    def __init__(self, segment: _GivesDetails, threshold: float = 0.8, hold: int = 2):
        self.segment, self.memory = segment, LabelMemory(threshold, hold)

    def reset(self) -> None:
        """Forget the last mask: the next frame is the first of another sequence."""
        self.memory.forget()

    def __call__(self, frame: NDArray[np.generic]) -> Labels:
        """A frame as the Segmenter takes it -> labels (H, W) uint8, the caller's own.

        Raises:
            UsageError: the artifact gives no confidence.
        """
        return self.details(frame).labels

    def details(self, frame: NDArray[np.generic]) -> Details:
        """As `Segmenter.details`; where a pixel is held, its confidence is 0.

        Raises:
            UsageError: the artifact gives no confidence.
        """
        return self.memory.steady(self.segment.details(frame))
