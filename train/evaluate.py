"""Evaluation of anything that labels a frame: a network, an engine, a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.classes import ClassSet
from ..data.datasets import Cached, SegmentationData
from ..errors import DataError
from .metric import Confusion

Segment = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 BGR -> (H, W) uint8 class ids


@dataclass
class Evaluation:
    """What was counted. `frames`: (mIoU of the frame alone, index, name), in the order seen."""

    classes: ClassSet
    confusion: Confusion
    frames: list[tuple[float, int, str]] = field(default_factory=list)
    images: int = 0

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: fractions; null for classes that never occur."""
        counts = self.confusion
        return {
            "miou": counts.miou(),
            "iou": _by_class(self.classes, counts.iou()),
            "pixel_accuracy": counts.pixel_accuracy(),
            "mean_accuracy": counts.mean_accuracy(),
            "accuracy": _by_class(self.classes, counts.accuracy()),
            "images": self.images,
            "confusion": counts.matrix.tolist(),
        }

    def to_json(self) -> str:
        return json.dumps(self.as_dict())

    def worst(self, count: int) -> list[tuple[float, int, str]]:
        return sorted(self.frames)[:count]


def _by_class(classes: ClassSet, shares: np.ndarray) -> dict[str, float | None]:
    pairs = zip(classes.names, shares.tolist(), strict=True)
    return {name: None if np.isnan(share) else share for name, share in pairs}


def evaluate_frames(
    segment: Segment,
    data: SegmentationData | Cached,
    indices: Iterable[int] | None = None,
    seen: Callable[[int], None] = lambda index: None,
) -> Evaluation:
    """Label every frame of `data` (or those at `indices`) and compare; `seen` is told of each.

    Raises DataError for a split without labels, ValueError for labels that do not fit.
    """
    result = Evaluation(data.classes, Confusion(len(data.classes)))
    for index in range(len(data)) if indices is None else indices:
        sample = data[index]
        if sample.label is None:
            raise DataError(f"{sample.name} has no label: this split cannot be evaluated")
        frame = Confusion(len(data.classes))
        frame.update(sample.label, segment(sample.image))
        result.confusion.matrix += frame.matrix
        result.images += 1
        result.frames.append((frame.miou(), index, sample.name))
        seen(index)
    return result
