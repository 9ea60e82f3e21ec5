"""The compiled loops of `argmax.py`, whose docstring explains why they are exact. Needs numba.

Compiled code is cached in the user's cache folder (or NUMBA_CACHE_DIR), or not at all. In the
package's folder, numba's default, it would outlive the package and hide the next one's modules.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numba import config as numba_config
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from .packages import cache_folder, can_write

Function = TypeVar("Function", bound=Callable[..., object])
Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
Ids = NDArray[np.int32]
Labels = NDArray[np.uint8]
Flags = NDArray[np.bool_]
UNDECIDED = 255
MARGIN, FLOOR = np.float32(2**-20), np.float32(1e-35)  # here, since the cache watches this file
WIDTH = 256  # columns of a piece of a band: 12 rows of them fit into 32 KiB
LOWEST = np.float32(-np.inf)
numba_settings: Any = numba_config


@cache
def cache_for_loops() -> Path | None:
    """Folder of the compiled loops; None where nothing can be written."""
    folder = Path(numba_settings.CACHE_DIR or cache_folder() / "compiled")
    return folder if can_write(folder) else None


def compile_loop(function: Function) -> Function:
    """Without the interpreter's lock, so that threads share a frame; rounding as written."""
    folder, before = cache_for_loops(), numba_settings.CACHE_DIR
    try:
        numba_settings.CACHE_DIR = str(folder or "")  # numba looks at it here, and never again
        # numpy's error model has no branch for a division by zero, which would keep loops scalar.
        made: Any = njit(nogil=True, cache=folder is not None, error_model="numpy")(function)
    finally:
        numba_settings.CACHE_DIR = before
    kept: Function = made
    return kept


@intrinsic
def multiply_add(typing_context: object, a: object, b: object, c: object) -> object:
    """a * b + c, rounded once."""

    def generate(context: object, builder: Any, signature: object, arguments: Any) -> object:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@compile_loop
def mix(a: np.float32, near: np.float32, b: np.float32, far: np.float32) -> np.float32:
    """a * near + b * far, rounded as PyTorch's compiled kernel does."""
    return multiply_add(a, near, b * far)  # type: ignore[call-arg]


@compile_loop
def take_row(logits: Floats, i: int, row: Floats, best: Floats, ids: Ids, codes: Labels) -> None:
    """Copy row i of logits (K, h, w) to row (K, w), and find each position's first argmax.

    best (2, w): room for the largest logit, and the largest of the classes before it. codes: the
    argmax, or UNDECIDED where a lower id is so near that rounding might make it equal.
    """
    classes, _, width = logits.shape
    for x in range(width):
        value = logits[0, i, x]
        row[0, x] = value
        best[0, x] = value
        best[1, x] = LOWEST
        ids[x] = 0
    for k in range(1, classes):
        for x in range(width):
            value = logits[k, i, x]
            row[k, x] = value
            # Selections in place of branches, here and below, so that the loops can be vectorized.
            before = best[0, x]
            larger = value > before
            best[1, x] = before if larger else best[1, x]
            best[0, x] = value if larger else before
            ids[x] = np.int32(k) if larger else ids[x]
    for x in range(width):
        lead = best[0, x] - best[1, x]
        decided = lead > MARGIN * abs(best[0, x]) + FLOOR
        codes[x] = np.uint8(ids[x]) if decided else np.uint8(UNDECIDED)


@compile_loop
def drop_losers(corners: Floats, winner: int, kept: Flags) -> None:
    """Clear `kept` (K,) of classes that trail `winner` at all four corners (4, K)."""
    a = corners[0, winner] - (MARGIN * abs(corners[0, winner]) + FLOOR)
    b = corners[1, winner] - (MARGIN * abs(corners[1, winner]) + FLOOR)
    c = corners[2, winner] - (MARGIN * abs(corners[2, winner]) + FLOOR)
    d = corners[3, winner] - (MARGIN * abs(corners[3, winner]) + FLOOR)
    for k in range(kept.size):
        trails = (corners[0, k] < a) & (corners[1, k] < b)
        kept[k] &= not (trails & (corners[2, k] < c) & (corners[3, k] < d))


@compile_loop
def race_two(
    top: Floats, bottom: Floats, ids: Labels, near: Floats, far: Floats, out: Labels
) -> None:
    """Labels of a cell, out (rows, columns), between two classes: the first one wins ties."""
    rows, columns = out.shape
    first, second = ids[0], ids[1]
    for y in range(rows):
        for x in range(columns):
            a = mix(top[0, x], near[y], bottom[0, x], far[y])
            b = mix(top[1, x], near[y], bottom[1, x], far[y])
            out[y, x] = second if b > a else first


