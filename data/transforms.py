"""Augmentation on uint8 arrays with OpenCV; every random choice comes from the given generator.

image (H, W, 3) uint8 BGR, label (H, W) uint8 train ids with 255 for pixels that do not count. A
label may also be (H, W, M) uint8: maps that move with the train ids, which come first; what is
padded is 0 in them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .classes import IGNORE

Pair = tuple[np.ndarray, np.ndarray]
CROP_TRIES = 10  # for a crop under the category cap, as the usual recipes have it
JPEG_QUALITY = (20, 95)
DARK_GAIN, DARK_GAMMA = (0.15, 1.0), (1.0, 2.0)


@dataclass(frozen=True)
class View:
    """Where an augmented crop lies in its frame, which was resized to `size` (height, width)
    first. `crop` (height, width) and its corner `top`, `left` in pixels of that; then mirrored."""

    size: tuple[int, int]
    top: int
    left: int
    crop: tuple[int, int]
    mirrored: bool

    def cut(self, maps: np.ndarray, stride: int = 1) -> np.ndarray:
        """The crop out of maps of the whole frame at any resolution, interpolated linearly.

        Args:
            maps: (C, h, w) uint8, int16 or float32.
            stride: Pixels of the crop for one of the result, taken at their middle.

        Returns:
            (C, crop height / stride, crop width / stride); 0 outside the frame.
        """
        height, width = (side // stride for side in self.crop)
        (a, y), (b, x) = (
            (stride * have / want, (start + stride / 2) * have / want - 0.5)
            for have, want, start in zip(
                maps.shape[1:], self.size, (self.top, self.left), strict=True
            )
        )
        matrix = np.array([[b, 0, x], [0, a, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        result = np.empty((len(maps), height, width), maps.dtype)
        for target, source in zip(result, maps, strict=True):
            target[:] = cv2.warpAffine(
                # The border is repeated, or the last half cell inside the frame would fade to 0.
                source,
                matrix,
                (width, height),
                flags=flags,
                borderMode=cv2.BORDER_REPLICATE,
            )
        # What lies beyond the frame is unknown, though the repeated border has filled it.
        inside = (
            max(0, math.ceil((want - start) / stride - 0.5))
            for want, start in zip(self.size, (self.top, self.left), strict=True)
        )
        rows, columns = inside
        result[:, rows:] = 0
        result[:, :, columns:] = 0
        return np.ascontiguousarray(result[..., ::-1]) if self.mirrored else result


class Augment(BaseModel):
    """What is done to a training pair, in this order; the defaults do nothing but crop.

    `scale`: range of the random factor, on the image's own size, or on the largest with the same
    sides' ratio whose short and long side stay within `fit` (in pixels). `crop`: (height, width) in
    pixels; what a small image lacks is padded below and to the right. `category_cap`: a crop where
    one class takes more than this part is drawn again. `balanced`: the probability of a crop around
    a pixel of a class that is drawn evenly from those in the frame, so that rare ones come often.
    `flip`, `blur`, `jpeg`: probabilities; `blur_radius`: the largest standard deviation, in pixels;
    JPEG's quality is 20 to 95. `noise`: the largest standard deviation, in gray levels of 0..255;
    `noisy`: the probability of any noise. `dark`: the probability of `darken`, before the noise.
    `brightness`, `contrast`, `saturation`: a factor in 1 - x .. 1 + x; `hue`: a turn of -x .. x of
    the whole circle.
    `photometric`: the probability of each step of MMSegmentation's distortion, see `distort`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    crop: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    fit: tuple[int, int] | None = None
    category_cap: float = Field(default=1.0, gt=0, le=1)
    flip: float = Field(default=0.0, ge=0, le=1)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, lt=1)
    hue: float = Field(default=0.0, ge=0, le=0.5)
    balanced: float = Field(default=0.0, ge=0, le=1)
    blur: float = Field(default=0.0, ge=0, le=1)
    blur_radius: float = Field(default=1.0, gt=0)
    dark: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)
    noisy: float = Field(default=1.0, ge=0, le=1)
    jpeg: float = Field(default=0.0, ge=0, le=1)
    photometric: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Augment:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is [smallest, largest], both above 0, not {list(self.scale)}")
        if min(self.crop) < 1:
            raise ValueError(f"crop is [height, width] in pixels, not {list(self.crop)}")
        if self.fit and not 0 < self.fit[0] <= self.fit[1]:
            raise ValueError(f"fit is [short, long] in pixels, not {list(self.fit)}")
        return self

    def __call__(self, image: np.ndarray, label: np.ndarray, random: np.random.Generator) -> Pair:
        """-> image (crop, 3) uint8 BGR, label (crop) uint8, both contiguous."""
        image, label, _ = self.augment(image, label, random)
        return image, label

    def augment(
        self, image: np.ndarray, label: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, View]:
        """As the call, and where the crop lies: for maps of the frame in other resolutions."""
        factor = random.uniform(*self.scale)
        if self.fit:
            factor *= fitting_factor(label.shape[:2], self.fit)
        image, label = resize(image, label, factor)
        size = label.shape[:2]
        image, label = pad(image, label, self.crop)
        top, left = self._corner(label, random)
        window = (slice(top, top + self.crop[0]), slice(left, left + self.crop[1]))
        image, label = image[window], label[window]
        mirrored = random.random() < self.flip
        if mirrored:
            image, label = image[:, ::-1], label[:, ::-1]
        image = np.ascontiguousarray(image)
        if random.random() < self.blur:
            image = blur(image, radius=random.uniform(0, self.blur_radius))
        image = self._distort(image, random)
        view = View(size, top, left, self.crop, mirrored)
        return image, np.ascontiguousarray(label), view

    def _corner(self, label: np.ndarray, random: np.random.Generator) -> tuple[int, int]:
        if self.balanced and random.random() < self.balanced:
            corner = balanced_corner(label, self.crop, random)
            if corner is not None:
                return corner
        return random_corner(label, self.crop, self.category_cap, random)

    def _distort(self, image: np.ndarray, random: np.random.Generator) -> np.ndarray:
        image = change_brightness(
            image,
            factor=random.uniform(1 - self.brightness, 1 + self.brightness),
            contrast=random.uniform(1 - self.contrast, 1 + self.contrast),
        )
        if self.saturation:
            image = change_saturation(
                image, random.uniform(1 - self.saturation, 1 + self.saturation)
            )
        if self.hue:
            image = turn_hue(image, random.uniform(-self.hue, self.hue))
        if self.photometric:
            image = distort(image, self.photometric, random)
        if self.dark and random.random() < self.dark:
            image = darken(image, random.uniform(*DARK_GAIN), random.uniform(*DARK_GAMMA))
        # At 1 nothing is drawn, as before there was a choice: older runs resume bit for bit.
        if self.noise and (self.noisy == 1 or random.random() < self.noisy):
            image = add_noise(image, random.uniform(0, self.noise), random)
        if self.jpeg and random.random() < self.jpeg:
            image = recompress(image, int(random.integers(*JPEG_QUALITY)))
        return image


