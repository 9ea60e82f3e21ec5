"""Text on pictures: OpenCV 5's own typeface, or the strokes that older versions draw."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3) BGR
Color = tuple[int, int, int]  # blue, green, red
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
REGULAR, BOLD = 400, 700  # weights of the typeface
STROKE = cv2.FONT_HERSHEY_SIMPLEX


def write(
    picture: Picture,
    text: str,
    where: tuple[int, int],
    size: int,
    color: Color = WHITE,
    weight: int = REGULAR,
) -> None:
    """Draw `text` into `picture`; where: (x, y) of its left end on the baseline; size: in pixels,
    of a line's height."""
    if face := _typeface():
        cv2.putText(picture, text, where, color, face, size, weight)
        return
    text, scale, thick = _strokes(text, size, weight)
    cv2.putText(picture, text, where, STROKE, scale, color, thick, cv2.LINE_AA)


def width_of(text: str, size: int, weight: int = REGULAR) -> int:
    """How many pixels `write` will take."""
    if face := _typeface():
        _, _, width, _ = cv2.getTextSize((0, 0), text, (0, 0), face, size, weight)
        return int(width)
    text, scale, thick = _strokes(text, size, weight)
    return int(cv2.getTextSize(text, STROKE, scale, thick)[0][0])


def _strokes(text: str, size: int, weight: int) -> tuple[str, float, int]:
    """Text that the strokes have signs for, its scale and its thickness."""
    return text.encode("ascii", "replace").decode(), size / 32, 2 if weight >= BOLD else 1


@cache
def _typeface() -> Any:
    return cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None