@compile_loop
def race_all(
    top: Floats,
    bottom: Floats,
    ids: Labels,
    count: int,
    near: Floats,
    far: Floats,
    value: Floats,
    out: Labels,
) -> None:
    """Labels of a cell, out (rows, columns), among `count` classes in the order of their ids.

    top, bottom (count, columns): the classes' values at the cell's upper and lower corners' rows.
    """
    rows, columns = out.shape
    for y in range(rows):
        for x in range(columns):
            value[x] = mix(top[0, x], near[y], bottom[0, x], far[y])
            out[y, x] = ids[0]
        for k in range(1, count):
            for x in range(columns):
                rival = mix(top[k, x], near[y], bottom[k, x], far[y])
                larger = rival > value[x]
                value[x] = rival if larger else value[x]
                out[y, x] = ids[k] if larger else out[y, x]


@compile_loop
def fill(codes: Labels, starts: Positions, pairs: Positions, out: Labels) -> None:
    """The band `out` (rows, W) with every cell's upper left code; mixed cells are written later."""
    for j in range(len(pairs)):
        out[0, starts[j] : starts[j + 1]] = codes[pairs[j, 0]]
    # The first row is made cell by cell, the others are copies of it.
    for y in range(1, len(out)):
        out[y, :] = out[0, :]


@compile_loop
def take_larger(
    top: Floats,
    bottom: Floats,
    count: int,
    near: Floats,
    far: Floats,
    k: int,
    best: Floats,
    ids: Ids,
) -> None:
    """Class k where it beats `best`, in len(near) rows of `count` pixels between top and bottom."""
    code = np.int32(k)
    for y in range(len(near)):
        w, v = near[y], far[y]
        for x in range(count):
            value = mix(top[x], w, bottom[x], v)
            before = best[y, x]
            larger = value > before
            best[y, x] = value if larger else before
            ids[y, x] = code if larger else ids[y, x]


@compile_loop
def label_band(
    upper: Floats,
    lower: Floats,
    left: Ids,
    right: Ids,
    near: Floats,
    far: Floats,
    row_near: Floats,
    row_far: Floats,
    room: Floats,
    best: Floats,
    ids: Ids,
    out: Labels,
) -> None:
    """Labels of a band, out (rows, W), every pixel interpolated; upper, lower (K, w): the input
    rows that it lies between; left, right, near, far (W,): how each column reads them.

    room (2, WIDTH) and best, ids (rows or more, WIDTH): space for a piece of the band that stays in
    the nearest cache while all classes pass.
    """
    for begin in range(0, len(near), WIDTH):
        end = min(begin + WIDTH, len(near))
        count = end - begin
        west, east, w, v = left[begin:end], right[begin:end], near[begin:end], far[begin:end]
        best[:] = LOWEST
        ids[:] = 0
        for k in range(len(upper)):
            north, south = upper[k], lower[k]
            for x in range(count):
                room[0, x] = mix(north[west[x]], w[x], north[east[x]], v[x])
            for x in range(count):  # one loop for both would be twice as slow
                room[1, x] = mix(south[west[x]], w[x], south[east[x]], v[x])
            take_larger(room[0], room[1], count, row_near, row_far, k, best, ids)
        for y in range(len(out)):
            row = out[y, begin:end]
            for x in range(count):
                row[x] = np.uint8(ids[y, x])


@compile_loop
def label_cell(
    corners: Floats,
    ids_at: Ids,
    near: Floats,
    far: Floats,
    row_near: Floats,
    row_far: Floats,
    kept: Flags,
    ids: Labels,
    top: Floats,
    bottom: Floats,
    value: Floats,
    out: Labels,
) -> None:
    """Labels of one cell, out (rows, columns), among the classes that can win in it.

    corners (4, K), upper left, upper right, lower left and lower right, with the argmax `ids_at` of
    each; kept to value: space.
    """
    classes = corners.shape[1]
    kept[:] = True
    for corner in range(4):
        drop_losers(corners, ids_at[corner], kept)
    count = 0
    for k in range(classes):
        if kept[k]:
            ids[count] = k
            for x in range(len(near)):
                top[count, x] = mix(corners[0, k], near[x], corners[1, k], far[x])
                bottom[count, x] = mix(corners[2, k], near[x], corners[3, k], far[x])
            count += 1
    # Two classes are the usual border, and need no running maximum in memory.
    if count == 2:
        race_two(top, bottom, ids, row_near, row_far, out)
    else:
        race_all(top, bottom, ids, count, row_near, row_far, value, out)


