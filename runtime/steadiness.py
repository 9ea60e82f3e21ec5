"""Steady labels: in a video, an uncertain pixel keeps its class for a few frames before it changes.

Hysteresis on the lead of the first class over the second, which `Segmenter.details` gives as a
confidence. Every mask is of the newest frame: certified and confident pixels are never held.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..data.classes import IGNORE
from ..errors import UsageError
from .bounds import Details

Mask = NDArray[np.bool_]
Labels = NDArray[np.uint8]


class _GivesDetails(Protocol):
    def details(self, frame: NDArray[np.generic], /) -> Details: ...


class SteadyLabels:
    """Labels the frames of one camera, in order, with less flicker.

    A pixel that is about to change keeps its class of the last mask where the network's confidence
    in the new one is below `threshold` and the pixel is not certified; for `hold` frames in a row
    at most. So a pixel that really changes while the network is uncertain is shown at most `hold`
    frames late; any other pixel is as the network gives it.

    It remembers the last mask: use one for each camera, from one thread.

    Args:
        segment: a Segmenter whose `details` give a confidence.
        threshold: in 0..1; 0.8 holds labels that, with such a lead, are right less than 80 times in
            100.
        hold: frames, 1 to 254.

    Raises:
        UsageError: threshold or hold is out of range.
    """

    def __init__(self, segment: _GivesDetails, threshold: float = 0.8, hold: int = 2):
        if not 0 < threshold <= 1:
            raise UsageError(f"a threshold of confidence lies above 0 and up to 1, not {threshold}")
        if not 1 <= hold <= 254:
            raise UsageError(f"labels are held for 1 to 254 frames, not {hold}")
        self.segment, self.threshold, self.hold = segment, threshold, hold
        self._shown: Labels | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the last mask: the next frame is the first of another sequence."""
        self._shown = None

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
        details = self.segment.details(frame)
        if details.confidence is None:
            why = details.why or "its network has one class alone"
            raise UsageError(f"labels cannot be held steady, since there is no confidence: {why}")
        uncertain = details.confidence < round(255 * self.threshold)
        if details.certified is not None:
            uncertain &= ~details.certified
        labels, held = self._update(details.labels, uncertain)
        confidence = details.confidence.copy()
        confidence[held] = 0
        return replace(details, labels=labels, confidence=confidence)

    def _update(self, labels: Labels, uncertain: Mask) -> tuple[Labels, Mask]:
        """The mask of this frame, and where it holds the class of the last one."""
        if self._shown is None or self._shown.shape != labels.shape:
            self._shown = labels.copy()
            self._frames = np.zeros(labels.shape, np.uint8)  # that each pixel was held in a row
            return labels, np.zeros(labels.shape, bool)
        held = uncertain & (labels != self._shown) & (self._frames < self.hold)
        # 255 lies beside a crop, where there is no class to keep.
        held &= (labels != IGNORE) & (self._shown != IGNORE)
        self._frames += 1
        self._frames *= held
        shown = labels.copy()
        np.copyto(shown, self._shown, where=held)
        self._shown = shown
        return shown.copy(), held
