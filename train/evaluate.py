"""Evaluation of anything that labels frames: a network, an engine, a function."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np

from ..data.classes import IGNORE, ClassSet
from ..data.datasets import Cached, SegmentationData
from ..data.images import add_title, arrange, blend, draw_legend
from ..errors import DataError, UsageError
from ..reporting import Table
from .flicker import Flicker, order_sequences
from .reliability import Reliability

Segment = Callable[[np.ndarray], np.ndarray]  # (H, W, 3) uint8 BGR -> (H, W) uint8 class ids


class Confusion:
    """Exact pixel counts: `matrix` (K, K) int64, rows the truth, columns the prediction; `unseen`,
    the labeled pixels that got no prediction."""

    def __init__(self, classes: int, matrix: np.ndarray | None = None):
        self.classes, self.unseen = classes, 0
        self.matrix = np.zeros((classes, classes), np.int64) if matrix is None else matrix

    def update(self, label: np.ndarray, prediction: np.ndarray) -> None:
        """Count a frame: both (H, W) uint8; pixels that either labels 255 do not count.

        Raises:
            UsageError: if shapes differ, or the prediction is no class.
        """
        if label.shape != prediction.shape:
            raise UsageError(f"prediction is {prediction.shape}, its label {label.shape}")
        valid = label != IGNORE
        self.unseen += int((valid & (prediction == IGNORE)).sum())
        valid &= prediction != IGNORE
        truth, guess = label[valid].astype(np.int64), prediction[valid]
        if guess.size and (worst := max(int(guess.max()), int(truth.max()))) >= self.classes:
            raise UsageError(f"class id {worst} in an evaluation of {self.classes} classes")
        # One number a pair, so that one bincount fills the matrix.
        counts = np.bincount(truth * self.classes + guess, minlength=self.classes**2)
        self.matrix += counts.reshape(self.classes, self.classes)

    def iou(self) -> np.ndarray:
        """(K,) float64 in 0..1; NaN for classes in neither truth nor prediction."""
        hit = np.diag(self.matrix)
        union = self.matrix.sum(0) + self.matrix.sum(1) - hit
        return _divide(hit, union)

    def miou(self) -> float:
        """Mean over the classes that occur; 0 where nothing was counted."""
        return _mean(self.iou())

    def accuracy(self) -> np.ndarray:
        """(K,) the part of each class's pixels that was found; NaN for classes not in the truth."""
        return _divide(np.diag(self.matrix), self.matrix.sum(1))

    def mean_accuracy(self) -> float:
        return _mean(self.accuracy())

    def pixel_accuracy(self) -> float:
        return float(np.trace(self.matrix) / max(1, self.matrix.sum()))


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(shares: np.ndarray) -> float:
    seen = shares[~np.isnan(shares)]
    # Without classes that never occur, as cityscapesScripts averages.
    return float(seen.mean()) if seen.size else 0.0


@dataclass
class Evaluation:
    """What was counted. `frames`: (mIoU of the frame alone, index, name), in the order seen;
    `backend` and `precision`: what ran; where they were asked for, `reliability` of its
    confidences, `flicker` in sequences, and `corruptions`, the mIoU on corrupted frames by their
    names."""

    classes: ClassSet
    confusion: Confusion
    frames: list[tuple[float, int, str]] = field(default_factory=list)
    images: int = 0
    backend: str = ""
    precision: str = ""
    reliability: Reliability | None = None
    flicker: Flicker | None = None
    corruptions: dict[str, float] = field(default_factory=dict)

    @property
    def unseen(self) -> float:
        """Share of the labeled pixels that a crop kept from the model; mIoU does not count them."""
        return self.confusion.unseen / max(
            1, self.confusion.unseen + int(self.confusion.matrix.sum())
        )

    def as_dict(self) -> dict[str, object]:
        """JSON-ready: fractions; null for classes that never occur. `ece` and `reliability`, by
        stretches of confidence, `flicker` and `corruptions` only where they were asked for."""
        counts, known = self.confusion, self.reliability
        asked: dict[str, object] = {}
        if known is not None:
            asked = {"ece": known.ece, "reliability": [asdict(each) for each in known.bins]}
        if self.flicker is not None:
            asked["flicker"] = self.flicker.share if self.flicker.pixels else None
        if self.corruptions:
            asked["corruptions"] = self.corruptions
        return {
            "miou": counts.miou(),
            "iou": _by_class(self.classes, counts.iou()),
            "pixel_accuracy": counts.pixel_accuracy(),
            "mean_accuracy": counts.mean_accuracy(),
            "accuracy": _by_class(self.classes, counts.accuracy()),
            "images": self.images,
            "backend": self.backend,
            "precision": self.precision,
            "unseen": self.unseen,
            "confusion": counts.matrix.tolist(),
            **asked,
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
    compared: Callable[[np.ndarray, np.ndarray], None] = lambda truth, labels: None,
) -> Evaluation:
    """Label frames and compare with the truth.

    Args:
        segment: A frame (H, W, 3) uint8 BGR -> labels (H, W) uint8.
        data: A split with labels.
        indices: Of the frames; None: all.
        seen: Called with each index that is done.
        compared: Called with the truth and the labels of each frame.

    Raises:
        DataError: if the split has no labels.
        UsageError: if labels do not fit.
    """
    result = Evaluation(data.classes, Confusion(len(data.classes)))
    for index in range(len(data)) if indices is None else indices:
        sample = data[index]
        if sample.label is None:
            raise DataError(f"{sample.name} has no label: this split cannot be evaluated")
        frame = Confusion(len(data.classes))
        labels = segment(sample.image)
        frame.update(sample.label, labels)
        compared(sample.label, labels)
        result.confusion.matrix += frame.matrix
        result.confusion.unseen += frame.unseen
        result.images += 1
        result.frames.append((frame.miou(), index, sample.name))
        seen(index)
    return result