@compile_loop
def find_mixed(upper: Labels, lower: Labels, pairs: Positions, mixed: Positions) -> int:
    """Write the cells of a band that have more than one argmax at their corners, or an undecided
    one, into `mixed`; returns how many. upper, lower (w,): the codes of its input rows."""
    count = 0
    for j in range(len(pairs)):
        left, right = pairs[j]
        code = upper[left]
        same = (code == upper[right]) & (code == lower[left])
        same &= (code == lower[right]) & (code != UNDECIDED)
        # Written in any case and counted if mixed, without a branch.
        mixed[count] = j
        count += not same
    return count


@compile_loop
def label_bilinear(
    logits: Floats,
    row_starts: Positions,
    row_pairs: Positions,
    row_near: Floats,
    row_far: Floats,
    starts: Positions,
    pairs: Positions,
    near: Floats,
    far: Floats,
    first: int,
    last: int,
    most_mixed: float,
    labels: Labels,
) -> int:
    """Write the bands first..last - 1 of cells into labels (H, W), from logits (K, h, w).

    Returns how many cells had to be interpolated. Where those are more than `most_mixed` (a
    share) of a band, it is interpolated as a whole, without looking which classes can win where.
    """
    classes, _, width = logits.shape
    widest = np.max(starts[1:] - starts[:-1])
    highest = np.max(row_starts[1:] - row_starts[:-1])
    upper, lower = np.empty((2, classes, width), np.float32)
    upper_ids, lower_ids = np.empty((2, width), np.int32)
    upper_codes, lower_codes = np.empty((2, width), np.uint8)
    best = np.empty((2, width), np.float32)
    # One more: `find_mixed` writes a cell before it knows whether it counts.
    mixed = np.empty(len(pairs) + 1, np.int64)
    corners, corner_ids = np.empty((4, classes), np.float32), np.empty(4, np.int32)
    kept = np.empty(classes, np.bool_)
    ids = np.empty(classes, np.uint8)
    top, bottom = np.empty((2, classes, widest), np.float32)
    value = np.empty(widest, np.float32)
    room = np.empty((2, WIDTH), np.float32)
    band_best, band_ids = (
        np.empty((highest, WIDTH), np.float32),
        np.empty((highest, WIDTH), np.int32),
    )
    west, east = np.empty((2, len(near)), np.int32)
    for j in range(len(pairs)):
        west[starts[j] : starts[j + 1]], east[starts[j] : starts[j + 1]] = pairs[j]
    held, total = -1, 0
    for i in range(first, last):
        if held == row_pairs[i, 0]:  # the band above left it as its lower row
            upper, lower = lower, upper
            upper_ids, lower_ids = lower_ids, upper_ids
            upper_codes, lower_codes = lower_codes, upper_codes
        else:
            take_row(logits, row_pairs[i, 0], upper, best, upper_ids, upper_codes)
        held = row_pairs[i, 1]
        take_row(logits, held, lower, best, lower_ids, lower_codes)
        band = slice(row_starts[i], row_starts[i + 1])
        count = find_mixed(upper_codes, lower_codes, pairs, mixed)
        total += count
        if count > most_mixed * len(pairs):
            label_band(
                upper, lower, west, east, near, far, row_near[band], row_far[band],
                room, band_best, band_ids, labels[band],
            )  # fmt: skip
            continue
        fill(upper_codes, starts, pairs, labels[band])
        for j in mixed[:count]:
            left, right = pairs[j]
            for k in range(classes):
                corners[0, k], corners[1, k] = upper[k, left], upper[k, right]
                corners[2, k], corners[3, k] = lower[k, left], lower[k, right]
            corner_ids[0], corner_ids[1] = upper_ids[left], upper_ids[right]
            corner_ids[2], corner_ids[3] = lower_ids[left], lower_ids[right]
            cell = slice(starts[j], starts[j + 1])
            label_cell(
                corners, corner_ids, near[cell], far[cell], row_near[band], row_far[band],
                kept, ids, top, bottom, value, labels[band, cell],
            )  # fmt: skip
    return total


@compile_loop
def label_shuffled(logits: Floats, factor: int, first: int, last: int, labels: Labels) -> None:
    """Write the pixels of rows first..last - 1 of logits (K * factor^2, h, w) into labels (H, W):
    the first argmax over K of each position's factor x factor pixels."""
    planes, _, width = logits.shape
    step = factor * factor
    best = np.empty(width, np.float32)
    ids = np.empty(width, np.int32)
    for i in range(first, last):
        for place in range(step):
            for x in range(width):
                best[x] = logits[place, i, x]
                ids[x] = 0
            for k in range(1, planes // step):
                for x in range(width):
                    value = logits[k * step + place, i, x]
                    larger = value > best[x]
                    best[x] = value if larger else best[x]
                    ids[x] = np.int32(k) if larger else ids[x]
            y, column = i * factor + place // factor, place % factor
            for x in range(width):
                labels[y, x * factor + column] = np.uint8(ids[x])
