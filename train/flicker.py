"""Flicker of labels: pixels that change between frames of a sequence though the truth does not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..data.classes import IGNORE
from ..data.frames import split_name

Labels = NDArray[np.uint8]


def order_sequences(names: Sequence[str]) -> list[list[int]]:
    """Indices of the frames of each sequence, in order.

    A sequence is of the names that differ in the number at their end alone, and that number orders
    it: 0016E5_07959, 0016E5_07961, ... A name without one is alone.
    """
    sequences: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for index, name in enumerate(names):
        prefix, number = split_name(name)
        sequences[prefix].append((number, index))
    return [[index for _, index in sorted(frames)] for frames in sequences.values()]


class Flicker:
    """Counts, over consecutive frames of a sequence, the pixels whose label in the truth is the
    same in both, and of those the ones whose prediction is not.

    Attributes:
        pixels: that were compared.
        changed: of those.
    """

    def __init__(self) -> None:
        self.pixels = self.changed = 0
        self._last: tuple[Labels, Labels] | None = None

    @property
    def share(self) -> float:
        """Of the pixels that were compared, 0..1; NaN where there was none."""
        return self.changed / self.pixels if self.pixels else float("nan")

    def restart(self) -> None:
        """The next frame begins a sequence."""
        self._last = None

    def count(self, truth: Labels, labels: Labels) -> None:
        """Compare a frame's labels with the frame before; all (H, W), 255 does not count."""
        last, self._last = self._last, (truth, labels)
        if last is None or last[0].shape != truth.shape:
            return
        still = (truth == last[0]) & (truth != IGNORE) & (labels != IGNORE) & (last[1] != IGNORE)
        self.pixels += int(np.count_nonzero(still))
        self.changed += int(np.count_nonzero(still & (labels != last[1])))
