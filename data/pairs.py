"""Base of the data sets: pairs of image and label files, decoded to train ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError
from .classes import IGNORE, ClassSet

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Files:
    """One item on disk; `label` is None in splits without labels."""

    image: Path
    label: Path | None


@dataclass(frozen=True)
class Sample:
    """`image` (H, W, 3) uint8 BGR; `label` (H, W) uint8 train ids, 255 where nothing counts."""

    image: np.ndarray
    label: np.ndarray | None
    name: str


class SegmentationData:
    """A split of a data set. Subclasses say where files lie (`find`) and what ids mean.

    `ids`: 256 train ids, one for each value in a label file; 255 for values that do not count.
    `void`: those of them that may occur; others are mistakes. `label_pattern`: names of all label
    files beside a split's own; "" where a folder serves several splits.
    Raises DataError where the split has no files.
    """

    classes: ClassSet
    splits: tuple[str, ...] = ("train", "val", "test")
    ids: np.ndarray
    void: tuple[int, ...] = (IGNORE,)
    label_pattern = "*.png"
    labels_optional = False  # whether an image may lack the label file that the layout gives it

    def __init__(self, root: Path, split: str):
        self.root, self.split = Path(root), split
        if split not in self.splits:
            raise DataError(f"{self.title} has no split {split!r}: {', '.join(self.splits)}")
        if not self.root.is_dir():
            raise DataError(f"no folder {self.root}: give the one that holds {self.layout()}")
        self.files = list(self.find())
        if not self.files:
            raise DataError(f"no {split} images under {self.root}: expected {self.layout()}")

    @property
    def title(self) -> str:
        return type(self).__name__

    def layout(self) -> str:
        """The files of a split, for messages."""
        raise TypeError(f"{self.title} does not say where its files lie")

    def find(self) -> Iterable[Files]:
        """The split's files in a fixed order; they need not exist."""
        raise TypeError(f"{self.title} does not say where its files lie")

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def name(self, index: int) -> str:
        """A short name that is unique in the split."""
        return self.files[index].image.stem

    def __getitem__(self, index: int) -> Sample:
        files = self.files[index]
        image = read_image(files.image)
        if files.label is None or (self.labels_optional and not files.label.is_file()):
            return Sample(image, None, self.name(index))
        label = self.ids[self.read_label(files.label)]
        if label.shape != image.shape[:2]:
            raise DataError(
                f"{files.label} is {_size(label)}, but its image {files.image.name} is "
                f"{_size(image)}"
            )
        return Sample(image, label, self.name(index))

    def read_label(self, path: Path) -> np.ndarray:
        """The label file as (H, W) uint8, in the data set's own ids."""
        label = read_png(path)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise DataError(f"{path} should hold 8-bit class ids in one channel: is it in color?")
        return label

    def strays(self) -> list[Path]:
        """Label files of the split that belong to no image."""
        wanted = {files.label for files in self.files if files.label is not None}
        if not self.label_pattern:
            return []
        folders = {path.parent for path in wanted}
        found = {path for folder in folders for path in folder.glob(self.label_pattern)}
        return sorted(found - wanted)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def read_image(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 BGR; raises DataError naming the file."""
    return _decoded(path, cv2.IMREAD_COLOR)


def read_png(path: Path) -> np.ndarray:
    """As it is stored: (H, W) or (H, W, 3) BGR; raises DataError naming the file."""
    return _decoded(path, cv2.IMREAD_UNCHANGED)


def _decoded(path: Path, flags: int) -> np.ndarray:
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    image: np.ndarray | None = cv2.imdecode(content, flags) if content.size else None
    if image is None:
        raise DataError(f"{path} is damaged or not an image: fetch it again")
    return image


def identity_ids(count: int) -> np.ndarray:
    """A table for label files that hold train ids already: all else does not count."""
    table = np.full(256, IGNORE, np.uint8)
    table[:count] = np.arange(count)
    return table


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Image files below `folder` by name; none if there is no such folder."""
    return sorted(path for path in folder.rglob(pattern) if path.suffix.lower() in IMAGES)


class Cached:
    """Keeps the decoded samples of a split in memory: for sets that are small enough."""

    def __init__(self, data: SegmentationData):
        self.classes = data.classes
        self.samples = list(data)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.samples[index].name

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
