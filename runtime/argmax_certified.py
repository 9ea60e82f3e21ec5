"""Labels, and per pixel whether their lead exceeds a bound: `argmax_cpu.py`'s loops once more.

A pixel is certified where its first class leads the second by more than `need`, the interpolation
being exact. The lead of a class over another is bilinear within a cell of coarse logits, so a lead
at all four corners is one in the whole cell: such a cell is filled without a look at its pixels.
In other cells the classes that come within `need` of a corner's argmax are compared at each pixel.

Every value is off by less than 4.1 u of the largest size at its cell's corners (u = 2^-24, see
`argmax.py`), a lead by twice that. Each lead is therefore reduced by MARGIN = 16 u of that size
before it is compared: a pixel that is certified here is so in exact arithmetic, and one within
MARGIN of the bound may be left out. Needs numba.
"""

from __future__ import annotations

import numpy as np

from .argmax_cpu import (
    FLOOR,
    LOWEST,
    MARGIN,
    UNDECIDED,
    Flags,
    Floats,
    Ids,
    Labels,
    Positions,
    compile_loop,
    fill,
    mix,
)


@compile_loop
def take_row_leads(
    logits: Floats, i: int, row: Floats, best: Floats, ids: Ids, codes: Labels, leads: Floats
) -> None:
    """`take_row`, and each position's lead of the first class over the second, less MARGIN."""
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
            lower = before if larger else value
            best[1, x] = lower if lower > best[1, x] else best[1, x]
            best[0, x] = value if larger else before
            ids[x] = np.int32(k) if larger else ids[x]
    for x in range(width):
        lead = best[0, x] - best[1, x] - (MARGIN * abs(best[0, x]) + FLOOR)
        leads[x] = lead
        codes[x] = np.uint8(ids[x]) if lead > 0 else np.uint8(UNDECIDED)


@compile_loop
def find_open(
    upper: Labels,
    lower: Labels,
    upper_leads: Floats,
    lower_leads: Floats,
    pairs: Positions,
    need: np.float32,
    found: Positions,
    mixed: Flags,
) -> int:
    """Write the cells of a band that are not certified as a whole into `found`, and whether they
    may hold several classes into `mixed`; returns how many they are."""
    count = 0
    for j in range(len(pairs)):
        left, right = pairs[j]
        code = upper[left]
        same = (code == upper[right]) & (code == lower[left])
        same &= (code == lower[right]) & (code != UNDECIDED)
        leads = (upper_leads[left] > need) & (upper_leads[right] > need)
        leads &= (lower_leads[left] > need) & (lower_leads[right] > need)
        found[count] = j
        mixed[count] = not same
        count += not (same & leads)
    return count


@compile_loop
def lead_cell(
    corners: Floats,
    winner: int,
    need: np.float32,
    near: Floats,
    far: Floats,
    row_near: Floats,
    row_far: Floats,
    top: Floats,
    bottom: Floats,
    lead: Floats,
) -> None:
    """Leads of `winner`, the argmax of the whole cell, at its pixels: lead (rows, columns), capped
    at above `need`."""
    classes = corners.shape[1]
    columns = len(near)
    largest = np.float32(0)
    for corner in range(4):
        largest = max(largest, abs(corners[corner, winner]))
    for y in range(len(row_near)):
        for x in range(columns):
            lead[y, x] = np.inf
    for k in range(classes):
        a, b = corners[0, winner] - corners[0, k], corners[1, winner] - corners[1, k]
        c, d = corners[2, winner] - corners[2, k], corners[3, winner] - corners[3, k]
        if k == winner or min(min(a, b), min(c, d)) > need + MARGIN * largest + FLOOR:
            continue
        # The rival's own size is at most the winner's and the lead.
        less = MARGIN * (largest + max(max(a, b), max(c, d))) + FLOOR
        for x in range(columns):
            top[0, x] = mix(a, near[x], b, far[x]) - less
            bottom[0, x] = mix(c, near[x], d, far[x]) - less
        for y in range(len(row_near)):
            w, v = row_near[y], row_far[y]
            for x in range(columns):
                value = mix(top[0, x], w, bottom[0, x], v)
                lead[y, x] = value if value < lead[y, x] else lead[y, x]