def fitting_factor(shape: tuple[int, ...], fit: tuple[int, int]) -> float:
    """The largest factor that keeps (height, width) within `fit`, (short, long)."""
    return min(fit[0] / min(shape), fit[1] / max(shape))


def resize(image: np.ndarray, label: np.ndarray, factor: float) -> Pair:
    """Image bilinear, label nearest; sizes are rounded, at least one pixel."""
    height, width = (max(1, round(side * factor)) for side in label.shape[:2])
    if (height, width) == label.shape[:2]:
        return image, label
    size = (width, height)
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        # Plain INTER_NEAREST reads at floor(x * scale), without the half pixel that the image's
        # bilinear resize has: labels would move against their image.
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def pad(image: np.ndarray, label: np.ndarray, size: tuple[int, int]) -> Pair:
    """To at least `size`, below and to the right: black, and not counted."""
    below, right = (max(0, want - have) for want, have in zip(size, label.shape[:2], strict=True))
    if not below and not right:
        return image, label
    border = (0, below, 0, right, cv2.BORDER_CONSTANT)
    return (
        cv2.copyMakeBorder(image, *border, value=(0, 0, 0)),
        # OpenCV fills the value up with zeros: 255 for the train ids, 0 for the maps behind them.
        cv2.copyMakeBorder(label, *border, value=(IGNORE,)),
    )


