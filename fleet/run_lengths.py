"""Label maps as runs of equal values, row by row: a frame in a few kilobytes of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Runs = tuple[NDArray[np.uint8], NDArray[np.uint32]]  # values, lengths


def encode(labels: NDArray[np.uint8]) -> Runs:
    """labels (H, W) -> the values of its runs, and how many pixels each lasts; rows are joined."""
    flat = labels.reshape(-1)
    starts = np.flatnonzero(np.concatenate(([True], flat[1:] != flat[:-1])))
    lengths = np.diff(np.append(starts, flat.size)).astype(np.uint32)
    return flat[starts], lengths


def decode(
    values: NDArray[np.uint8], lengths: NDArray[np.uint32], height: int
) -> NDArray[np.uint8]:
    """The label map (height, W) uint8.

    Raises:
        UsageError: if the runs do not fill whole rows.
    """
    flat = np.repeat(values, lengths)
    if height <= 0 or flat.size % height:
        raise UsageError(f"runs of {flat.size} pixels do not fill {height} rows: a damaged file?")
    return flat.reshape(height, -1)


def read(path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """(frame's name, labels (H, W)) of a `labels.parquet` that `rtseg fleet` wrote, in order."""
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for group in file.iter_batches(batch_size=64):
            for row in group.to_pylist():
                values = np.array(row["values"], np.uint8)
                lengths = np.array(row["lengths"], np.uint32)
                yield row["name"], decode(values, lengths, row["height"])