@compile_loop
def race_leads(
    top: Floats,
    bottom: Floats,
    ids: Labels,
    count: int,
    near: Floats,
    far: Floats,
    less: np.float32,
    value: Floats,
    second: Floats,
    lead: Floats,
    out: Labels,
) -> None:
    """`race_all`, and the leads less `less`: lead (rows, columns)."""
    rows, columns = out.shape
    if count == 2:  # the usual border
        one, other = ids[0], ids[1]
        for y in range(rows):
            w, v = near[y], far[y]
            for x in range(columns):
                a = mix(top[0, x], w, bottom[0, x], v)
                b = mix(top[1, x], w, bottom[1, x], v)
                out[y, x] = other if b > a else one
                lead[y, x] = abs(a - b) - less
        return
    for y in range(rows):
        w, v = near[y], far[y]
        for x in range(columns):
            value[x] = mix(top[0, x], w, bottom[0, x], v)
            second[x] = LOWEST
            out[y, x] = ids[0]
        for k in range(1, count):
            for x in range(columns):
                rival = mix(top[k, x], w, bottom[k, x], v)
                before = value[x]
                larger = rival > before
                lower = before if larger else rival
                second[x] = lower if lower > second[x] else second[x]
                value[x] = rival if larger else before
                out[y, x] = ids[k] if larger else out[y, x]
        for x in range(columns):
            lead[y, x] = value[x] - second[x] - less


@compile_loop
def label_cell_leads(
    corners: Floats,
    lowered: Floats,
    ids_at: Ids,
    need: np.float32,
    near: Floats,
    far: Floats,
    row_near: Floats,
    row_far: Floats,
    kept: Flags,
    ids: Labels,
    top: Floats,
    bottom: Floats,
    value: Floats,
    second: Floats,
    lead: Floats,
    out: Labels,
) -> None:
    """`label_cell`, and the leads at its pixels, capped at above `need`; lowered (4, K): space."""
    classes = corners.shape[1]
    kept[:] = True
    for corner in range(4):
        winner = ids_at[corner]
        # Lowered, a class counts as one that trails only where it does so by more than `need`.
        for k in range(4):
            lowered[k, 0] = corners[k, winner] - (MARGIN * abs(corners[k, winner]) + FLOOR + need)
        for k in range(classes):
            trails = (corners[0, k] < lowered[0, 0]) & (corners[1, k] < lowered[1, 0])
            kept[k] &= not (
                trails & (corners[2, k] < lowered[2, 0]) & (corners[3, k] < lowered[3, 0])
            )
    count, largest = 0, np.float32(0)
    for k in range(classes):
        if kept[k]:
            ids[count] = k
            for x in range(len(near)):
                top[count, x] = mix(corners[0, k], near[x], corners[1, k], far[x])
                bottom[count, x] = mix(corners[2, k], near[x], corners[3, k], far[x])
            for corner in range(4):
                largest = max(largest, abs(corners[corner, k]))
            count += 1
    less = MARGIN * largest + FLOOR
    race_leads(top, bottom, ids, count, row_near, row_far, less, value, second, lead, out)


@compile_loop
def mark_cell(
    lead: Floats,
    bound: np.float32,
    scale: np.float32,
    table: Labels,
    certified: Labels,
    confidence: Labels,
) -> None:
    """What `lead` (rows or more, columns or more) says of a cell, certified (rows, columns) and,
    where it is wanted, confidence likewise."""
    rows, columns = certified.shape
    last = np.float32(len(table) - 1)
    for y in range(rows):
        for x in range(columns):
            certified[y, x] = lead[y, x] > bound
    for y in range(len(confidence)):
        for x in range(columns):
            place = lead[y, x] * scale
            # Written so that NaN becomes the first entry, and no place is outside of the table.
            place = place if place > 0 else np.float32(0)
            confidence[y, x] = table[int(place)] if place < last else table[-1]


