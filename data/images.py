"""Pictures for people: labels in color, laid over their frames, many to a sheet."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .classes import ClassSet

FONT = cv2.FONT_HERSHEY_SIMPLEX
STRIP = 20  # pixels of height for a line of text


def painted(label: np.ndarray, classes: ClassSet) -> np.ndarray:
    """label (H, W) uint8 -> (H, W, 3) uint8 BGR; black where nothing counts."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = np.array(classes.palette, np.uint8)[:, ::-1]
    picture: np.ndarray = table[label]
    return picture


def overlaid(image: np.ndarray, label: np.ndarray, classes: ClassSet) -> np.ndarray:
    """Half frame, half colors; the frame alone where nothing counts."""
    colors = painted(label, classes)
    mixed = cv2.addWeighted(image, 0.5, colors, 0.5, 0)
    return np.where((label < len(classes))[..., None], mixed, image)


def titled(picture: np.ndarray, title: str, width: int) -> np.ndarray:
    """The picture at `width` pixels, a line of text above it."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    strip = np.full((STRIP, width, 3), 255, np.uint8)
    cv2.putText(strip, title, (4, STRIP - 6), FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack([strip, small])


def legend(classes: ClassSet, width: int) -> np.ndarray:
    """The class names on their colors, in as many lines as they need."""
    cell = 160
    columns = max(1, width // cell)
    lines = -(-len(classes) // columns)
    picture = np.full((lines * STRIP, width, 3), 255, np.uint8)
    for index, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        top, left = index // columns * STRIP, index % columns * cell
        cv2.rectangle(picture, (left + 2, top + 3), (left + 18, top + 17), color[::-1], -1)
        cv2.putText(picture, name[:20], (left + 22, top + 14), FONT, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return picture


def sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one width, row by row; what a row lacks is white."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return np.vstack([_row(row, columns) for row in rows])


def _row(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    height = max(picture.shape[0] for picture in pictures)
    width = pictures[0].shape[1]
    row = np.full((height, width * columns, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        row[: picture.shape[0], number * width : (number + 1) * width] = picture
    return row


def png(picture: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as the content of a PNG file."""
    done, content = cv2.imencode(".png", picture)
    assert done, picture.shape
    return content.tobytes()
