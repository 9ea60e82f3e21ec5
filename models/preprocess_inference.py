"""Infer what a preprocessing does from one frame: resize, padding, order, mean, std."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from ..data.letterbox import Fit, find_view

Frame = NDArray[np.uint8]  # (H, W, 3) BGR
Pixels = NDArray[np.float32]  # (H, W, 3)
Region = tuple[slice, slice]

# Roundings of a resize in uint8, as a share of the spread of what a network reads; a neighboring
# way to resize is off by 0.03 and more on a drawn scene.
SAME = 0.012
LETTERBOX = "bilinear with padding (letterbox, the frame at the top left)"
MIDDLE = "bilinear with padding (letterbox, the frame in the middle)"
CROPPED = "bilinear of the frame's middle (cropped to the aspect)"
# What `fit` they are.
RULES: dict[str, Fit] = {
    "bilinear": "stretch",
    LETTERBOX: "letterbox",
    MIDDLE: "letterbox_center",
    CROPPED: "crop",
}
WHOLE = (slice(None), slice(None))


@dataclass(frozen=True)
class Found:
    """What a preprocessing does, inferred from one frame.

    Attributes:
        resize: a name that `_resized` knows, or "unknown".
        order: of the channels, "rgb" or "bgr".
        mean: in that order, of pixels in 0..1.
        std: in that order, of pixels in 0..1.
        residual: what this does not explain, as a share of the spread.
        padding: in that order, what stands for black beside the frame, 0..255; None without.
    """

    resize: str
    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    residual: float
    padding: tuple[float, ...] | None = None


def identify(theirs: Pixels, frame: Frame, expected: str = "bilinear") -> Found:
    """The resize, order, mean and standard deviation that turn `frame` into `theirs`.

    Every known resize and either order are tried; scale and shift of each channel are a least
    squares fit, so that they are read off and need not be guessed. The `expected` resize is taken
    wherever it explains what is there: where a frame is enlarged, others do the same.
    """
    tries = [
        _fit(theirs, name, pixels, region, order)
        for name, pixels, region in _resized(frame, theirs.shape[:2])
        for order in ("rgb", "bgr")
    ]
    best = min(tries, key=lambda found: found.residual)
    if best.residual > SAME:
        return Found("unknown", best.order, best.mean, best.std, best.residual)
    usual = min(
        (each for each in tries if each.resize == expected),
        key=lambda found: found.residual,
        default=best,
    )
    return usual if usual.residual <= SAME else best


def _fit(theirs: Pixels, name: str, pixels: Pixels, region: Region, order: str) -> Found:
    """Of the `region` where the frame lies; what is beside it has to be one color."""
    ours = (pixels if order == "rgb" else pixels[..., ::-1])[region]
    inner = theirs[region]
    beside = np.ones(theirs.shape[:2], bool)
    beside[region] = False
    means, stds, colors, left = [], [], [], 0.0
    for channel in range(3):
        x, y = ours[..., channel].ravel().astype(float), inner[..., channel].ravel().astype(float)
        slope = float(np.cov(x, y, bias=True)[0, 1] / max(x.var(), 1e-12))
        shift = float(y.mean() - slope * x.mean())
        # A constant channel has no slope; the division below would end in infinities.
        slope = slope if abs(slope) > 1e-12 else 1e-12
        spread = max(y.std(), 1e-12)
        left = max(left, float((y - slope * x - shift).std() / spread))
        if beside.any():
            rest = theirs[..., channel][beside]
            left = max(left, float(rest.std() / spread))
            colors.append((float(rest.mean()) - shift) / slope)
        means.append(-shift / slope / 255)
        stds.append(1 / slope / 255)
    return Found(name, order, tuple(means), tuple(stds), left, tuple(colors) or None)


def _resized(frame: Frame, size: tuple[int, ...]) -> list[tuple[str, Pixels, Region]]:
    """The frame in RGB at (height, width) in every way known, and where in that it lies."""
    height, width = size[0], size[1]
    rgb = np.ascontiguousarray(frame[..., ::-1])
    ways: Mapping[str, int] = {
        "bilinear": cv2.INTER_LINEAR,
        "nearest": cv2.INTER_NEAREST,
        "by area": cv2.INTER_AREA,
        "bicubic": cv2.INTER_CUBIC,
    }
    made: list[tuple[str, Any, Region]] = [
        (name, cv2.resize(rgb, (width, height), interpolation=w), WHOLE) for name, w in ways.items()
    ]
    tensor = torch.from_numpy(rgb.transpose(2, 0, 1))[None].float()
    for name, options in {
        "bilinear with antialiasing": {"antialias": True},
        "bilinear with aligned corners (half a pixel off)": {"align_corners": True},
    }.items():
        image = F.interpolate(tensor, (height, width), mode="bilinear", **options)
        made.append((name, image[0].permute(1, 2, 0).numpy(), WHOLE))
    made += _letterboxed(rgb, height, width)
    middle = rgb[find_view((rgb.shape[0], rgb.shape[1]), (height, width), "crop")]
    made.append(
        (CROPPED, cv2.resize(middle, (width, height), interpolation=cv2.INTER_LINEAR), WHOLE)
    )
    return [(name, np.asarray(image, np.float32), region) for name, image, region in made]


def _letterboxed(rgb: Frame, height: int, width: int) -> list[tuple[str, Any, Region]]:
    """The frame's aspect kept, the rest black: at the top left, and in the middle."""
    factor = min(height / rgb.shape[0], width / rgb.shape[1])
    h, w = round(rgb.shape[0] * factor), round(rgb.shape[1] * factor)
    small = cv2.resize(rgb, (w, h), interpolation=cv2.INTER_LINEAR)
    made: list[tuple[str, Any, Region]] = []
    for name, top, left in (
        (LETTERBOX, 0, 0),
        (MIDDLE, (height - h) // 2, (width - w) // 2),
    ):
        canvas = np.zeros((height, width, 3), np.uint8)
        region = slice(top, top + h), slice(left, left + w)
        canvas[region] = small
        made.append((name, canvas, region))
    return made
