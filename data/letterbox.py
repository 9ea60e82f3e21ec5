"""Letterbox, crop or stretch: a frame at a model's size, and its labels back at the frame's.

A frame whose aspect (width over height) is within ASPECT_TOLERANCE of the model's is resized to the
model's size. The card says what happens to any other:

- `letterbox`: it is scaled to fit inside and lies at the top left, the rest black, as training pads
  frames that are smaller than its crops; the labels of the rest are cut off again.
- `letterbox_center`: the same, with the frame in the middle.
- `crop`: its middle, as much as has the model's aspect, is resized; the labels beside it are 255,
  which is no class: evaluation leaves those pixels out and reports how many they were.
- `stretch`: it is resized anyway.

What is beside a letterboxed frame may have another color than black, `pad_color`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .classes import IGNORE

Size = tuple[int, int]  # (height, width) in pixels
Fit = Literal["stretch", "letterbox", "letterbox_center", "crop"]
Color = tuple[int, int, int]  # RGB, 0..255
# Training scales frames by 0.5 to 2 but keeps their aspect; a tenth is what rounding a size to the
# network's multiple changes, and the difference between 4:3 and 5:4.
ASPECT_TOLERANCE = 0.1


def check_fit(fit: str, pad_color: Sequence[int] | None = None) -> None:
    """Raises UsageError if there is no such way to bring a frame to a size, or no such color."""
    if fit not in get_args(Fit):
        raise UsageError(f"fit is {', '.join(get_args(Fit))}, not {fit!r}")
    if pad_color is None:
        return
    levels = pad_color if isinstance(pad_color, (tuple, list)) else ()
    if len(levels) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in levels):
        raise UsageError(
            f"a pad color is R,G,B, each a whole number 0..255, such as 114,114,114, not "
            f"{pad_color!r:.60}"
        )
    if not is_letterbox(fit):
        raise UsageError(
            f"a pad color is of what lies beside a letterboxed frame, and nothing does with fit "
            f"{fit}: choose letterbox or letterbox_center, or leave the color out"
        )


def is_letterbox(fit: str) -> bool:
    """Whether a fit keeps the aspect and pads, in the middle or not."""
    return fit.startswith("letterbox")


def find_place(frame: Size, model: Size, fit: Fit) -> tuple[slice, slice]:
    """The rows and columns of a model's input that what it sees of a frame takes."""
    (height, width), (high, wide) = frame, model
    ratio = _aspects(frame, model)
    if is_letterbox(fit) and not _same_aspect(ratio):
        if ratio > 1:
            high = max(1, round(wide * height / width))
        else:
            wide = max(1, round(high * width / height))
    if fit == "letterbox_center":
        return _middle(model[0], high), _middle(model[1], wide)
    return slice(0, high), slice(0, wide)


def find_view(frame: Size, model: Size, fit: Fit) -> tuple[slice, slice]:
    """The rows and columns of a frame that a model sees."""
    height, width = frame
    ratio = _aspects(frame, model)
    if fit != "crop" or _same_aspect(ratio):
        return slice(0, height), slice(0, width)
    if ratio > 1:
        return slice(0, height), _middle(width, width / ratio)
    return _middle(height, height * ratio), slice(0, width)


def _aspects(frame: Size, model: Size) -> float:
    """The frame's aspect over the model's."""
    return (frame[1] * model[0]) / (frame[0] * model[1])


def _same_aspect(ratio: float) -> bool:
    return max(ratio, 1 / ratio) <= 1 + ASPECT_TOLERANCE


def _middle(side: int, part: float) -> slice:
    length = max(1, round(part))
    return slice((side - length) // 2, (side - length) // 2 + length)


def fit_frame(
    image: NDArray[np.uint8], size: Size, fit: Fit, pad_color: Color | None = None
) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 BGR at `size`; the frame itself where it has that size. `pad_color`
    is of what is beside it, black by default."""
    # Black, and all of it below or to the right, unless a network was trained otherwise: csfcn_nano
    # at 360x480 on CamVid frames cut to 16:9 had 62 % mIoU so, the same stretched, and 49 % between
    # bars of the mean color.
    rest = pad_color[::-1] if pad_color else 0
    return _resize_into(image, size, fit, cv2.INTER_LINEAR, rest)


def fit_labels(labels: NDArray[np.uint8], size: Size, fit: Fit) -> NDArray[np.uint8]:
    """A true label map (H, W) placed as its frame is by `fit_frame`; the rest is 255, unlabeled."""
    return _resize_into(labels, size, fit, cv2.INTER_NEAREST_EXACT, IGNORE)


def restore_labels(labels: NDArray[np.uint8], frame: Size, fit: Fit) -> NDArray[np.uint8]:
    """A model's labels (h, w) of a frame of size `frame`, at that size; a view of them where
    nothing is scaled. Beside what the model saw they are 255, unlabeled."""
    size = (labels.shape[0], labels.shape[1])
    rows, columns = find_view(frame, size, fit)
    seen = (rows.stop - rows.start, columns.stop - columns.start)
    back: NDArray[np.uint8] = labels[find_place(frame, size, fit)]
    if back.shape != seen:
        back = cv2.resize(back, seen[::-1], interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
    if seen == frame:
        return back
    whole = np.full(frame, IGNORE, np.uint8)
    whole[rows, columns] = back
    return whole


def _resize_into(
    image: NDArray[np.uint8], size: Size, fit: Fit, interpolation: int, rest: int | Color
) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    frame = (image.shape[0], image.shape[1])
    image = image[find_view(frame, size, fit)]
    place = find_place(frame, size, fit)
    high, wide = (part.stop - part.start for part in place)
    own = np.asarray(cv2.resize(image, (wide, high), interpolation=interpolation), np.uint8)
    if (high, wide) == size:
        return own
    whole = np.full((*size, *image.shape[2:]), rest, np.uint8)
    whole[place] = own
    return whole
