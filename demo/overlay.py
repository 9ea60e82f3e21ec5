"""Labels made visible."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.classes import ClassSet, Color
from .lettering import BLACK, Picture, width_of, write


def color(labels: NDArray[np.uint8], palette: Sequence[Color]) -> Picture:
    """labels (H, W) -> (H, W, 3) uint8 BGR; ids beyond the palette are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8)[:, ::-1]
    return np.asarray(table[labels])


def blend(
    frame: Picture, labels: NDArray[np.uint8], palette: Sequence[Color], opacity: float = 0.5
) -> Picture:
    """frame (H, W, 3) BGR with the labels' colors laid over it, `opacity` 0..1."""
    return np.asarray(cv2.addWeighted(frame, 1 - opacity, color(labels, palette), opacity, 0))


def legend(classes: ClassSet, height: int) -> Picture:
    """(height, W, 3) BGR: a patch and a name for every class, in columns that fit `height`."""
    row = max(14, min(24, height // 12))
    rows = max(1, height // row)
    wide = _entry_width(classes, row)
    columns = -(-len(classes) // rows)
    picture = np.full((height, columns * wide, 3), 255, np.uint8)
    for i in range(len(classes)):
        _draw_entry(picture, classes, i, (i // rows * wide, i % rows * row), row)
    return picture


def legend_strip(classes: ClassSet, width: int, row: int = 22) -> Picture:
    """(H, width, 3) BGR: the same in rows of columns of one width, to lie below a picture."""
    wide = _entry_width(classes, row)
    columns = max(1, min(len(classes), width // wide))
    rows = -(-len(classes) // columns)
    columns = -(-len(classes) // rows)  # as even as the rows can be
    picture = np.full((rows * row + 8, width, 3), 255, np.uint8)
    for i in range(len(classes)):
        where = i % columns * (width // columns) + 4, i // columns * row + 4
        _draw_entry(picture, classes, i, where, row)
    return picture


def _entry_width(classes: ClassSet, row: int) -> int:
    return max(width_of(name, row - 8) for name in classes.names) + 2 * row


def _draw_entry(
    picture: Picture, classes: ClassSet, number: int, where: tuple[int, int], row: int
) -> None:
    x, y = where
    corners = (x + 3, y + 3), (x + row - 4, y + row - 4)
    cv2.rectangle(picture, *corners, classes.palette[number][::-1], -1)
    cv2.rectangle(picture, *corners, BLACK, 1)  # white and pale classes on white paper
    write(picture, classes.names[number], (x + row + 2, y + row - 7), row - 8, BLACK)
