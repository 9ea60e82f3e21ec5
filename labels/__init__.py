"""Labels from an NPU's coarse logits, exactly: `exact_labels`, which needs numpy alone.

A bilinear enlargement by whole positions has rational weights. Over a common denominator they are
integers, and for quantized logits so are all sums: nothing is rounded, ties are ties, and the bytes
are the same on every processor. A scale and a zero point that all classes share change no argmax
and drop out; where they differ by class, scales are exact rationals too.

Where one class is the argmax at all four corners of a cell, it is the argmax in the whole cell: a
class with a lower id is below it at every corner, one with a higher id is nowhere above. Only the
other cells are interpolated. For float32 logits, whose sums are float64, this holds as well: what
lies below at a corner does so by at least 2^-25 of its size, and the sums are off by at most 2^-50.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, reduce
from math import gcd, lcm
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import UsageError

__all__ = ["exact_labels"]

Array = NDArray[Any]
INTEGERS = tuple(np.dtype(name) for name in ("int8", "uint8", "int16", "uint16"))
FLOATS = tuple(np.dtype(name) for name in ("float16", "float32"))
MOST_CLASSES = 255  # ids 0 to 254: 255 is "unlabeled" in every label map
HALF_BITS = 24  # every finite float16 is a whole number of 2^-24
MOST_BITS = 63
PIXELS = 1 << 16  # interpolated at a time without numba: what is gathered stays in the cache


@dataclass(frozen=True)
class _Grid:
    """How output positions of one axis read the input, as integers.

    starts (cells + 1,): where each run of positions begins that read the same pair; pairs
    (cells, 2): those input positions; near, far (positions,): their weights, of `whole` in all.
    """

    starts: NDArray[np.int64]
    pairs: NDArray[np.int64]
    near: NDArray[np.int64]
    far: NDArray[np.int64]
    whole: int


def exact_labels(
    logits: Array,
    size: int | tuple[int, int],
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    scale: ArrayLike = 1.0,
    zero_point: ArrayLike = 0,
    align_corners: bool = False,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The argmax of logits that are enlarged bilinearly, without enlarging them.

    For int8, uint8, int16, uint16 and float16 it is the argmax of the exact values (integers
    throughout), for float32 that of sums in float64 with the weights as whole numbers. So it is
    bit-equal to interpolation and argmax of the dequantized logits in float64 wherever float64
    itself is exact, as it is for factors that are powers of two. Loops are compiled where numba is
    installed (some seconds at the first call, then cached); without it, and on every processor,
    labels are the same.

    Args:
        logits: (N, K, h, w) or (N, h, w, K), as `layout` says, or a single frame without N.
        size: (height, width) of the labels, or the factor of the enlargement.
        layout: "NCHW" or "NHWC".
        scale: of quantized logits, one or one a class: (q - zero_point) * scale. Those of classes
            are taken as float32, as formats store them.
        zero_point: likewise.
        align_corners: whether the outermost logits are those of the outermost pixels (True, as in
            PyTorch and ONNX "align_corners") or of the middle of their share of pixels (False:
            ONNX "half_pixel", "pytorch_half_pixel", TFLite "half_pixel_centers").
        out: labels of an earlier call, to be overwritten.

    Returns:
        Class ids (N, H, W) uint8, or (H, W) of a single frame; the lower id wins ties.

    Raises:
        UsageError: types, shapes or values that do not fit; logits that are not finite.
    """
    given = _as_planes(logits, layout)
    frames, _, *coarse = given.shape
    height, width = _find_size(size, coarse)
    rows = _grid(coarse[0], height, align_corners)
    columns = _grid(coarse[1], width, align_corners)
    values, sums = _prepare(given, scale, zero_point, rows.whole * columns.whole)
    labels = _find_room(out, (frames, height, width), logits.ndim == 3)
    fill = _label_compiled if _compiled_available() else _label_in_numpy
    for frame in range(frames):
        fill(values[frame], rows, columns, sums, labels[frame])
    return labels[0] if logits.ndim == 3 else labels


