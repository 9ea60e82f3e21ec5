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
ROWS, COLUMNS = 64, 128  # of the small copy, about
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
TEAR_ROWS = 480  # of the stripes, at least: of taller pictures not every row is looked at
AROUND = 17  # rows that a row's step is compared with
STEP = 2.0  # levels between two rows, the least of a tear
PLACES = 2  # in a picture that may be a tear, at most
ACROSS = 1024  # pixels of a row that are searched for its shift, at most
REACH = 24  # pixels that a tear shifts by, at most
LEAST_SHIFT = 3
EXPLAINED = 0.45  # share of the step that may be left after the shift
JUMP = 1.7  # times the step of the rows beside it that a tear's is
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
        frozen: times that a picture comes again, byte for byte; of a whole stream, see `Capture`.
    """

    black: float | None = 10.0
    overexposed: float | None = 0.6
    blocked: float | None = 0.85
    half_decoded: float | None = 0.125
    torn: float | None = 1.7
    frozen: float | None = 2.0


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
        if is_dark(luma, limits.black):  # which has no texture either, and nothing else to tell
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


def is_dark(luma: Picture, limit: float | None) -> bool:
    """Whether 99 % of the pixels are at most that bright."""
    if limit is None:
        return False
    lit = cv2.countNonZero(cv2.inRange(luma, float(np.floor(limit)) + 1, 255))
    return bool(lit <= 0.01 * luma.size)


def find_white(luma: Picture, limit: float | None) -> str:
    """Of a sun or a gain that is too much: pixels that hold nothing but white."""
    share = cv2.countNonZero(cv2.inRange(luma, WHITE, 255)) / luma.size
    over = limit is not None and share >= limit
    return f"{100 * share:.0f} % of the picture is clipped at white" if over else ""


def find_flatness(luma: Picture, limit: float | None) -> str:
    """Of a lens that is covered: nothing has an edge."""
    if limit is None:
        return ""
    size = CELLS[1] * CELL, CELLS[0] * CELL
    means = cv2.resize(luma, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    cells = CELLS[1], CELLS[0]
    mean = cv2.resize(means, cells, interpolation=cv2.INTER_AREA)
    square = cv2.resize(means * means, cells, interpolation=cv2.INTER_AREA)
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    flat = deviation < FLAT[0] + FLAT[1] * mean
    share = float(flat.mean())
    return f"{100 * share:.0f} % of the picture has no texture" if share >= limit else ""


def find_fill(small: Picture, limit: float | None) -> str:
    """Of a decoder that ran out of data: it fills the rest with a color, or with its last row."""
    if limit is None:
        return ""
    steps = cv2.absdiff(small[1:], small[:-1]).reshape(len(small) - 1, -1)
    counts = cv2.reduce(cv2.inRange(steps, 0, SAME), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0]
    alike = counts > 0.99 * 255 * steps.shape[1]
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
    """Of rows that belong to another moment: from one row on all is shifted sideways.

    Places come from a few stripes, where rows differ by more than those around do; only there whole
    rows are compared, in each shift.
    """
    height, width = image.shape[:2]
    if limit is None or width < STRIPES * STRIPE:  # too narrow for stripes
        return ""
    stride = height // TEAR_ROWS or 1
    rows = image[::stride]
    centers = [(2 * i + 1) * width // (2 * STRIPES) - STRIPE // 2 for i in range(STRIPES)]
    places = [max(0, min(x, width - STRIPE)) for x in centers]
    # All channels, since picking one of three costs more than to compare them.
    stripes = np.concatenate([rows[:, x : x + STRIPE] for x in places], axis=1)
    step = _measure_steps(stripes.reshape(len(rows), -1))
    usual = cv2.blur(step, (1, AROUND), borderType=cv2.BORDER_REFLECT)
    usual = (usual * AROUND - step) / (AROUND - 1)
    excess = (step - limit * usual)[:, 0]
    found = np.flatnonzero((excess > 0) & (step[:, 0] > STEP))
    for place in found[np.argsort(-excess[found])][:PLACES]:
        first = max(0, int(place) * stride - 1)  # a row before those that the step is between
        row, shift = _find_shift(image[first : int(place + 1) * stride + 2])
        if shift:
            return f"below row {first + row} the picture is shifted by about {shift} pixels"
    return ""


def _measure_steps(luma: Picture) -> NDArray[np.float32]:
    """Mean difference of each row to the next, (rows - 1, 1)."""
    sums = cv2.reduce(cv2.absdiff(luma[1:], luma[:-1]), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return np.asarray(sums / luma.shape[1], np.float32)


def _find_shift(rows: Picture) -> tuple[int, int]:
    """(the row behind which the step is, the sideways shift in pixels that explains it or 0)."""
    middle = rows.shape[1] // 2
    reach = min(ACROSS // 2, middle)
    luma = np.ascontiguousarray(rows[:, middle - reach : middle + reach, 1])
    steps = _measure_steps(luma)[:, 0]
    row = int(steps.argmax())
    beside = np.delete(steps, row)
    if beside.size and steps[row] < JUMP * beside.mean():
        return row, 0
    upper, lower = luma[row, REACH:-REACH], luma[row + 1]
    moved = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(lower, upper.size))
    left = cv2.absdiff(moved, np.ascontiguousarray(np.broadcast_to(upper, moved.shape)))
    sums = cv2.reduce(left, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0] / upper.size
    still = sums[REACH]
    sums[REACH - LEAST_SHIFT + 1 : REACH + LEAST_SHIFT] = np.inf
    best = int(sums.argmin())
    return row, best - REACH if sums[best] < EXPLAINED * still else 0


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
