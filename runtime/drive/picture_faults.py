"""Pictures that come but show nothing, or not one moment: found by statistics of a small copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError

Picture = NDArray[np.uint8]
SMALLEST = 64  # pixels of a side that is judged
ROWS, COLUMNS = 96, 128  # of the small copy, about
WHITE = 250  # and above: clipped
CELLS = 6, 8  # of the picture, in each of which there is texture or not
CELL = 4  # samples of a cell's side, each the mean of a few pixels, which evens out noise
FLAT = (
    1.0,
    0.02,
)  # deviation in a cell without texture: that many levels, and that share of its mean
SAME = 1  # level by which samples that were filled in or repeated may differ
DARK = 24  # levels: below, rows are alike in any picture
STRIPES, STRIPE = 4, 64  # of full height, for torn pictures: number and width
AROUND = 17  # rows that a row's step is compared with
STEP = 6.0  # levels between two rows, the least of a tear
REACH = 24  # pixels that a tear shifts by, at most
LEAST_SHIFT = 3
EXPLAINED = 0.5  # share of the step that may be left after the shift
WITHHELD = ("black", "half_decoded")  # causes of pictures that are not labeled


@dataclass(frozen=True)
class PictureLimits:
    """From where on a picture is called faulty; None: never.

    Attributes:
        black: level (0 to 255) that 99 % of the pixels do not exceed.
        overexposed: share of pixels that are clipped at white.
        blocked: share of the picture's cells that have no texture.
        half_decoded: share of the height, from the bottom, that is one color or one row repeated.
        torn: times the usual step between rows, at a row from which on all is shifted sideways;
            None also lets parts pass that repeat the picture before.
    """

    black: float | None = 10.0
    overexposed: float | None = 0.6
    blocked: float | None = 0.85
    half_decoded: float | None = 0.125
    torn: float | None = 3.0


@dataclass(frozen=True)
class PictureFault:
    """cause: a field of PictureLimits; text: for people."""

    cause: str
    text: str


class PictureJudge:
    """Looks at every picture of a stream.

    Args:
        limits: of a sound picture.
    """

    def __init__(self, limits: PictureLimits | None = None):
        self.limits = limits or PictureLimits()
        self._before: Picture | None = None

    def judge(self, image: Picture) -> list[PictureFault]:
        """The faults of a picture (H, W, 3) uint8 BGR; none of one that is too small to tell."""
        height, width = image.shape[:2]
        if min(height, width) < SMALLEST:
            return []
        small = np.ascontiguousarray(image[:: height // ROWS or 1, :: width // COLUMNS or 1])
        limits, luma = self.limits, np.ascontiguousarray(small[:, :, 1])
        before, self._before = self._before, luma
        black = limits.black is not None and find_level(luma, 0.99) <= limits.black
        if black:  # which has no texture either, and nothing else to tell
            return [PictureFault("black", "the picture is black")]
        texts = {
            "overexposed": find_white(luma, limits.overexposed),
            "half_decoded": find_fill(small, limits.half_decoded),
            "blocked": find_flatness(luma, limits.blocked),
            "torn": find_tear(image, limits.torn) or find_repeat(luma, before, limits.torn),
        }
        if texts["overexposed"] or texts["half_decoded"]:
            texts["blocked"] = texts["torn"] = (
                ""  # flat, and with a seam, for a reason already told
            )
        return [PictureFault(cause, text) for cause, text in texts.items() if text]


def find_level(luma: Picture, share: float) -> int:
    """The level that this share of the pixels does not exceed."""
    counts = np.bincount(luma.ravel(), minlength=256)
    return int(np.searchsorted(np.cumsum(counts), share * luma.size))


def find_white(luma: Picture, limit: float | None) -> str:
    share = cv2.countNonZero(cv2.inRange(luma, WHITE, 255)) / luma.size
    over = limit is not None and share >= limit
    return f"{100 * share:.0f} % of the picture is clipped at white" if over else ""


def find_flatness(luma: Picture, limit: float | None) -> str:
    """Of a lens that is covered: nothing has an edge."""
    if limit is None:
        return ""
    size = CELLS[1] * CELL, CELLS[0] * CELL
    means = cv2.resize(luma, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    cells = means.reshape(CELLS[0], CELL, CELLS[1], CELL)
    flat = cells.std(axis=(1, 3)) < FLAT[0] + FLAT[1] * cells.mean(axis=(1, 3))
    share = float(flat.mean())
    return f"{100 * share:.0f} % of the picture has no texture" if share >= limit else ""


def find_fill(small: Picture, limit: float | None) -> str:
    """Of a decoder that ran out of data: it fills the rest with a color, or with its last row."""
    if limit is None:
        return ""
    same = (cv2.absdiff(small[1:], small[:-1]) <= SAME).reshape(len(small) - 1, -1)
    alike = same.mean(axis=1) > 0.99
    different = np.flatnonzero(~alike[::-1])
    run = int(different[0]) if different.size else len(alike)
    share = run / len(alike)
    if share < limit or run == len(alike):
        return ""
    luma = small[-1, :, 1]
    textured, mean = float(luma.std()) > 8, float(luma.mean())
    told = textured or DARK < mean < WHITE
    return f"the lower {100 * share:.0f} % of the picture was not decoded" if told else ""


def find_repeat(luma: Picture, before: Picture | None, limit: float | None) -> str:
    """Of a buffer that was read while it was written: one part is still the picture before."""
    if limit is None or before is None or before.shape != luma.shape:
        return ""
    counts = cv2.inRange(cv2.absdiff(luma, before), SAME + 1, 255)
    changed = cv2.reduce(counts, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0] / (255 * luma.shape[1])
    least = len(changed) // 8
    for order, part in ((1, "upper"), (-1, "lower")):
        run = changed[::order]
        moved = np.flatnonzero(run > 0)
        length = int(moved[0]) if moved.size else len(run)
        # A scene that stands still is the same here and there, but not up to one row.
        new = run[length : length + 3]
        lit = luma[::order][:length].mean() > DARK if length else False
        if least <= length < len(run) - least and lit and new.mean() > 0.5:
            return f"the {part} {100 * length / len(run):.0f} % repeats the picture before"
    return ""


def find_tear(image: Picture, limit: float | None) -> str:
    """Of rows that belong to another moment: from one row on all is shifted sideways."""
    if limit is None or image.shape[1] < STRIPES * STRIPE:  # too narrow for stripes
        return ""
    height, width = image.shape[:2]
    centers = [(2 * i + 1) * width // (2 * STRIPES) - STRIPE // 2 for i in range(STRIPES)]
    places = [max(0, min(x, width - STRIPE)) for x in centers]  # in narrow pictures they overlap
    stripes = np.stack([image[:, x : x + STRIPE, 1] for x in places])
    steps = cv2.absdiff(stripes[:, 1:], stripes[:, :-1]).reshape(-1, stripes.shape[2])
    sums = cv2.reduce(steps, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    step = sums.reshape(STRIPES, height - 1).astype(np.float32) / stripes.shape[2]
    usual = cv2.blur(step, (AROUND, 1), borderType=cv2.BORDER_REFLECT)
    usual = (usual * AROUND - step) / (AROUND - 1)
    spikes = (step > limit * usual) & (step > STEP)
    for row in np.flatnonzero(spikes.sum(axis=0) >= STRIPES - 1):
        shifts = [
            _find_shift(s[row], s[row + 1], d[row]) for s, d in zip(stripes, step, strict=True)
        ]
        if sum(shift != 0 for shift in shifts) >= STRIPES - 1:
            return f"below row {row} the picture is shifted by about {max(shifts, key=abs)} pixels"
    return ""


def _find_shift(upper: Picture, lower: Picture, step: float) -> int:
    """The sideways shift in pixels that makes two rows alike; 0 if none does."""
    best = {}
    for shift in (*range(-REACH, -LEAST_SHIFT + 1), *range(LEAST_SHIFT, REACH + 1)):
        one, other = (
            (upper[shift:], lower[:-shift]) if shift > 0 else (upper[:shift], lower[-shift:])
        )
        best[shift] = float(cv2.norm(one, other, cv2.NORM_L1)) / len(one)
    found = min(best, key=lambda shift: best[shift])
    return found if best[found] < EXPLAINED * step else 0


def read_limits(written: Iterable[str]) -> PictureLimits:
    """Limits from "black=20" or "torn=off"; "off" switches all checks off.

    Raises:
        UsageError: there is no such check, or its limit is no number above 0.
    """
    names = [each.name for each in fields(PictureLimits)]
    limits = PictureLimits()
    for entry in written:
        name, _, value = entry.partition("=")
        if entry == "off":
            limits = replace(limits, **dict.fromkeys(names))
            continue
        if name not in names:
            raise UsageError(f"no picture check is called {name!r}: choose from {', '.join(names)}")
        try:
            number = None if value == "off" else float(value)
        except ValueError:
            number = 0.0
        if number is not None and not 0 < number < 1e6:
            raise UsageError(f"--picture-check {entry}: the limit is a number above 0, or off")
        limits = replace(limits, **{name: number})
    return limits
