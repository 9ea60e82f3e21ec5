"""Coarse logits to labels, exactly and cheaply: only cells on a border are interpolated.

A bilinear enlargement makes every output pixel a convex combination of four neighboring logits,
the corners of its cell. Where one class is the argmax at all four, it is the argmax in the whole
cell, which is then filled. The labels are those of interpolation in float32, as PyTorch computes it
for contiguous tensors where it was compiled for AVX2 or later (products of a sum not rounded), and
argmax, ties to the lowest id, bit for bit:

A class's value at a pixel is made of its four corners by one and the same chain of products with
weights >= 0 and sums, and rounding is monotone: a class that is nowhere below another at the
corners is nowhere below it in the cell. So the corners' common argmax k is nowhere below any other
class. A class with a higher id loses to k even when they tie. A class j < k is below k at every
corner, since k would not be the first of the largest there otherwise; yet rounding might still
raise it to a tie, which it would win. The chain has four roundings, so its value is off by at most
4 u / (1 - 4 u) of the sum of its terms' sizes (u = 2^-24), and as |j| <= |k| + (k - j), no tie can
arise where k leads j by more than 8.1 u |k| at every corner. A corner whose lead over the lower ids
is not above MARGIN |k| (16 u) + FLOOR (for values so small that they round by more than their
share) therefore counts as undecided, and its cells are interpolated. By the same argument, classes
that trail one corner's argmax by more than the margin at all four corners are left out there.

Where most cells of a band are undecided, as with logits of an untrained network, the whole band is
interpolated row by row, with the same arithmetic.

Logits are assumed to be finite; where they are not, labels are still valid class ids.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError
from .artifact import Upsampling

Labels = NDArray[np.uint8]  # (N, H, W) class ids
Floats = NDArray[np.float32]
Positions = NDArray[np.int64]
CHUNKS = 4  # a thread: borders are not spread evenly over a frame
MOST_CLASSES = 255  # ids 0 to 254: 255 is "unlabeled" in every label map
# Share of a band's cells that hold several classes, above which the whole band is interpolated:
# with 11 and 19 classes that costs a cell 0.4 and 0.65 us, against up to 1.5 and 2.8 one by one.
MOST_MIXED = 0.3


def compiled_available() -> bool:
    """Whether the compiler is installed that this needs."""
    return importlib.util.find_spec("numba") is not None


def classes_and_factor(
    shape: tuple[int, ...], size: tuple[int, int], upsampling: Upsampling
) -> tuple[int, int | None]:
    """(classes, factor of a pixel shuffle) of coarse logits (N, channels, h, w) for a frame's size.

    Raises ArtifactError if the two do not fit each other.
    """
    _, channels, height, width = shape
    if upsampling != "shuffle":
        return channels, None
    factor = size[0] // height
    if (height * factor, width * factor) != size or channels % factor**2:
        raise ArtifactError(
            f"coarse logits {shape} are not a shuffled {size[0]}x{size[1]}: export the model again"
        )
    return channels // factor**2, factor


@dataclass(frozen=True)
class Certificate:
    """What a label needs to be certified: a lead over the second class of more than `lead`.

    table: uint8 confidences, entry i of leads from i * step on, the last one of all above; None: no
    confidence is wanted.
    """

    lead: float
    table: NDArray[np.uint8] | None = None
    step: float = 1.0

    @cached_property
    def values(self) -> tuple[np.float32, np.float32, np.float32, NDArray[np.uint8]]:
        """(bound, lead above which nothing is to be compared, steps a unit, table), for the loops:
        rounded up, so that what is certified by them is so by `lead`."""
        # 8 u more than the bound: in a cell of one class, products and sums round too.
        bound = np.nextafter(np.float32(self.lead * (1 + 2**-20)), np.float32(np.inf))
        if self.table is None:
            return bound, bound, np.float32(0), np.zeros(1, np.uint8)
        last = np.float32(self.step * (len(self.table) - 1) * (1 + 2**-20))
        return bound, max(bound, last), np.float32(1 / self.step), self.table


class LabelMaker:
    """Coarse logits (N, channels, h, w) of one shape -> labels (N, H, W) uint8.

    upsampling: as the card says. threads: of the CPU, that share the rows. Compiles on creation,
    or takes the compiled code of an earlier one from the cache; a call allocates nothing of the
    frame's size, and the next one overwrites its labels. Not thread-safe.

    Raises ArtifactError where shape and size do not fit, or the compiler is not installed.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        size: tuple[int, int],
        upsampling: Upsampling,
        threads: int = 1,
    ):
        if not compiled_available():
            raise ArtifactError('labels of coarse logits need numba: pip install "rtseg[fast]"')
        classes, self.factor = classes_and_factor(shape, size, upsampling)
        if classes > MOST_CLASSES:
            raise ArtifactError(f"labels are uint8: {classes} classes are more than {MOST_CLASSES}")
        self.shape, self.upsampling, self.threads = shape, upsampling, max(1, threads)
        self.labels: Labels = np.empty((shape[0], *size), np.uint8)
        self.most_mixed = MOST_MIXED
        self.uniform = 1.0  # share of the last call's cells whose corners have one argmax
        self.coarse: Floats = np.empty(0, np.float32)  # what the last labels were made of
        self.certified: Labels = np.empty((shape[0], 0, size[1]), np.uint8)
        self.confidence: Labels = np.empty((shape[0], 0, size[1]), np.uint8)
        self._certify: Certificate | None = None
        if self.factor is None:
            aligned = upsampling == "bilinear_aligned"
            self.rows, self.columns = (
                Axis(coarse, fine, aligned) for coarse, fine in zip(shape[2:], size, strict=True)
            )
        steps = shape[2] if self.factor else len(self.rows)
        # At their cuts neighboring pieces both read a row, which a single thread need not.
        pieces = 1 if self.threads == 1 else min(steps, self.threads * CHUNKS)
        cuts = np.linspace(0, steps, pieces + 1).round().astype(int).tolist()
        rows = list(itertools.pairwise(cuts))
        self._pieces = [(frame, *ends) for frame in range(shape[0]) for ends in rows]
        # One fewer: the calling thread takes its share.
        self._pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None
        # Compiles the loops, or reads compiled ones, now and not at the first frame.
        self(np.zeros(shape, np.float32))

    def __call__(self, coarse: NDArray[np.generic]) -> Labels:
        """coarse: float32, or float16, which is converted; contiguous, or it is copied."""
        if coarse.shape != self.shape:
            raise ValueError(f"coarse logits are {self.shape}, not {coarse.shape}")
        self.coarse = logits = np.ascontiguousarray(coarse, np.float32)
        queue = iter(self._pieces)
        helpers = [
            self._pool.submit(self._work, logits, queue) for _ in range(self.threads - 1)
        ] if self._pool else []  # fmt: skip
        mixed = self._work(logits, queue) + sum(helper.result() for helper in helpers)
        if self.factor is None:
            self.uniform = 1 - mixed / (len(coarse) * len(self.rows) * len(self.columns))
        return self.labels

    def _work(self, logits: Floats, queue: Iterator[tuple[int, int, int]]) -> int:
        """Take pieces until none is left; the number of cells that were interpolated."""
        from . import argmax_cpu

        if self._certify is not None:
            return sum(self._certify_piece(self._certify, *piece) for piece in queue)
        mixed = 0
        for frame, first, last in queue:  # next() of a list's iterator is atomic
            given, labels = logits[frame], self.labels[frame]
            if self.factor is not None:
                argmax_cpu.label_shuffled(given, self.factor, first, last, labels)
                continue
            axes = (*self.rows.arrays, *self.columns.arrays)
            mixed += argmax_cpu.label_bilinear(given, *axes, first, last, self.most_mixed, labels)
        return mixed

    def certify(self, wanted: Certificate | None) -> None:
        """From the next call on, fill `certified` (N, H, W), 0 or 1, and `confidence` too; None:
        labels alone again."""
        if wanted is not None and not self.certified.size:
            self.certified, self.confidence = np.empty((2, *self.labels.shape), np.uint8)
        self._certify = wanted

    def _certify_piece(self, wanted: Certificate, frame: int, first: int, last: int) -> int:
        from . import argmax_certified

        rows = 0 if wanted.table is None else None
        logits = self.coarse[frame]
        maps = self.labels[frame], self.certified[frame], self.confidence[frame, :rows]
        if self.factor is not None:
            argmax_certified.certify_shuffled(
                logits, self.factor, first, last, *wanted.values, *maps
            )
            return 0
        axes = (*self.rows.arrays, *self.columns.arrays)
        return int(
            argmax_certified.certify_bilinear(logits, *axes, first, last, *wanted.values, *maps)
        )

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class Axis:
    """How output positions of one axis read the input, in PyTorch's float32 arithmetic.

    `starts` (cells + 1,): where each run of positions begins that read the same pair; `pairs`
    (cells, 2): those input positions; `near`, `far` (positions,): their weights.
    """

    def __init__(self, coarse: int, fine: int, aligned: bool):
        one, half = np.float32(1), np.float32(0.5)
        places = np.arange(fine, dtype=np.float32)
        if aligned:
            step = np.float32(coarse - 1) / np.float32(fine - 1) if fine > 1 else np.float32(0)
            source = places * step
        else:
            step = np.float32(coarse) / np.float32(fine)
            # PyTorch's compiler fuses product and sum, so that they round once.
            fused = np.float64(step) * (places + half).astype(np.float64) - 0.5
            source = np.maximum(fused.astype(np.float32), np.float32(0))
        low = np.minimum(source.astype(np.int64), coarse - 1)
        self.far: Floats = np.clip(source - low.astype(np.float32), 0, one)
        self.near: Floats = one - self.far
        # Where a position reads another pair than the one before it.
        begins = np.flatnonzero(np.diff(low, prepend=-1))
        self.starts: Positions = np.append(begins, fine)
        self.pairs: Positions = np.stack(
            [low[begins], np.minimum(low[begins] + 1, coarse - 1)], axis=1
        )

    @property
    def arrays(self) -> tuple[Positions, Positions, Floats, Floats]:
        return self.starts, self.pairs, self.near, self.far

    def __len__(self) -> int:
        return len(self.pairs)
