"""Reliability of confidences: how often labels of a confidence are right, and the mean gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.classes import IGNORE
from ..errors import UsageError

BINS = 15
SIDE, EDGE = 420, 60  # pixels of the diagram, and around it
BAR, GAP, INK = (180, 120, 60), (90, 90, 230), (40, 40, 40)  # BGR


class Detailed(Protocol):
    """Labels (H, W) uint8, their confidence in 255ths, and why there is none."""

    @property
    def labels(self) -> NDArray[np.uint8]: ...
    @property
    def confidence(self) -> NDArray[np.uint8] | None: ...
    @property
    def why(self) -> str: ...


class GivesDetails(Protocol):
    """Has labels with confidence of a frame (H, W, 3) uint8 BGR, as a `Segmenter` does."""

    def details(self, frame: NDArray[np.generic], /) -> Detailed: ...


@dataclass(frozen=True)
class ReliabilityBin:
    """Pixels of one stretch of confidence: how many, their mean confidence, and the share right."""

    pixels: int
    confidence: float
    right: float


class Reliability:
    """Labels frames with their confidence, and counts how often they are right.

    Args:
        segment: a Segmenter, or what else gives details.
    """

    def __init__(self, segment: GivesDetails):
        self.segment = segment
        self._confidence: NDArray[np.uint8] | None = None
        # Exact counts of each of the 256 confidences.
        self._pixels, self._right = np.zeros((2, 256), np.int64)

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The labels of a frame, whose confidence the next `count` is of.

        Raises:
            UsageError: the artifact says nothing of it.
        """
        details = self.segment.details(frame)
        if details.confidence is None:
            why = details.why or "its network has one class alone"
            raise UsageError(f"this artifact gives no confidence: {why}")
        self._confidence = details.confidence
        return details.labels

    def count(self, truth: NDArray[np.uint8], labels: NDArray[np.uint8]) -> None:
        """Compare the last frame's labels (H, W) with the truth; 255 does not count."""
        assert self._confidence is not None
        known = (truth != IGNORE) & (labels != IGNORE)
        confidence = self._confidence[known]
        self._pixels += np.bincount(confidence, minlength=256)
        right = confidence[truth[known] == labels[known]]
        self._right += np.bincount(right, minlength=256)

    @property
    def bins(self) -> list[ReliabilityBin]:
        """Of equal width in confidence, those that hold pixels."""
        found = []
        values = np.arange(256) / 255
        for members in np.array_split(np.arange(256), BINS):
            pixels = int(self._pixels[members].sum())
            if pixels:
                mean = float((values[members] * self._pixels[members]).sum() / pixels)
                right = float(self._right[members].sum() / pixels)
                found.append(ReliabilityBin(pixels, mean, right))
        return found

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean gap between confidence and share right, 0..1."""
        total = max(1, int(self._pixels.sum()))
        return sum(each.pixels * abs(each.confidence - each.right) for each in self.bins) / total

    def draw(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 BGR: the share right by confidence; the gap to the diagonal in red."""
        picture = np.full((SIDE + 2 * EDGE, SIDE + 2 * EDGE, 3), 255, np.uint8)
        width = SIDE // (2 * BINS)
        for each in self.bins:
            x = _place(each.confidence, each.right)[0]
            left, right = x - width // 2, x + width // 2
            base, top = _place(0, 0)[1], _place(0, each.right)[1]
            cv2.rectangle(picture, (left, top), (right, base), BAR, -1)
            line = _place(0, each.confidence)[1]
            cv2.rectangle(picture, (left, min(line, top)), (right, max(line, top)), GAP, 2)
        cv2.rectangle(picture, _place(0, 0), _place(1, 1), INK, 1)
        cv2.line(picture, _place(0, 0), _place(1, 1), INK, 1, cv2.LINE_AA)
        for text, at in (
            (f"expected calibration error {self.ece:.2%}", (EDGE, EDGE - 20)),
            ("confidence, 0 to 1", (EDGE, SIDE + EDGE + 30)),
            ("right", (4, EDGE + 10)),
        ):
            cv2.putText(picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.5, INK, 1, cv2.LINE_AA)
        return picture


def _place(confidence: float, right: float) -> tuple[int, int]:
    return EDGE + round(SIDE * confidence), EDGE + SIDE - round(SIDE * right)
