"""Letterbox: a frame at a model's size without squashing it, and its labels back at the frame's.

A frame whose aspect (width over height) is within ASPECT_TOLERANCE of the model's is resized to the
model's size. Any other is scaled to fit inside it and centered between bars of the mean color,
which the network sees as zeros; the bars' labels are cut off again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]  # (height, width) in pixels
Fit = Literal["stretch", "letterbox"]
# Training scales frames by 0.5 to 2 but keeps their aspect; a tenth is what rounding a size to the
# network's multiple changes, and the difference between 4:3 and 5:4 still is a stretch.
ASPECT_TOLERANCE = 0.1


@dataclass(frozen=True)
class Box:
    """The part of the model's input that shows the frame, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        return (
            slice(self.top, self.top + self.height),
            slice(self.left, self.left + self.width),
        )


def place_frame(frame: Size, model: Size, fit: Fit) -> Box:
    """The box that a frame of size `frame` fills in an input of size `model`."""
    (height, width), (high, wide) = frame, model
    ratio = (width * high) / (height * wide)  # of the aspects
    if fit == "stretch" or max(ratio, 1 / ratio) <= 1 + ASPECT_TOLERANCE:
        return Box(0, 0, high, wide)
    if ratio > 1:  # a wider frame: bars above and below
        high = max(1, round(wide * height / width))
    else:
        wide = max(1, round(high * width / height))
    return Box((model[0] - high) // 2, (model[1] - wide) // 2, high, wide)


def fit_frame(
    image: NDArray[np.uint8], size: Size, fit: Fit, mean: Sequence[float]
) -> NDArray[np.uint8]:
    """A frame (H, W, 3) uint8 BGR at `size`; the frame itself where it has that size.

    Args:
        image: the frame.
        size: (height, width) of the model.
        fit: what to do where the aspects differ.
        mean: of RGB in 0..1, the color of the bars.
    """
    if image.shape[:2] == size:
        return image
    bars = [round(255 * value) for value in reversed(mean)]
    return _resize_into(image, size, fit, cv2.INTER_LINEAR, bars)


def fit_labels(labels: NDArray[np.uint8], size: Size, fit: Fit) -> NDArray[np.uint8]:
    """A true label map (H, W) placed as `fit_frame` places its frame; 255, unlabeled, in bars."""
    if labels.shape == size:
        return labels
    return _resize_into(labels, size, fit, cv2.INTER_NEAREST_EXACT, [255])


def restore_labels(labels: NDArray[np.uint8], frame: Size, fit: Fit) -> NDArray[np.uint8]:
    """A model's labels (h, w) cut to the frame's box and brought to the size `frame`; a view of
    them where nothing changes."""
    size = labels.shape[0], labels.shape[1]
    if frame == size:
        return labels
    inner = labels[place_frame(frame, size, fit).window]
    if inner.shape == frame:
        return inner
    back = cv2.resize(inner, frame[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(back, np.uint8)


def _resize_into(
    image: NDArray[np.uint8], size: Size, fit: Fit, interpolation: int, bars: Sequence[int]
) -> NDArray[np.uint8]:
    box = place_frame((image.shape[0], image.shape[1]), size, fit)
    inner = np.asarray(
        cv2.resize(image, (box.width, box.height), interpolation=interpolation), np.uint8
    )
    if inner.shape[:2] == size:
        return inner
    whole = np.empty((*size, *image.shape[2:]), np.uint8)
    whole[:] = bars if image.ndim == 3 else bars[0]
    whole[box.window] = inner
    return whole