def random_corner(
    label: np.ndarray, size: tuple[int, int], category_cap: float, random: np.random.Generator
) -> tuple[int, int]:
    """(top, left) of a window of `size`; up to ten tries for one where no class exceeds the cap."""
    height, width = size
    for _ in range(CROP_TRIES):
        top = int(random.integers(label.shape[0] - height + 1))
        left = int(random.integers(label.shape[1] - width + 1))
        window = (slice(top, top + height), slice(left, left + width))
        # The last try is taken even if it is above the cap.
        if category_cap == 1 or _largest_part(label[window]) <= category_cap:
            break
    return top, left


def balanced_corner(
    label: np.ndarray, size: tuple[int, int], random: np.random.Generator
) -> tuple[int, int] | None:
    """(top, left) of a window of `size` that holds a pixel of a class drawn evenly from those in
    the frame; None where nothing counts."""
    ids = label if label.ndim == 2 else label[..., 0]
    present = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)[:IGNORE])
    if not len(present):
        return None
    pixels = np.flatnonzero(ids == random.choice(present))
    point = np.unravel_index(int(random.choice(pixels)), ids.shape)
    top, left = (
        int(random.integers(max(0, p - want + 1), min(p, have - want) + 1))
        for p, want, have in zip(map(int, point), size, ids.shape, strict=True)
    )
    return top, left


def _largest_part(label: np.ndarray) -> float:
    """Of the pixels that count, the part that the commonest class takes; 1 for a single class."""
    ids = label if label.ndim == 2 else label[..., 0]
    counts = np.bincount(ids.ravel(), minlength=256)[:IGNORE]
    return float(counts.max() / max(1, counts.sum()))


def change_brightness(image: np.ndarray, factor: float, contrast: float) -> np.ndarray:
    """Brightness by `factor`, then contrast about the mean gray value; clipped to 0..255."""
    if factor == 1 and contrast == 1:
        return image
    gray = factor * float(image.mean())
    # By a table, since convertScaleAbs would fold negative values up.
    table = np.arange(256) * (factor * contrast) + gray * (1 - contrast)
    return cv2.LUT(image, np.clip(np.rint(table), 0, 255).astype(np.uint8))


def darken(image: np.ndarray, gain: float, gamma: float) -> np.ndarray:
    """Gray levels, as parts of 255, to the power `gamma`, then times `gain`."""
    table = 255 * gain * (np.arange(256) / 255) ** gamma
    return cv2.LUT(image, np.rint(table).clip(0, 255).astype(np.uint8))


def change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """0: gray; 1: as it was; more: stronger colors."""
    gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(image, factor, gray, 1 - factor, 0)


def turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Every hue moved by `turn` of the whole circle."""
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    table = ((np.arange(256) + round(turn * 256)) % 256).astype(np.uint8)
    hsv[..., 0] = table[hsv[..., 0]]
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR_FULL)


def blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur with a standard deviation of `radius` pixels."""
    return cv2.GaussianBlur(image, (0, 0), radius) if radius > 0.1 else image


def add_noise(image: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise of a standard `deviation` in gray levels, the same in all channels."""
    noise = random.normal(0, deviation, image.shape[:2]).astype(np.float32)
    return np.clip(np.rint(image + noise[..., None]), 0, 255).astype(np.uint8)


def recompress(image: np.ndarray, quality: int) -> np.ndarray:
    """As a JPEG of `quality` (0 to 100) gives it back."""
    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, image.shape
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR), np.uint8)


def distort(image: np.ndarray, probability: float, random: np.random.Generator) -> np.ndarray:
    """MMSegmentation's photometric distortion: brightness moved by -32 .. 32,
    contrast and saturation multiplied by 0.5 .. 1.5, hue turned by a tenth of the circle at most,
    each with `probability`."""
    table = np.arange(256.0)
    if random.random() < probability:
        table = (table + random.uniform(-32, 32)).clip(0, 255)
    if random.random() < probability:
        table = (table * random.uniform(0.5, 1.5)).clip(0, 255)
    saturation = random.uniform(0.5, 1.5) if random.random() < probability else 1.0
    turn = random.uniform(-0.1, 0.1) if random.random() < probability else 0.0
    image = cv2.LUT(image, np.rint(table).astype(np.uint8))
    if saturation == 1 and turn == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    hues = (np.arange(256) + round(turn * 256)) % 256
    strengths = np.rint(np.arange(256) * saturation).clip(0, 255)
    tables = np.stack([hues, strengths, np.arange(256)], axis=-1).astype(np.uint8)
    return cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2BGR_FULL)