@compile_loop
def certify_bilinear(
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
    bound: np.float32,
    need: np.float32,
    scale: np.float32,
    table: Labels,
    labels: Labels,
    certified: Labels,
    confidence: Labels,
) -> int:
    """`label_bilinear`, and which pixels lead by more than `bound`: certified (H, W), 0 or 1.

    confidence (H, W), or (0, W) where it is not wanted: table[lead * scale], of which the last
    entry is for all above. need: the larger of `bound` and the lead that entry begins at. Returns
    how many cells had more than one argmax at their corners.
    """
    classes, _, width = logits.shape
    widest = np.max(starts[1:] - starts[:-1])
    highest = np.max(row_starts[1:] - row_starts[:-1])
    upper, lower = np.empty((2, classes, width), np.float32)
    upper_ids, lower_ids = np.empty((2, width), np.int32)
    upper_codes, lower_codes = np.empty((2, width), np.uint8)
    upper_leads, lower_leads = np.empty((2, width), np.float32)
    best = np.empty((2, width), np.float32)
    found, mixed = np.empty(len(pairs) + 1, np.int64), np.empty(len(pairs) + 1, np.bool_)
    corners, lowered = np.empty((2, 4, classes), np.float32)
    corner_ids = np.empty(4, np.int32)
    kept, ids = np.empty(classes, np.bool_), np.empty(classes, np.uint8)
    top, bottom = np.empty((2, classes, widest), np.float32)
    value, second = np.empty((2, widest), np.float32)
    lead = np.empty((highest, widest), np.float32)
    held, total = -1, 0
    for i in range(first, last):
        if held == row_pairs[i, 0]:
            upper, lower = lower, upper
            upper_ids, lower_ids = lower_ids, upper_ids
            upper_codes, lower_codes = lower_codes, upper_codes
            upper_leads, lower_leads = lower_leads, upper_leads
        else:
            take_row_leads(
                logits, row_pairs[i, 0], upper, best, upper_ids, upper_codes, upper_leads
            )
        held = row_pairs[i, 1]
        take_row_leads(logits, held, lower, best, lower_ids, lower_codes, lower_leads)
        band = slice(row_starts[i], row_starts[i + 1])
        count = find_open(
            upper_codes, lower_codes, upper_leads, lower_leads, pairs, need, found, mixed
        )
        fill(upper_codes, starts, pairs, labels[band])
        certified[band] = 1
        confidence[band] = table[-1]
        rows_near, rows_far = row_near[band], row_far[band]
        for place in range(count):
            j = found[place]
            left, right = pairs[j]
            for k in range(classes):
                corners[0, k], corners[1, k] = upper[k, left], upper[k, right]
                corners[2, k], corners[3, k] = lower[k, left], lower[k, right]
            cell = slice(starts[j], starts[j + 1])
            if mixed[place]:
                total += 1
                corner_ids[0], corner_ids[1] = upper_ids[left], upper_ids[right]
                corner_ids[2], corner_ids[3] = lower_ids[left], lower_ids[right]
                label_cell_leads(
                    corners, lowered, corner_ids, need, near[cell], far[cell], rows_near, rows_far,
                    kept, ids, top, bottom, value, second, lead, labels[band, cell],
                )  # fmt: skip
            else:
                lead_cell(
                    corners, upper_ids[left], need, near[cell], far[cell], rows_near, rows_far,
                    top, bottom, lead,
                )  # fmt: skip
            mark_cell(lead, bound, scale, table, certified[band, cell], confidence[band, cell])
    return total


@compile_loop
def certify_shuffled(
    logits: Floats,
    factor: int,
    first: int,
    last: int,
    bound: np.float32,
    need: np.float32,
    scale: np.float32,
    table: Labels,
    labels: Labels,
    certified: Labels,
    confidence: Labels,
) -> None:
    """`label_shuffled`, and the maps of `certify_bilinear`; nothing rounds but the leads."""
    planes, _, width = logits.shape
    step = factor * factor
    best, second = np.empty((2, width), np.float32)
    lead = np.empty((1, 1), np.float32)
    ids = np.empty(width, np.int32)
    for i in range(first, last):
        for place in range(step):
            for x in range(width):
                best[x] = logits[place, i, x]
                second[x] = LOWEST
                ids[x] = 0
            for k in range(1, planes // step):
                for x in range(width):
                    value = logits[k * step + place, i, x]
                    before = best[x]
                    larger = value > before
                    lower = before if larger else value
                    second[x] = lower if lower > second[x] else second[x]
                    best[x] = value if larger else before
                    ids[x] = np.int32(k) if larger else ids[x]
            y, column = i * factor + place // factor, place % factor
            for x in range(width):
                at = x * factor + column
                labels[y, at] = np.uint8(ids[x])
                lead[0, 0] = best[x] - second[x]
                mark_cell(
                    lead, bound, scale, table,
                    certified[y : y + 1, at : at + 1], confidence[y : y + 1, at : at + 1],
                )  # fmt: skip
