"""Batches for training: an endless stream of augmented pairs that depends on the seed alone.

Position p of the stream is in epoch p // (frames of an epoch); the order of an epoch and the
augmentation at a position are drawn from (seed, epoch) and (seed, position). So the stream is the
same whatever the number of workers and processes, and a resumed run continues exactly where the
last one stopped.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.classes import IGNORE
from ..data.datasets import Cached, SegmentationData
from ..data.transforms import Augment
from ..errors import DataError
from .distill import SoftSource
from .loss import border_weights, find_edges

NO_REPEATS: Mapping[str, int] = {}


@dataclass(frozen=True)
class Batch:
    """images (N, H, W, 3) uint8 BGR, labels (N, H, W) uint8, the samples' indices, and further
    maps (N, H, W) uint8 that the loss needs, by name; with a teacher "soft" is one of them,
    (N, K, h, w) int16."""

    images: Tensor
    labels: Tensor
    indices: list[int]
    maps: dict[str, Tensor] = field(default_factory=dict)

    def pin_memory(self) -> Batch:
        maps = {name: values.pin_memory() for name, values in self.maps.items()}
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.indices, maps)


Item = tuple[np.ndarray, np.ndarray, int, dict[str, np.ndarray]]  # what a batch is made of


class Stream(Dataset[Item]):
    """Position -> augmented image, label, index in `data`, and `maps`: "edges", which are drawn
    before the augmentation and move with the label, "bordered", drawn after it, and "soft" with a
    `teacher`."""

    def __init__(
        self,
        data: SegmentationData | Cached,
        augment: Augment,
        seed: int,
        maps: Sequence[str] = (),
        edge_margin: int = 0,
        teacher: SoftSource | None = None,
        repeat: Mapping[str, int] = NO_REPEATS,
    ):
        self.data, self.augment, self.seed = data, augment, seed
        self.maps, self.edge_margin, self.teacher = tuple(maps), edge_margin, teacher
        self.frames = epoch_frames(data, repeat)
        self.order: tuple[int, np.ndarray] | None = None  # of the epoch seen last

    def index(self, position: int) -> int:
        epoch, place = divmod(position, len(self.frames))
        if self.order is None or self.order[0] != epoch:
            # 0 here and 1 below keep the two streams of random numbers apart.
            random = np.random.default_rng((self.seed, 0, epoch))
            self.order = (epoch, random.permutation(len(self.frames)))
        return self.frames[int(self.order[1][place])]

    def __getitem__(self, position: int) -> Item:
        index = self.index(position)
        sample = self.data[index]
        label, maps = sample.label, {}
        if label is None:
            if self.teacher is None or sample.name not in self.teacher:
                raise DataError(f"{sample.name} has no label: this split is not for training")
            label = np.full(sample.image.shape[:2], IGNORE, np.uint8)
        if "edges" in self.maps:
            # Edges are found before the augmentation and move with the label: at a crop's own
            # border there is none.
            label = np.dstack([label, find_edges(label, self.edge_margin)])
        random = np.random.default_rng((self.seed, 1, position))
        image, label, view = self.augment.augment(sample.image, label, random)
        if "edges" in self.maps:
            maps["edges"] = np.ascontiguousarray(label[..., 1])
            label = np.ascontiguousarray(label[..., 0])
        if "bordered" in self.maps:
            maps["bordered"] = border_weights(label)
        if self.teacher is not None:
            maps["soft"] = self.teacher.cut(sample.name, view)
        return image, label, index, maps


def epoch_frames(data: SegmentationData | Cached, repeat: Mapping[str, int]) -> list[int]:
    """The indices that an epoch is made of: each frame once, or as often as the first key of
    `repeat` says that its name begins with. Raises DataError for a key that fits no frame."""
    names = [data.name(index) for index in range(len(data))]
    for key in repeat:
        if not any(name.startswith(key) for name in names):
            raise DataError(f"data.repeat: no frame's name begins with {key!r}: {names[0]} is one")
    times = [next((n for key, n in repeat.items() if name.startswith(key)), 1) for name in names]
    return [index for index, n in enumerate(times) for _ in range(n)]


class Positions(Sampler[list[int]]):
    """The positions that one of `processes` takes in each step from `first` to before `last`."""

    def __init__(self, batch: int, first: int, last: int, process: int = 0, processes: int = 1):
        self.batch, self.first, self.last = batch, first, last
        self.process, self.processes = process, processes

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.first, self.last):
            # Processes take turns by batches: one alone with all their images would see the same
            # stream.
            start = (step * self.processes + self.process) * self.batch
            yield list(range(start, start + self.batch))


def collate(items: list[Item]) -> Batch:
    """Arrays of one shape each, stacked along a new first axis."""
    images, labels, indices, maps = zip(*items, strict=True)
    stacked = {name: _stack([each[name] for each in maps]) for name in maps[0]}
    return Batch(_stack(images), _stack(labels), [*indices], stacked)


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))


def make_loader(
    stream: Stream, positions: Positions, workers: int, pin_memory: bool = False
) -> DataLoader[Item]:
    """Batches of a stream at the given positions; with `workers` 0, in this process."""
    return DataLoader(
        stream,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker if workers else None,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # its own: torch's must not depend on how often we start
    )


def _prepare_worker(worker: int) -> None:
    """One thread, and out of reach of signals to the whole group: stopping is the main process's
    decision, which saves first."""
    # Workers are the parallelism; OpenCV's own threads would compete with them.
    cv2.setNumThreads(0)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
