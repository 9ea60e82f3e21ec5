"""Evaluations for people: a table, and a picture of the frames that went worst."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from ..data.datasets import Cached, SegmentationData
from ..data.images import legend, overlaid, sheet, titled
from .evaluate import Evaluation, Segment


def table(result: Evaluation, title: str = "") -> Table:
    """Per class: IoU, accuracy and the part of all pixels, in %; the means below."""
    counts = result.confusion
    rows = Table("class", "IoU %", "accuracy %", "pixels %", title=title or None)
    for column in rows.columns[1:]:
        column.justify = "right"
    share = counts.matrix.sum(1) / max(1, counts.matrix.sum())
    for name, *shares in zip(
        result.classes.names, counts.iou(), counts.accuracy(), share, strict=True
    ):
        rows.add_row(name, *(percent(float(value)) for value in shares))
    rows.add_section()
    rows.add_row("mean", percent(counts.miou()), percent(counts.mean_accuracy()), "")
    rows.add_row("pixel accuracy", "", percent(counts.pixel_accuracy()), "")
    return rows


def percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.2f}"


def worst_frames(
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
        truth = overlaid(sample.image, sample.label, data.classes)
        guess = overlaid(sample.image, segment(sample.image), data.classes)
        pictures.append(titled(truth, f"{name}: truth", width))
        pictures.append(titled(guess, f"predicted, mIoU {percent(miou)} %", width))
    return np.vstack([sheet(pictures, 2), legend(data.classes, 2 * width)])