def evaluate_sequences(
    segment: Segment,
    data: SegmentationData | Cached,
    seen: Callable[[int], None] = lambda index: None,
    restart: Callable[[], None] = lambda: None,
) -> Evaluation:
    """As `evaluate_frames`, sequence by sequence and each in order, with their flicker.

    Args:
        segment: As there.
        data: As there.
        seen: As there.
        restart: Called before the first frame of each sequence.

    Raises:
        UsageError: if no two frames are of one sequence.
    """
    meter = Flicker()
    sequences = order_sequences([data.name(index) for index in range(len(data))])
    if max(map(len, sequences)) < 2:
        raise UsageError(
            "no two frames are of one sequence, so nothing can flicker: their names have to differ "
            "in the number at their end alone"
        )

    def indices() -> Iterator[int]:
        # Each index is taken when the frame before it has been counted.
        for sequence in sequences:
            meter.restart()
            restart()
            yield from sequence

    result = evaluate_frames(segment, data, indices(), seen, meter.count)
    result.flicker = meter
    return result


def build_table(result: Evaluation, title: str = "") -> Table:
    """Per class: IoU, accuracy and the part of all pixels, in %; the means below."""
    counts = result.confusion
    share = counts.matrix.sum(1) / max(1, counts.matrix.sum())
    rows = [
        (name, *(percent(float(value)) for value in shares))
        for name, *shares in zip(
            result.classes.names, counts.iou(), counts.accuracy(), share, strict=True
        )
    ]
    rows.append(("mean", percent(counts.miou()), percent(counts.mean_accuracy()), ""))
    rows.append(("pixel accuracy", "", percent(counts.pixel_accuracy()), ""))
    rows += [(f"mean, {name}", percent(miou), "", "") for name, miou in result.corruptions.items()]
    if result.flicker is not None:
        rows.append(("flicker (truth still)", "", "", percent(result.flicker.share)))
    if result.reliability is not None:
        rows.append(("expected calibration error", "", percent(result.reliability.ece), ""))
    if result.unseen:
        rows.append(("not seen (cropped away)", "", "", percent(result.unseen)))
    return Table(("class", "IoU %", "accuracy %", "pixels %"), rows, title)


def percent(share: float) -> str:
    """Of a share, to two places; a dash for NaN."""
    return "-" if np.isnan(share) else f"{100 * share:.2f}"


def draw_worst_frames(
    result: Evaluation,
    segment: Segment,
    data: SegmentationData | Cached,
    count: int = 6,
    width: int = 480,
) -> np.ndarray:
    """(H, 2 * width, 3) uint8 BGR: the truth and the prediction of the frames with the lowest
    mIoU, worst first, over the legend."""
    pictures = []
    for miou, index, name in result.worst(count):
        sample = data[index]
        if sample.label is None:
            continue
        truth = blend(sample.image, sample.label, data.classes.palette)
        guess = blend(sample.image, segment(sample.image), data.classes.palette)
        pictures.append(add_title(truth, f"{name}: truth", width))
        pictures.append(add_title(guess, f"predicted, mIoU {percent(miou)} %", width))
    return np.vstack([arrange(pictures, 2), draw_legend(data.classes, 2 * width)])
