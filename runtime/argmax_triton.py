"""Labels from coarse logits on a GPU, a Triton kernel each: nothing of classes x H x W is written.

`BilinearLabels` interpolates and keeps the running maximum of each pixel in registers; a program
reads the corners of its cells once for all rows of a band. Its arithmetic is that of `argmax.py`,
fused and rounded the same way, so the labels are those of interpolation in float32 and argmax, ties
to the lowest id, whatever the logits' own type. `ShuffledLabels` is the end of a pixel-shuffle
network: a 1x1 convolution to K * factor^2 channels, of which only the winner of each pixel leaves
the kernel. Its sums stay in float32 and are never rounded to half, as the convolution's own output
would be.

Both run on the current stream, allocate nothing per call and can be captured in a CUDA graph. The
tests run them in Triton's interpreter too (TRITON_INTERPRET=1), which takes tensors on the CPU.
`export/argmax_kernel.py` compiles them for engines, which run without PyTorch and Triton.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ArtifactError
from .argmax import MOST_CLASSES, Axis
from .artifact import Upsampling
from .packages import writable_cache

# Triton's own folder lies in the home, which may be read-only; it looks here when it compiles.
if not {"TRITON_CACHE_DIR", "TRITON_HOME"} & os.environ.keys():
    os.environ["TRITON_CACHE_DIR"] = str(writable_cache("triton"))

COLUMNS = 128  # of a program: with 8 rows, 8 pixels a thread
MOST_ROWS = 8
PIXELS = 4096  # of a program of `shuffled_kernel`: 32 a thread
MOST_CHANNELS, MOST_FACTOR = 256, 16  # that one holds at once
LEAST_SIDE = 16  # of a matrix that `tl.dot` multiplies
# Matrices in flight; a third, in float32, is more than GPUs of 8.6 and 8.9 have room for.
STAGES = 2


@triton.jit
def mix(a, near, b, far, fused: tl.constexpr):
    """a * near + b * far, of which the first product is not rounded, as in `argmax_cpu.mix`."""
    if fused:
        return tl.fma(a, near, b * far)
    exact = a.to(tl.float64) * near.to(tl.float64) + (b * far).to(tl.float64)
    return exact.to(tl.float32)


# The interpreter rounds a fused multiply-add twice, so there it is made of float64.
FUSED = isinstance(mix, triton.JITFunction)


@triton.jit
def bilinear_kernel(
    logits, pieces, row_near, row_far, left, right, near, far, labels,
    classes, width, height, stride_n, stride_c, stride_y, stride_x,
    rows: tl.constexpr, columns: tl.constexpr, fused: tl.constexpr,
):  # fmt: skip
    """Rows of one band of cells, `pieces` (n, 4): first row, rows, upper and lower input row; and
    `columns` columns of them, whose input columns are `left` and `right`; the grid's third side is
    the frames of a batch."""
    logits += tl.program_id(2) * stride_n
    labels += tl.program_id(2) * height * width
    piece = pieces + 4 * tl.program_id(0)
    first, count = tl.load(piece), tl.load(piece + 1)
    upper, lower = tl.load(piece + 2) * stride_y, tl.load(piece + 3) * stride_y
    # Neighboring threads take neighboring columns, so that their reads lie side by side.
    x = tl.program_id(1) * columns + tl.arange(0, columns)
    y = tl.arange(0, rows)
    inside = x < width
    a, b = tl.load(left + x, inside, 0) * stride_x, tl.load(right + x, inside, 0) * stride_x
    w, v = tl.load(near + x, inside, 0.0), tl.load(far + x, inside, 0.0)
    p = tl.load(row_near + first + y, y < count, 0.0)[:, None]
    q = tl.load(row_far + first + y, y < count, 0.0)[:, None]
    best = tl.full((rows, columns), float("-inf"), tl.float32)
    ids = tl.zeros((rows, columns), tl.int32)
    for k in range(classes):
        plane = logits + k * stride_c
        north, south = plane + upper, plane + lower
        top = mix(tl.load(north + a).to(tl.float32), w, tl.load(north + b).to(tl.float32), v, fused)
        bottom = mix(
            tl.load(south + a).to(tl.float32), w, tl.load(south + b).to(tl.float32), v, fused
        )
        value = mix(top[None, :], p, bottom[None, :], q, fused)
        larger = value > best  # never equal: the lowest id wins ties
        best = tl.where(larger, value, best)
        ids = tl.where(larger, k, ids)
    out = labels + (first + y)[:, None] * width + x[None, :]
    tl.store(out, ids.to(tl.uint8), (y < count)[:, None] & inside[None, :])


@triton.jit
def shuffled_kernel(
    features, weight, bias, labels,
    classes, channels, height, width, stride_n, stride_c, stride_y, stride_x,
    factor: tl.constexpr, places: tl.constexpr, depth: tl.constexpr, positions: tl.constexpr,
):  # fmt: skip
    """`positions` positions of features (channels, height, width): for each of the factor^2 pixels
    of one, the first class with the largest of weight (K, factor^2, channels) * features + bias.

    places, depth: factor^2 and the channels, rounded up to what `tl.dot` takes. The grid's second
    side is the frames of a batch.
    """
    features += tl.program_id(1) * stride_n
    labels += tl.program_id(1) * height * width * factor * factor
    position = tl.program_id(0) * positions + tl.arange(0, positions)
    inside = position < height * width
    y, x = position // width, position % width
    c, place = tl.arange(0, depth), tl.arange(0, places)
    used = place < factor * factor
    read = features + (y * stride_y + x * stride_x)[:, None] + (c * stride_c)[None, :]
    given = tl.load(read, inside[:, None] & (c < channels)[None, :], 0.0)
    best = tl.full((positions, places), float("-inf"), tl.float32)
    ids = tl.zeros((positions, places), tl.int32)
    for k in range(classes):
        # As PyTorch's pixel shuffle has them: all pixels of a class one after another.
        row = k * factor * factor + place
        matrix = tl.load(
            weight + row[None, :] * channels + c[:, None],
            (c < channels)[:, None] & used[None, :],
            0.0,
        )
        offset = tl.load(bias + row, used, 0.0)
        # Not TF32, whose 10 bits of mantissa would decide between near classes.
        value = tl.dot(given, matrix, input_precision="ieee") + offset[None, :]
        larger = value > best
        best = tl.where(larger, value, best)
        ids = tl.where(larger, k, ids)
    pixel_y = (y * factor)[:, None] + (place // factor)[None, :]
    pixel_x = (x * factor)[:, None] + (place % factor)[None, :]
    out = labels + pixel_y * (width * factor) + pixel_x
    tl.store(out, ids.to(tl.uint8), inside[:, None] & used[None, :])


@dataclass(frozen=True)
class Launch:
    """A kernel, and its arguments by name but for the first, which is given, "labels", which are
    made, and the strides of what is given: `tables` are arrays, `constants` numbers."""

    kernel: Any
    grid: tuple[int, ...]
    constants: dict[str, int]
    tables: dict[str, NDArray[np.generic]] = field(default_factory=dict)
    stages: int = 3


def named_strides(strides: Sequence[int]) -> dict[str, int]:
    """Those arguments of a kernel that say how (N, C, h, w) lies in memory."""
    return dict(zip(("stride_n", "stride_c", "stride_y", "stride_x"), strides, strict=True))


def bilinear_launch(
    shape: tuple[int, ...], size: tuple[int, int], upsampling: Upsampling
) -> Launch:
    """For logits of `shape` (N, K, h, w) and a frame of `size` (H, W). Raises ArtifactError for
    more classes than uint8 holds."""
    _check_classes(shape[1])
    aligned = upsampling == "bilinear_aligned"
    rows, columns = (Axis(a, b, aligned) for a, b in zip(shape[2:], size, strict=True))
    pieces = [
        (y, min(MOST_ROWS, end - y), upper, lower)
        for (start, end), (upper, lower) in zip(
            itertools.pairwise(rows.starts.tolist()), rows.pairs.tolist(), strict=True
        )
        for y in range(start, end, MOST_ROWS)
    ]
    left, right = columns.pairs.repeat(columns.starts[1:] - columns.starts[:-1], axis=0).T
    tables = {
        "pieces": np.array(pieces, np.int32), "row_near": rows.near, "row_far": rows.far,
        "left": left.astype(np.int32), "right": right.astype(np.int32),
        "near": columns.near, "far": columns.far,
    }  # fmt: skip
    constants = {
        "classes": shape[1], "width": size[1], "height": size[0],
        "rows": triton.next_power_of_2(max(count for _, count, _, _ in pieces)),
        "columns": COLUMNS, "fused": FUSED,
    }  # fmt: skip
    grid = len(pieces), triton.cdiv(size[1], COLUMNS), shape[0]
    return Launch(bilinear_kernel, grid, constants, tables)


def shuffled_launch(
    weight: tuple[int, ...], shape: tuple[int, ...], size: tuple[int, int]
) -> Launch:
    """For a convolution with a weight of that shape, (K * factor^2, C, 1, 1), on features of
    `shape` (N, C, h, w), and a frame of `size` (H, W).

    Raises ArtifactError where these do not fit, and for what one program cannot hold.
    """
    outputs, channels = weight[:2]
    factor = max(1, size[0] // shape[2])
    classes, rest = divmod(outputs, factor**2)
    _check_classes(classes)
    fits = (shape[2] * factor, shape[3] * factor) == size and not rest
    if not fits or shape[1] != channels or set(weight[2:]) != {1}:
        raise ArtifactError(f"a head of {weight} on {shape} gives no shuffled {size[0]}x{size[1]}")
    if channels > MOST_CHANNELS or factor > MOST_FACTOR:
        raise ArtifactError(
            f"heads of up to {MOST_CHANNELS} channels and factor {MOST_FACTOR} make labels in "
            f"one pass, not {channels} and {factor}"
        )
    places = max(LEAST_SIDE, triton.next_power_of_2(factor**2))
    positions = max(LEAST_SIDE, PIXELS // places)
    constants = {
        "classes": classes, "channels": channels, "height": shape[2], "width": shape[3],
        "factor": factor, "places": places, "positions": positions,
        "depth": max(LEAST_SIDE, triton.next_power_of_2(channels)),
    }  # fmt: skip
    grid = (triton.cdiv(shape[2] * shape[3], positions), shape[0])
    return Launch(shuffled_kernel, grid, constants, stages=STAGES)


class _Launched:
    """Tensors in, labels out, by a launch. `tables`: of its arguments, on the labels' device."""

    def __init__(
        self,
        launch: Launch,
        tables: dict[str, Tensor],
        shape: tuple[int, ...],
        size: tuple[int, int],
        device: torch.device,
    ):
        self.launch, self.tables, self.shape = launch, tables, shape
        self.labels = torch.empty((shape[0], *size), dtype=torch.uint8, device=device)

    def __call__(self, given: Tensor) -> Tensor:
        if given.shape != self.shape:
            raise ValueError(f"the kernel was made for {self.shape}, not {tuple(given.shape)}")
        launch = self.launch
        # Triton launches on the current device, which need not be that of the tensor.
        with torch.cuda.device_of(given):
            launch.kernel[launch.grid](
                given, labels=self.labels, **self.tables, **launch.constants,
                **named_strides(given.stride()), num_stages=launch.stages,
            )  # fmt: skip
        return self.labels


