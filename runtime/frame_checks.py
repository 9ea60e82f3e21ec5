"""Checks of a frame's shape and type, and the conversions that lose nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .artifact import Card


def check_camera_frame(frame: NDArray[np.generic], card: Card) -> NDArray[np.uint8]:
    """A camera's bytes as the artifact takes them, contiguous and writable.

    Raises UsageError for another shape or type.
    """
    frame, (height, width) = np.asarray(frame), card.camera_size or card.size
    if frame.shape != card.frame_shape or frame.dtype != np.uint8:
        raise UsageError(
            f"this artifact takes {card.input} frames of a {height}x{width} camera, uint8 "
            f"{card.frame_shape}, not {frame.dtype} {frame.shape}: have the camera deliver those, "
            "or export again for what it delivers (--input, --camera-size)"
        )
    return np.require(frame, requirements=["C", "W"])


def as_bgr(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """`frame` as contiguous, writable (H, W, 3) uint8 BGR, since OpenVINO takes nothing that it
    could not write to; ValueError where that would lose something."""
    frame = np.asarray(frame)
    if frame.size == 0:
        raise UsageError(f"the frame is empty, of shape {frame.shape}: was the image read at all?")
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4)):
        raise UsageError(
            f"a frame has shape (H, W, 3), not {frame.shape}: pass one image, channels last"
        )
    frame = _as_uint8(frame)
    if frame.ndim == 2 or frame.shape[2] == 1:
        frame = np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)
    return np.require(frame[:, :, :3], requirements=["C", "W"])


def _as_uint8(frame: NDArray[Any]) -> NDArray[np.uint8]:
    if frame.dtype == np.uint8:
        return frame
    if frame.dtype.kind in "iuf" and _whole_bytes(frame):
        return frame.astype(np.uint8)
    raise UsageError(
        f"a frame holds uint8 values 0..255, not {frame.dtype} that does not convert exactly: "
        "scale it to 0..255, round it and convert it with .astype(np.uint8)"
    )


def _whole_bytes(frame: NDArray[np.generic]) -> bool:
    """Whether all values are whole numbers in 0..255, and not a black and white image in 0..1."""
    if not np.isfinite(frame).all() or frame.min() < 0 or frame.max() > 255:
        return False
    of_unit_range = frame.dtype.kind == "f" and 0 < frame.max() <= 1
    # 0 and 1 alone may be an image scaled to 0..1: taken as bytes, it would be black.
    return not of_unit_range and bool((frame == np.floor(frame)).all())
