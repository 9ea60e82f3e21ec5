"""Images: read, painted with labels, with a legend, many on a sheet, written as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .classes import ClassSet, Color
from .files import write_atomically
from .lettering import BLACK, Picture, text_width, write_text
from .limits import check_limit, find_limit, find_variable, read_limited

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".tif", ".tiff", ".webp")
STRIP = 20  # pixels of height for a line of text


def read_image(path: Path) -> Picture:
    """A picture in color.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        DataError: if the file is missing, damaged, no picture or too large.
    """
    return decode_image(_read(path), str(path))


def read_png(path: Path) -> Picture:
    """A picture as it is stored, such as a label file.

    Returns:
        (H, W) or (H, W, 3) BGR, of the file's own type.

    Raises:
        DataError: as `read_image`.
    """
    return decode_image(_read(path), str(path), cv2.IMREAD_UNCHANGED)


def read_gray(path: Path) -> Picture:
    """A label file as class ids, whatever the PNG's own type.

    Returns:
        (H, W) uint8.

    Raises:
        DataError: as `read_image`.
    """
    return decode_image(_read(path), str(path), cv2.IMREAD_GRAYSCALE)


def _read(path: Path) -> NDArray[np.uint8]:
    # imread would print its own complaint, and hides why it failed.
    try:
        return np.frombuffer(read_limited(path, "image_bytes", DataError), np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def decode_image(content: NDArray[np.uint8], name: str, flags: int = cv2.IMREAD_COLOR) -> Picture:
    """A picture from a file's content; how many pixels it may have is checked before decoding.

    Args:
        content: (bytes,) uint8.
        name: For messages.
        flags: OpenCV's IMREAD_*.

    Raises:
        DataError: if it is damaged, no picture, or has more pixels than OPENCV_IO_MAX_IMAGE_PIXELS.
    """
    check_limit("image_bytes", content.size, name, DataError)
    try:
        image = cv2.imdecode(content, flags) if content.size else None
    except cv2.error as error:
        if "pixels" not in str(error) and "CV_IO_MAX_IMAGE" not in str(error):
            raise DataError(f"{name} is damaged or not an image") from error
        raise DataError(
            f"{name} has more pixels than the limit ({find_limit('image_pixels'):,}): if it is "
            f"sound, set {find_variable('image_pixels')} higher"
        ) from error
    if image is None:
        raise DataError(f"{name} is damaged or not an image")
    return image  # type: ignore[return-value]


def colorize(labels: NDArray[np.uint8], palette: Sequence[Color]) -> Picture:
    """labels (H, W) uint8 -> (H, W, 3) uint8 BGR; ids beyond the palette are black."""
    table = np.zeros((256, 3), np.uint8)
    # Palettes are RGB, as data sets list them, pictures BGR, as OpenCV has them.
    table[: len(palette)] = np.array(palette, np.uint8)[:, ::-1]
    return np.asarray(table[labels])


def blend(
    frame: Picture, labels: NDArray[np.uint8], palette: Sequence[Color], opacity: float = 0.5
) -> Picture:
    """Lay labels over their frame.

    Args:
        frame: (H, W, 3) uint8 BGR.
        labels: (H, W) uint8; where an id is beyond the palette the frame stays as it is.
        palette: (red, green, blue) by class id.
        opacity: 0..1 of the colors.

    Returns:
        (H, W, 3) uint8 BGR.
    """
    mixed = cv2.addWeighted(frame, 1 - opacity, colorize(labels, palette), opacity, 0)
    if labels.max(initial=0) >= len(palette):
        mixed = np.where((labels < len(palette))[..., None], mixed, frame)
    return np.asarray(mixed, np.uint8)


def add_title(picture: Picture, title: str, width: int) -> Picture:
    """The picture at `width` pixels, a line of text above it."""
    height = max(1, round(picture.shape[0] * width / picture.shape[1]))
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    strip = np.full((STRIP, width, 3), 255, np.uint8)
    write_text(strip, title, (4, STRIP - 6), STRIP - 6, BLACK)
    return np.vstack([strip, small])


def draw_legend(classes: ClassSet, width: int, row: int = 22) -> Picture:
    """(H, width, 3) BGR: a patch and a name for every class, in rows of columns of one width."""
    wide = max(text_width(name, row - 8) for name in classes.names) + 2 * row
    columns = max(1, min(len(classes), width // wide))
    rows = -(-len(classes) // columns)
    columns = -(-len(classes) // rows)  # as even as the rows can be
    picture = np.full((rows * row + 8, width, 3), 255, np.uint8)
    for i, (name, color) in enumerate(zip(classes.names, classes.palette, strict=True)):
        x, y = i % columns * (width // columns) + 4, i // columns * row + 4
        corners = (x + 3, y + 3), (x + row - 4, y + row - 4)
        cv2.rectangle(picture, *corners, color[::-1], -1)
        cv2.rectangle(picture, *corners, BLACK, 1)  # white and pale classes on white paper
        write_text(picture, name, (x + row + 2, y + row - 7), row - 8, BLACK)
    return picture


def arrange(pictures: Sequence[Picture], columns: int) -> Picture:
    """A sheet of pictures of one width, row by row; what a row lacks is white."""
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return np.vstack([_arrange_row(row, columns) for row in rows])


def _arrange_row(pictures: Sequence[Picture], columns: int) -> Picture:
    height = max(picture.shape[0] for picture in pictures)
    width = pictures[0].shape[1]
    row = np.full((height, width * columns, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        row[: picture.shape[0], number * width : (number + 1) * width] = picture
    return row


def encode_png(picture: Picture) -> bytes:
    """(H, W) or (H, W, 3) uint8 as the content of a PNG file."""
    return cv2.imencode(".png", picture)[1].tobytes()


def write_png(path: Path, picture: Picture) -> None:
    """Write (H, W) or (H, W, 3) uint8 as a file that appears whole or not at all."""
    write_atomically(path, encode_png(picture))