class BilinearLabels(_Launched):
    """Coarse logits (N, K, h, w) -> labels (N, H, W) uint8 on the same device.

    shape: of the logits; size: (H, W); upsampling: "bilinear" or "bilinear_aligned", as the card
    says. Logits may be float32, float16 or bfloat16 and of any layout. The next call overwrites
    the labels. Raises ArtifactError for more classes than uint8 holds.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        size: tuple[int, int],
        upsampling: Upsampling,
        device: torch.device,
    ):
        if upsampling == "shuffle":
            raise ValueError("shuffled logits are not bilinear: use ShuffledLabels")
        launch = bilinear_launch(shape, size, upsampling)
        tables = {name: torch.tensor(table, device=device) for name, table in launch.tables.items()}
        super().__init__(launch, tables, shape, size, device)


class ShuffledLabels(_Launched):
    """What a 1x1 convolution to K * factor^2 channels reads, (N, C, h, w) -> labels
    (N, h * factor, w * factor) uint8 on the same device, without the convolution's output.

    weight (K * factor^2, C, 1, 1) and bias, of the features' type; shape: of the features. The next
    call overwrites the labels. Raises ArtifactError for what one program cannot hold.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, shape: tuple[int, ...], size: tuple[int, int]
    ):
        launch = shuffled_launch(tuple(weight.shape), shape, size)
        offsets = torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias.contiguous()
        tables = {"weight": weight.flatten(1).contiguous(), "bias": offsets}
        super().__init__(launch, tables, shape, size, weight.device)


def _check_classes(classes: int) -> None:
    if classes > MOST_CLASSES:
        raise ArtifactError(f"labels are uint8: {classes} classes are more than {MOST_CLASSES}")