def _as_planes(logits: Array, layout: str) -> Array:
    """(N, K, h, w), a view."""
    if layout not in ("NCHW", "NHWC"):
        raise UsageError(f'layout is "NCHW" or "NHWC", not {layout!r}')
    if logits.dtype not in (*INTEGERS, *FLOATS):
        names = ", ".join(str(kind) for kind in (*INTEGERS, *FLOATS))
        raise UsageError(f"logits are {names}, not {logits.dtype}: convert them")
    if logits.ndim not in (3, 4) or 0 in logits.shape:
        raise UsageError(f"logits are {layout}, or a frame without N, not of shape {logits.shape}")
    given = logits if logits.ndim == 4 else logits[None]
    if layout == "NHWC":
        given = given.transpose(0, 3, 1, 2)
    if given.shape[1] > MOST_CLASSES:
        raise UsageError(
            f"labels are uint8: {given.shape[1]} classes are more than {MOST_CLASSES}; is the "
            f"layout {layout}?"
        )
    return given


def _find_size(size: int | tuple[int, int], coarse: list[int]) -> tuple[int, int]:
    if isinstance(size, (int, np.integer)):
        height, width = (int(size) * side for side in coarse)
    elif isinstance(size, Sequence) and len(size) == 2:
        height, width = map(int, size)
    else:
        raise UsageError(f"size is (height, width), or a whole factor, not {size!r:.40}")
    if height < coarse[0] or width < coarse[1]:
        raise UsageError(
            f"labels of {height}x{width} are smaller than logits of {coarse[0]}x{coarse[1]}: give "
            "(height, width), or a factor of 1 or more"
        )
    return height, width


def _find_room(
    out: NDArray[np.uint8] | None, shape: tuple[int, int, int], single: bool
) -> NDArray[np.uint8]:
    if out is None:
        return np.empty(shape, np.uint8)
    wanted = shape[1:] if single else shape
    if out.shape != wanted or out.dtype != np.uint8:
        raise UsageError(f"out is {out.dtype} {out.shape}, and labels are uint8 {wanted}")
    return out[None] if single else out


