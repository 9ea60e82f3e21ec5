"""Text on pictures: OpenCV 5's own typeface, or the strokes that older versions draw."""

from __future__ import annotations

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]  # (H, W, 3) BGR
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
REGULAR, BOLD = 400, 700  # weights of the typeface
STROKE = cv2.FONT_HERSHEY_SIMPLEX


def write_text(
    picture: Picture,
    text: str,
    where: tuple[int, int],
    size: int,
    color: tuple[int, int, int] = WHITE,
    weight: int = REGULAR,
) -> None:
    """Draw text into a picture.

    Args:
        picture: (H, W, 3) uint8 BGR, which is changed.
        text: One line.
        where: (x, y) of its left end on the baseline, in pixels.
        size: Of a line's height, in pixels.
        color: Blue, green, red.
        weight: REGULAR or BOLD.
    """
    if face := _typeface():
        cv2.putText(picture, text, where, color, face, size, weight)
        return
    text, scale, thick = _strokes(text, size, weight)
    cv2.putText(picture, text, where, STROKE, scale, color, thick, cv2.LINE_AA)


def text_width(text: str, size: int, weight: int = REGULAR) -> int:
    """How many pixels `write_text` will take."""
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
