"""Palettes for color-blind viewers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.classes import ClassSet, Color
from ..errors import UsageError

STEPS = (0, 51, 102, 153, 204, 255)  # of red, green and blue, from which colors are chosen
GAPS = (*range(30, 1, -1), 1.0, 0.5, 0.0)  # CIE Lab distances to try, the widest first
# What is left of linear red, green and blue without one kind of cone (Vienot, Brettel, Mollon 1999
# for red and green; the blue one after Brettel, Vienot, Mollon 1997, its larger half).
VISIONS = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]]
    ),
    "deuteranopia": np.array(
        [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]]
    ),
    "tritanopia": np.array(
        [[1.01354, 0.14268, -0.15622], [-0.01181, 0.87561, 0.13619], [0.07707, 0.81208, 0.11085]]
    ),
}


@cache
def color_blind_safe(classes: ClassSet) -> ClassSet:
    """The same classes in colors that stay apart with any kind of color vision, each as near to
    the class's own color as that allows."""
    grid = np.stack(np.meshgrid(STEPS, STEPS, STEPS, indexing="ij"), axis=-1).reshape(-1, 3)
    # The widest gap that leaves every class a color; fewer classes lie further apart.
    for gap in GAPS:
        if chosen := _choose(classes, grid, gap):
            break
    else:  # a gap of nothing always succeeds while there are colors left
        raise UsageError(f"{len(classes)} classes are more than there are colors to tell apart")
    palette = [(int(red), int(green), int(blue)) for red, green, blue in grid[chosen]]
    return replace(classes, palette=tuple(palette))


def _choose(classes: ClassSet, grid: NDArray[np.int64], gap: float) -> list[int] | None:
    """Entry of `grid` for every class: the nearest to its own that is `gap` away from all before;
    None if one finds none."""
    seen, own = _seen(grid), _seen(np.array(classes.palette))
    free = np.ones(len(grid), bool)
    chosen: list[int] = []
    for number in range(len(classes)):
        if not free.any():
            return None
        likeness = np.linalg.norm(seen[:, 0] - own[number, 0], axis=-1)
        chosen.append(int(np.argmin(np.where(free, likeness, np.inf))))
        # In the vision that tells the two apart the least.
        distance = np.linalg.norm(seen - seen[chosen[-1]], axis=-1).min(axis=-1)
        free &= distance > gap
    return chosen


def nearest_pair(palette: tuple[Color, ...]) -> float:
    """Smallest CIE Lab distance between two of the colors, with whichever vision it is least."""
    seen = _seen(np.array(palette))
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1).min(axis=-1)
    return float(distances[~np.eye(len(palette), dtype=bool)].min())


def _seen(colors: NDArray[np.int64]) -> NDArray[np.float64]:
    """RGB (N, 3) in 0..255 -> CIE Lab in each vision (N, visions, 3)."""
    share = colors / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    views = np.stack([linear @ matrix.T for matrix in VISIONS.values()], axis=1).clip(0, 1)
    coded = np.where(views <= 0.0031308, 12.92 * views, 1.055 * views ** (1 / 2.4) - 0.055)
    lab = cv2.cvtColor(coded.astype(np.float32), cv2.COLOR_RGB2Lab)
    return np.asarray(lab, np.float64)
