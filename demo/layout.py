"""One picture of a frame and the labels of one or more models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.classes import ClassSet
from ..data.images import blend, draw_legend
from ..data.lettering import BOLD, Picture, text_width, write_text

PAPER = 255  # gray of the ground between panels
GAP = 4  # pixels between panels


@dataclass(frozen=True)
class Seen:
    """A model's answer to a frame: labels (H, W); title and readout for the panel's corner."""

    title: str
    readout: str
    classes: ClassSet
    labels: NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """How panels lie: `camera` puts the plain frame first; `columns` of panels, each of `panel`
    (height, width) pixels; `opacity` 0..1 of the colors."""

    panel: tuple[int, int]
    columns: int
    camera: bool
    opacity: float


def plan(frame: tuple[int, int], models: int, camera: bool, opacity: float, width: int) -> Layout:
    """The layout for frames of (height, width), at most `width` pixels wide: up to three panels in
    a row, four in a square."""
    panels = models + camera
    # Four make a square; three and one would leave a gap.
    columns = 2 if panels == 4 else min(panels, 3)
    wide = min(frame[1], (width - GAP * (columns - 1)) // columns)
    tall = max(2, round(frame[0] * wide / frame[1]))
    return Layout((tall, wide), columns, camera, opacity)


def compose(frame: Picture, seen: Sequence[Seen], layout: Layout) -> Picture:
    """frame (H, W, 3) BGR and the answers to it -> one picture (h, w, 3), both even, with readouts
    in the panels' corners and a legend for every class set below."""
    panels = [_panel(frame, layout.panel, "camera", "")] if layout.camera else []
    for each in seen:
        over = blend(frame, each.labels, each.classes.palette, layout.opacity)
        panels.append(_panel(over, layout.panel, each.title, each.readout))
    grid = _grid(panels, layout)
    sets = dict.fromkeys(each.classes for each in seen)
    strips = [draw_legend(classes, grid.shape[1]) for classes in sets]
    return _even(np.vstack([grid, *strips]))


def _panel(picture: Picture, size: tuple[int, int], title: str, readout: str) -> Picture:
    """`picture` in `size` with its readout; another shape is centered on black."""
    height, width = size
    scale = min(height / picture.shape[0], width / picture.shape[1])
    tall, wide = round(picture.shape[0] * scale), round(picture.shape[1] * scale)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    panel = np.zeros((height, width, 3), np.uint8)
    top, left = (height - tall) // 2, (width - wide) // 2
    panel[top : top + tall, left : left + wide] = cv2.resize(
        picture, (wide, tall), interpolation=method
    )
    _stamp(panel, title, readout)
    return panel


def _stamp(panel: Picture, title: str, readout: str) -> None:
    """Title and readout on a darkened ground in the upper left corner."""
    size = max(13, min(22, panel.shape[0] // 24))
    lines = [(title, BOLD), (readout, 400)] if readout else [(title, BOLD)]
    width = max(text_width(text, size, weight) for text, weight in lines) + size
    height = round(len(lines) * size * 1.3 + size * 0.5)
    ground = panel[:height, :width]
    # Darkened, not black: what is behind stays visible, and white letters stand out.
    ground[:] = ground // 4
    for number, (text, weight) in enumerate(lines, start=1):
        write_text(panel, text, (size // 2, round(number * size * 1.3)), size, weight=weight)


def _grid(panels: Sequence[Picture], layout: Layout) -> Picture:
    height, width = layout.panel
    rows = -(-len(panels) // layout.columns)
    tall, wide = rows * (height + GAP) - GAP, layout.columns * (width + GAP) - GAP
    grid = np.full((tall, wide, 3), PAPER, np.uint8)
    for number, panel in enumerate(panels):
        top = number // layout.columns * (height + GAP)
        left = number % layout.columns * (width + GAP)
        grid[top : top + height, left : left + width] = panel
    return grid


def _even(picture: Picture) -> Picture:
    """Grown by a row or column where that is odd: video codecs halve the color planes."""
    down, right = picture.shape[0] % 2, picture.shape[1] % 2
    return np.asarray(
        cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_CONSTANT, value=(PAPER,) * 3)
    )
