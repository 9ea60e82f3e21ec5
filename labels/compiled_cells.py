"""The compiled loops of `rtseg.labels`. Needs numba.

Values, weights and sums are of one type: int32 or int64, or float64 for float32 logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.argmax_cpu import compile_loop, fill

Array = NDArray[Any]
Positions = NDArray[np.int64]
Labels = NDArray[np.uint8]


@compile_loop
def take_line(values: Array, i: int, line: Array, most: Array, ids: Labels) -> None:
    """Copy row i of values (K, h, w) to line (K, w), and find each position's first argmax."""
    classes, _, width = values.shape
    for x in range(width):
        value = values[0, i, x]
        line[0, x] = value
        most[x] = value
        ids[x] = 0
    for k in range(1, classes):
        for x in range(width):
            value = values[k, i, x]
            line[k, x] = value
            # Selections, not branches: such loops become vector instructions.
            larger = value > most[x]
            most[x] = value if larger else most[x]
            ids[x] = np.uint8(k) if larger else ids[x]


@compile_loop
def list_rivals(corners: Array, winners: Labels, rivals: Labels) -> int:
    """Write the classes that can win in a cell into `rivals`, in order; returns how many.

    corners (4, K); winners (4,): the first argmax at each. One of those keeps out a lower class
    that is below it at all corners, and a higher one that is nowhere above it.
    """
    count = 0
    for k in range(corners.shape[1]):
        kept = True
        for corner in range(4):
            j = winners[corner]
            if k != j:
                out = True
                for place in range(4):
                    mine, its = corners[place, k], corners[place, j]
                    out &= (mine < its) | ((k > j) & (mine == its))
                kept &= not out
        rivals[count] = k  # overwritten by the next one if it is not kept
        count += kept
    return count


@compile_loop
def race_cell(
    corners: Array,
    rivals: Labels,
    count: int,
    row_near: Array,
    row_far: Array,
    near: Array,
    far: Array,
    top: Array,
    bottom: Array,
    most: Array,
    out: Labels,
) -> None:
    """Labels of a cell, out (rows, columns), among `count` classes; top to most: room."""
    rows, columns = out.shape
    # Along the row first: that half is the same for all of the cell's rows.
    for n in range(count):
        k = rivals[n]
        for x in range(columns):
            top[n, x] = corners[0, k] * near[x] + corners[1, k] * far[x]
            bottom[n, x] = corners[2, k] * near[x] + corners[3, k] * far[x]
    for y in range(rows):
        p, q = row_near[y], row_far[y]
        for x in range(columns):
            most[x] = top[0, x] * p + bottom[0, x] * q
            out[y, x] = rivals[0]
        for n in range(1, count):
            k = rivals[n]
            for x in range(columns):
                value = top[n, x] * p + bottom[n, x] * q
                larger = value > most[x]
                most[x] = value if larger else most[x]
                out[y, x] = k if larger else out[y, x]


@compile_loop
def label_cells(
    values: Array,
    row_starts: Positions,
    row_pairs: Positions,
    starts: Positions,
    pairs: Positions,
    row_near: Array,
    row_far: Array,
    near: Array,
    far: Array,
    labels: Labels,
) -> None:
    """Labels (H, W) of values (K, h, w); `_Grid` explains the rest."""
    classes, _, width = values.shape
    widest = np.max(starts[1:] - starts[:-1])
    upper, lower = np.empty((2, classes, width), near.dtype)
    upper_ids, lower_ids = np.empty((2, width), np.uint8)
    best = np.empty(width, near.dtype)
    corners = np.empty((4, classes), near.dtype)
    winners = np.empty(4, np.uint8)
    rivals = np.empty(classes + 1, np.uint8)
    top, bottom = np.empty((2, classes, widest), near.dtype)
    most = np.empty(widest, near.dtype)
    held = -1
    for i in range(len(row_pairs)):
        if held == row_pairs[i, 0]:  # the band above left it as its lower row
            upper, lower = lower, upper
            upper_ids, lower_ids = lower_ids, upper_ids
        else:
            take_line(values, row_pairs[i, 0], upper, best, upper_ids)
        held = row_pairs[i, 1]
        take_line(values, held, lower, best, lower_ids)
        band = slice(row_starts[i], row_starts[i + 1])
        fill(upper_ids, starts, pairs, labels[band])
        for j in range(len(pairs)):
            left, right = pairs[j]
            winners[0], winners[1] = upper_ids[left], upper_ids[right]
            winners[2], winners[3] = lower_ids[left], lower_ids[right]
            if winners[0] == winners[1] == winners[2] == winners[3]:
                continue
            # Side by side, since all of them are compared with one another.
            for k in range(classes):
                corners[0, k], corners[1, k] = upper[k, left], upper[k, right]
                corners[2, k], corners[3, k] = lower[k, left], lower[k, right]
            count = list_rivals(corners, winners, rivals)
            cell = slice(starts[j], starts[j + 1])
            race_cell(
                corners, rivals, count, row_near[band], row_far[band], near[cell], far[cell],
                top, bottom, most, labels[band, cell],
            )  # fmt: skip
