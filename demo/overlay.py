"""Labels made visible."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.classes import ClassSet, Colour

Picture = NDArray[np.uint8]


def colour(labels: NDArray[np.uint8], palette: Sequence[Colour]) -> Picture:
    """labels (H, W) -> (H, W, 3) uint8 BGR; ids beyond the palette are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)[:, ::-1]
    return np.asarray(table[labels])


def blend(
    frame: Picture, labels: NDArray[np.uint8], palette: Sequence[Colour], opacity: float = 0.5
) -> Picture:
    """frame (H, W, 3) BGR with the labels' colours laid over it, `opacity` 0..1."""
    return np.asarray(cv2.addWeighted(frame, 1 - opacity, colour(labels, palette), opacity, 0))


def legend(classes: ClassSet, height: int) -> Picture:
    """(height, W, 3) BGR: a patch and a name for every class, in columns that fit `height`."""
    row = max(14, min(24, height // 12))
    rows = max(1, height // row)
    columns = -(-len(classes) // rows)
    wide = 8 * max(len(name) for name in classes.names) + 2 * row
    picture = np.full((height, columns * wide, 3), 255, np.uint8)
    for i, (name, rgb) in enumerate(zip(classes.names, classes.palette, strict=True)):
        x, y = i // rows * wide, i % rows * row
        patch = (x + 3, y + 3), (x + row - 3, y + row - 3)
        cv2.rectangle(picture, *patch, rgb[::-1], -1)
        where = (x + row + 3, y + row - 5)
        cv2.putText(picture, name, where, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return picture