@lru_cache(maxsize=16)  # a camera's frames are of one size
def _grid(coarse: int, fine: int, aligned: bool) -> _Grid:
    places = np.arange(fine, dtype=np.int64)
    if aligned:
        source, whole = places * (coarse - 1), max(1, fine - 1)
    else:
        # Before the middle of the first logit there is nothing to interpolate with.
        source, whole = np.maximum((2 * places + 1) * coarse - fine, 0), 2 * fine
    # The smallest weights: sums then mostly fit 32 bits, of which a register holds twice as many.
    common = gcd(int(np.gcd.reduce(source)), whole)
    source, whole = source // common, whole // common
    low = np.minimum(source // whole, coarse - 1)
    far = source - low * whole
    begins = np.flatnonzero(np.diff(low, prepend=-1))
    first = low[begins]
    return _Grid(
        starts=np.append(begins, fine),
        pairs=np.stack([first, np.minimum(first + 1, coarse - 1)], axis=1),
        near=whole - far,
        far=far,
        whole=whole,
    )


def _prepare(
    given: Array, scale: ArrayLike, zero_point: ArrayLike, whole: int
) -> tuple[Array, np.dtype[Any]]:
    """(values that order as the dequantized logits do, the type of sums of `whole` of them)."""
    if given.dtype in FLOATS:
        if np.size(scale) > 1 or np.any(np.asarray(zero_point)) or not np.all(_positive(scale)):
            raise UsageError("float logits have one scale above 0 and no zero point")
        if not np.isfinite(given).all():
            raise UsageError("logits hold values that are not finite: NaN or infinity")
        if given.dtype == np.float32:
            return given, np.dtype(np.float64)
        # Exact: a float16 has 11 bits, and 2^24 of the largest is below 2^40.
        values = np.ldexp(given.astype(np.float64), HALF_BITS).astype(np.int64)
        return values, _sum_type(int(np.abs(values).max()) * whole)
    span = np.iinfo(given.dtype)
    zeros = _by_class(zero_point, given.shape[1], "zero points")
    if np.any(zeros != np.trunc(zeros)):
        raise UsageError(f"zero points are whole numbers, not {zero_point!r}")
    factors = _whole_factors(scale, given.shape[1])
    shifts = [int(zero) for zero in zeros]
    if len(set(factors)) == len(set(shifts)) == 1:  # they move all classes alike
        return given, _sum_type(max(abs(span.min), span.max) * whole)
    largest = max(
        factor * max(abs(span.min - shift), abs(span.max - shift))
        for factor, shift in zip(factors, shifts, strict=True)
    )
    kind = _sum_type(largest * whole)
    by_class = (np.array(numbers, np.int64)[:, None, None] for numbers in (shifts, factors))
    shift, factor = by_class
    return (given.astype(np.int64) - shift) * factor, kind


def _positive(scale: ArrayLike) -> NDArray[np.bool_]:
    numbers = np.asarray(scale, np.float64)
    return np.isfinite(numbers) & (numbers > 0)


def _by_class(given: ArrayLike, classes: int, what: str) -> NDArray[np.float64]:
    numbers = np.asarray(given, np.float64).reshape(-1)
    if numbers.size not in (1, classes):
        raise UsageError(f"{numbers.size} {what} for {classes} classes: give one, or one a class")
    return np.broadcast_to(numbers, classes)


def _whole_factors(scale: ArrayLike, classes: int) -> list[int]:
    """Integers in the ratios of the scales."""
    scales = _by_class(scale, classes, "scales")
    if not np.all(_positive(scales)):
        raise UsageError(f"scales are finite and above 0, not {scale!r}")
    if len(set(scales.tolist())) == 1:
        return [1] * classes
    exact = [Fraction(float(number)) for number in scales.astype(np.float32)]
    if min(exact) == 0:
        raise UsageError(f"scales are float32, and {scale!r} holds one that is 0 there")
    common = reduce(lcm, (number.denominator for number in exact))
    factors = [int(number * common) for number in exact]
    shared = reduce(gcd, factors)
    return [factor // shared for factor in factors]


def _sum_type(largest: int) -> np.dtype[Any]:
    if largest.bit_length() > MOST_BITS:
        raise UsageError(
            "the classes' scales lie too far apart for exact sums in 64 bits: give one scale, as "
            "outputs of NPUs have"
        )
    return np.dtype(np.int32 if largest.bit_length() < 32 else np.int64)


def _compiled_available() -> bool:
    return importlib.util.find_spec("numba") is not None


def _label_compiled(
    values: Array, rows: _Grid, columns: _Grid, sums: np.dtype[Any], labels: NDArray[np.uint8]
) -> None:
    from .compiled_cells import label_cells

    p, q, v, w = (each.astype(sums) for each in (rows.near, rows.far, columns.near, columns.far))
    # Three types of loops to compile, where there would be one for every type and layout.
    values = np.ascontiguousarray(values, sums)
    label_cells(values, rows.starts, rows.pairs, columns.starts, columns.pairs, p, q, v, w, labels)


def _label_in_numpy(
    values: Array, rows: _Grid, columns: _Grid, sums: np.dtype[Any], labels: NDArray[np.uint8]
) -> None:
    """Labels (H, W) of values (K, h, w)."""
    best = values.argmax(0).astype(np.uint8)
    upper, lower = best[rows.pairs[:, 0]], best[rows.pairs[:, 1]]
    left, right = columns.pairs.T
    # Of a cell's four corners; where they agree, the whole cell is of that class.
    code = upper[:, left]
    mixed = (code != upper[:, right]) | (code != lower[:, left]) | (code != lower[:, right])
    heights, widths = np.diff(rows.starts), np.diff(columns.starts)
    labels[:] = code.repeat(heights, 0).repeat(widths, 1)
    ys, xs = np.nonzero(mixed.repeat(heights, 0).repeat(widths, 1))
    planes = np.ascontiguousarray(values).reshape(len(values), -1)
    row_of, column_of = rows.pairs.repeat(heights, 0), columns.pairs.repeat(widths, 0)
    for begin in range(0, len(ys), PIXELS):
        y, x = ys[begin : begin + PIXELS], xs[begin : begin + PIXELS]
        top, bottom = (row_of[y] * values.shape[2]).T
        west, east = column_of[x].T
        places = top + west, top + east, bottom + west, bottom + east
        p, q = rows.near[y].astype(sums), rows.far[y].astype(sums)
        v, w = columns.near[x].astype(sums), columns.far[x].astype(sums)
        labels[y, x] = _race(planes, places, (v, w, p, q), sums)


def _race(
    planes: Array, places: tuple[Array, ...], weights: tuple[Array, ...], sums: np.dtype[Any]
) -> NDArray[np.uint8]:
    """The first class with the largest value at each pixel."""
    v, w, p, q = weights
    for k, plane in enumerate(planes):
        a, b, c, d = (plane[place].astype(sums) for place in places)
        value = (a * v + b * w) * p + (c * v + d * w) * q
        if k == 0:
            most, ids = value, np.zeros(len(value), np.uint8)
            continue
        larger = value > most
        most[larger] = value[larger]
        ids[larger] = k
    return ids
