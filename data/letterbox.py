"""Letterbox, crop or stretch: a frame at a model's size, and its labels back at the frame's.

A frame whose aspect (width over height) is within ASPECT_TOLERANCE of the model's is resized to the
model's size. The card says what happens to any other:

- `letterbox`: it is scaled to fit inside and lies at the top left, the rest black, as training pads
  frames that are smaller than its crops; the labels of the rest are cut off again.
- `crop`: its middle, as much as has the model's aspect, is resized; the labels beside it are 255,
  which is no class: evaluation leaves those pixels out and reports how many they were.
- `stretch`: it is resized anyway.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .classes import IGNORE

Size = tuple[int, int]  # (height, width) in pixels
Fit = Literal["stretch", "letterbox", "crop"]
# Training scales frames by 0.5 to 2 but keeps their aspect; a tenth is what rounding a size to the
# network's multiple changes, and the difference between 4:3 and 5:4.
ASPECT_TOLERANCE = 0.1


def check_fit(fit: str) -> None:
    """Raises UsageError if there is no such way to bring a frame to a size."""
    if fit not in get_args(Fit):
        raise UsageError(f"fit is {', '.join(get_args(Fit))}, not {fit!r}")


def fit_size(frame: Size, model: Size, fit: Fit) -> Size:
    """The size that what a model sees of a frame takes at the top left of its input."""
    (height, width), (high, wide) = frame, model
    ratio = _aspects(frame, model)
    if fit != "letterbox" or _same_aspect(ratio):
        return model
    if ratio > 1:
        return max(1, round(wide * height / width)), wide
    return high, max(1, round(high * width / height))


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


def fit_frame(image: NDArray[np.uint8], size: Size, fit: Fit) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 BGR at `size`; the frame itself where it has that size."""
    # Black, and all of it below or to the right: csfcn_nano at 360x480 on CamVid frames cut to 16:9
    # had 62 % mIoU so, the same stretched, and 49 % between bars of the mean color.
    return _resize_into(image, size, fit, cv2.INTER_LINEAR, 0)


def fit_labels(labels: NDArray[np.uint8], size: Size, fit: Fit) -> NDArray[np.uint8]:
    """A true label map (H, W) placed as its frame is by `fit_frame`; the rest is 255, unlabeled."""
    return _resize_into(labels, size, fit, cv2.INTER_NEAREST_EXACT, IGNORE)


def restore_labels(labels: NDArray[np.uint8], frame: Size, fit: Fit) -> NDArray[np.uint8]:
    """A model's labels (h, w) of a frame of size `frame`, at that size; a view of them where
    nothing is scaled. Beside what the model saw they are 255, unlabeled."""
    size = (labels.shape[0], labels.shape[1])
    height, width = fit_size(frame, size, fit)
    rows, columns = find_view(frame, size, fit)
    seen = (rows.stop - rows.start, columns.stop - columns.start)
    back: NDArray[np.uint8] = labels[:height, :width]
    if back.shape != seen:
        back = cv2.resize(back, seen[::-1], interpolation=cv2.INTER_NEAREST_EXACT)  # type: ignore[assignment]
    if seen == frame:
        return back
    whole = np.full(frame, IGNORE, np.uint8)
    whole[rows, columns] = back
    return whole


def _resize_into(
    image: NDArray[np.uint8], size: Size, fit: Fit, interpolation: int, rest: int
) -> NDArray[np.uint8]:
    if image.shape[:2] == size:
        return image
    frame = (image.shape[0], image.shape[1])
    image = image[find_view(frame, size, fit)]
    height, width = fit_size(frame, size, fit)
    own = np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)
    if (height, width) == size:
        return own
    whole = np.full((*size, *image.shape[2:]), rest, np.uint8)
    whole[:height, :width] = own
    return whole
