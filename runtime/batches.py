"""Batches: which frame goes into which slot of an artifact that takes several at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray


def plan_batches(count: int, batch: int) -> list[list[int]]:
    """Places of `count` frames in turn, `batch` to a run; the first ones fill up the last run."""
    return [
        [place % count for place in range(start, start + batch)] for start in range(0, count, batch)
    ]


def stack_batches(frames: Sequence[NDArray[np.uint8]], batch: int) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) of one size as arrays (batch, H, W, 3), each frame once at least."""
    for places in plan_batches(len(frames), batch):
        yield np.stack([frames[place] for place in places])
