"""Predictions in the format of the Cityscapes test server: label ids, one PNG a frame, in a zip."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..data.datasets import SegmentationData
from ..data.files import stage_file
from ..data.images import encode_png
from ..errors import UsageError
from .evaluate import Segment


def submit(
    segment: Segment,
    data: SegmentationData,
    archive: Path,
    seen: Callable[[int], None] = lambda index: None,
) -> int:
    """Write the predictions for all frames of `data` to `archive`; returns how many.

    A file is named CITY_SEQUENCE_FRAME_pred_labelIds.png and holds, at the frame's size, the ids
    that the data set's own files use.

    Raises:
        UsageError: if the class set has no such ids.
    """
    if data.classes.label_ids is None:
        raise UsageError(f"{data.classes.name} has no label ids of a test server: use cityscapes")
    table = np.zeros(256, np.uint8)
    table[: len(data.classes)] = data.classes.label_ids
    # Stored: PNGs are packed already.
    with (
        stage_file(archive) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as target,
    ):
        for index in range(len(data)):
            labels = segment(data[index].image)
            target.writestr(f"{data.name(index)}_pred_labelIds.png", encode_png(table[labels]))
            seen(index)
    return len(data)
