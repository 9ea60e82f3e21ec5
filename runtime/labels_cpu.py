"""The compiled loops of `labels.py`, whose head says why they are exact. Needs numba.

Compiled code is kept in the folder `__pycache__` here, else in the user's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])
UNDECIDED = 255
MARGIN, FLOOR = np.float32(2**-20), np.float32(1e-35)  # here, since the cache watches this file
LOWEST = np.float32(-np.inf)


def compiled(function: Function) -> Function:
    """Without the interpreter's lock, so that threads share a frame; rounding as written."""
    try:
        made: Any = njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # no folder for the cache can be written, as on a locked-down vehicle
        made = njit(nogil=True, error_model="numpy")(function)
    kept: Function = made
    return kept


@intrinsic
def fused(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@compiled
def mix(a: Any, near: Any, b: Any, far: Any) -> Any:
    """a * near + b * far, rounded as PyTorch's compiled kernel does."""
    return fused(a, near, b * far)  # type: ignore[call-arg]


@compiled
def take_row(logits: Any, i: int, row: Any, best: Any, ids: Any, codes: Any) -> None:
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
            before = best[0, x]
            larger = value > before
            best[1, x] = before if larger else best[1, x]
            best[0, x] = value if larger else before
            ids[x] = np.int32(k) if larger else ids[x]
    for x in range(width):
        lead = best[0, x] - best[1, x]
        decided = lead > MARGIN * abs(best[0, x]) + FLOOR
        codes[x] = np.uint8(ids[x]) if decided else np.uint8(UNDECIDED)


@compiled
def drop_losers(corners: Any, winner: int, kept: Any) -> None:
    """Clear `kept` (K,) of classes that trail `winner` at all four corners (4, K)."""
    a = corners[0, winner] - (MARGIN * abs(corners[0, winner]) + FLOOR)
    b = corners[1, winner] - (MARGIN * abs(corners[1, winner]) + FLOOR)
    c = corners[2, winner] - (MARGIN * abs(corners[2, winner]) + FLOOR)
    d = corners[3, winner] - (MARGIN * abs(corners[3, winner]) + FLOOR)
    for k in range(kept.size):
        trails = (corners[0, k] < a) & (corners[1, k] < b)
        kept[k] &= not (trails & (corners[2, k] < c) & (corners[3, k] < d))


@compiled
def race_two(top: Any, bottom: Any, ids: Any, near: Any, far: Any, out: Any) -> None:
    """Labels of a cell, out (rows, columns), between two classes: the first one wins ties."""
    rows, columns = out.shape
    first, second = ids[0], ids[1]
    for y in range(rows):
        for x in range(columns):
            a = mix(top[0, x], near[y], bottom[0, x], far[y])
            b = mix(top[1, x], near[y], bottom[1, x], far[y])
            out[y, x] = second if b > a else first


@compiled
def race_all(
    top: Any, bottom: Any, ids: Any, count: int, near: Any, far: Any, value: Any, out: Any
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


@compiled
def fill(codes: Any, starts: Any, pairs: Any, out: Any) -> None:
    """The band `out` (rows, W) with every cell's upper left code; mixed cells are written later."""
    for j in range(len(pairs)):
        out[0, starts[j] : starts[j + 1]] = codes[pairs[j, 0]]
    for y in range(1, len(out)):
        out[y, :] = out[0, :]


@compiled
def bilinear(
    logits: NDArray[np.float32],
    row_starts: Any,
    row_pairs: Any,
    row_near: Any,
    row_far: Any,
    starts: Any,
    pairs: Any,
    near: Any,
    far: Any,
    first: int,
    last: int,
    labels: Any,
) -> int:
    """Write the bands first..last - 1 of cells into labels (H, W), from logits (K, h, w).

    Returns how many cells had to be interpolated.
    """
    classes, _, width = logits.shape
    widest = np.max(starts[1:] - starts[:-1])
    upper, lower = np.empty((2, classes, width), np.float32)
    upper_ids, lower_ids = np.empty((2, width), np.int32)
    upper_codes, lower_codes = np.empty((2, width), np.uint8)
    best = np.empty((2, width), np.float32)
    corners = np.empty((4, classes), np.float32)
    kept = np.empty(classes, np.bool_)
    ids = np.empty(classes, np.uint8)
    top, bottom = np.empty((2, classes, widest), np.float32)
    value = np.empty(widest, np.float32)
    held, mixed = -1, 0
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
        fill(upper_codes, starts, pairs, labels[band])
        for j in range(len(pairs)):
            left, right = pairs[j]
            code = upper_codes[left]
            same = (code == upper_codes[right]) & (code == lower_codes[left])
            if same & (code == lower_codes[right]) & (code != UNDECIDED):
                continue
            mixed += 1
            for k in range(classes):
                corners[0, k], corners[1, k] = upper[k, left], upper[k, right]
                corners[2, k], corners[3, k] = lower[k, left], lower[k, right]
                kept[k] = True
            drop_losers(corners, upper_ids[left], kept)
            drop_losers(corners, upper_ids[right], kept)
            drop_losers(corners, lower_ids[left], kept)
            drop_losers(corners, lower_ids[right], kept)
            cell = slice(starts[j], starts[j + 1])
            w, v = near[cell], far[cell]
            count = 0
            for k in range(classes):
                if kept[k]:
                    ids[count] = k
                    for x in range(len(w)):
                        top[count, x] = mix(corners[0, k], w[x], corners[1, k], v[x])
                        bottom[count, x] = mix(corners[2, k], w[x], corners[3, k], v[x])
                    count += 1
            out = labels[band, cell]
            if count == 2:
                race_two(top, bottom, ids, row_near[band], row_far[band], out)
            else:
                race_all(top, bottom, ids, count, row_near[band], row_far[band], value, out)
    return mixed


@compiled
def shuffled(logits: NDArray[np.float32], factor: int, first: int, last: int, labels: Any) -> None:
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
