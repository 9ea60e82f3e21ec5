"""Confusion matrices, and what is read off them."""

from __future__ import annotations

import numpy as np

from ..data.classes import IGNORE
from ..errors import UsageError


class Confusion:
    """Exact pixel counts: `matrix` (K, K) int64, rows the truth, columns the prediction."""

    def __init__(self, classes: int, matrix: np.ndarray | None = None):
        self.classes = classes
        self.matrix = np.zeros((classes, classes), np.int64) if matrix is None else matrix

    def update(self, label: np.ndarray, prediction: np.ndarray) -> None:
        """Count a frame: both (H, W) uint8; pixels labeled 255 do not count.

        Raises ValueError for different shapes or a prediction that is no class.
        """
        if label.shape != prediction.shape:
            raise UsageError(f"prediction is {prediction.shape}, its label {label.shape}")
        valid = label != IGNORE
        truth, guess = label[valid].astype(np.int64), prediction[valid]
        if guess.size and (worst := max(int(guess.max()), int(truth.max()))) >= self.classes:
            raise UsageError(f"class id {worst} in an evaluation of {self.classes} classes")
        counts = np.bincount(truth * self.classes + guess, minlength=self.classes**2)
        self.matrix += counts.reshape(self.classes, self.classes)

    def iou(self) -> np.ndarray:
        """(K,) float64 in 0..1; NaN for classes in neither truth nor prediction."""
        hit = np.diag(self.matrix)
        union = self.matrix.sum(0) + self.matrix.sum(1) - hit
        return _divided(hit, union)

    def miou(self) -> float:
        """Mean over the classes that occur; 0 where nothing was counted."""
        return _mean(self.iou())

    def accuracy(self) -> np.ndarray:
        """(K,) the part of each class's pixels that was found; NaN for classes not in the truth."""
        return _divided(np.diag(self.matrix), self.matrix.sum(1))

    def mean_accuracy(self) -> float:
        return _mean(self.accuracy())

    def pixel_accuracy(self) -> float:
        return float(np.trace(self.matrix) / max(1, self.matrix.sum()))


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(shares: np.ndarray) -> float:
    seen = shares[~np.isnan(shares)]
    return float(seen.mean()) if seen.size else 0.0
