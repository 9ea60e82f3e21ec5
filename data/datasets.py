"""Data sets by their official folder layouts: pairs of image and label, decoded to train ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import cv2
import numpy as np

from .classes import CAMVID, IGNORE, ClassSet

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class DataError(ValueError):
    """A file or folder of a data set that is missing, unreadable or not what it should be."""


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
    Raises DataError where the split has no files.
    """

    classes: ClassSet
    splits: tuple[str, ...] = ("train", "val", "test")
    ids: np.ndarray

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
        if files.label is None:
            return Sample(image, None, self.name(index))
        label = self.train_ids(self.read_label(files.label))
        if label.shape != image.shape[:2]:
            raise DataError(
                f"{files.label} is {_size(label)}, but its image {files.image.name} is "
                f"{_size(image)}"
            )
        return Sample(image, label, self.name(index))

    def read_label(self, path: Path) -> np.ndarray:
        """The label file as (H, W) uint8."""
        label = read_png(path)
        if label.ndim != 2 or label.dtype != np.uint8:
            raise DataError(f"{path} should hold 8-bit class ids in one channel: is it in colour?")
        return label

    def train_ids(self, label: np.ndarray) -> np.ndarray:
        return self.ids[label]


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
    image = cv2.imdecode(content, flags) if content.size else None
    if image is None:
        raise DataError(f"{path} is damaged or not an image: fetch it again")
    return image


def identity_ids(count: int) -> np.ndarray:
    """A table for label files that hold train ids already: all else does not count."""
    table = np.full(256, IGNORE, np.uint8)
    table[:count] = np.arange(count)
    return table


class CamVid(SegmentationData):
    """The 11-class version that SegNet uses: `train.txt` lists image and label path per line."""

    classes = CAMVID
    ids = identity_ids(len(CAMVID))

    def layout(self) -> str:
        return f"{self.split}.txt, {self.split}/ and {self.split}annot/"

    def find(self) -> Iterator[Files]:
        listing = self.root / f"{self.split}.txt"
        if not listing.is_file():
            for image in images_in(self.root / self.split):
                yield Files(image, self.root / f"{self.split}annot" / f"{image.stem}.png")
            return
        for line in listing.read_text().splitlines():
            if line.strip():
                image, label = (self._inside(entry) for entry in line.split())
                yield Files(image, label)

    def _inside(self, entry: str) -> Path:
        """Published lists give paths from the author's machine: the last two parts count."""
        return self.root.joinpath(*Path(entry).parts[-2:])


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Image files below `folder` by name; none if there is no such folder."""
    return sorted(path for path in folder.rglob(pattern) if path.suffix.lower() in IMAGES)


DATASETS: dict[str, Callable[[Path, str], SegmentationData]] = {"camvid": CamVid}


def open_data(name: str, root: Path, split: str) -> SegmentationData:
    """The split of a data set; raises ValueError for a name that is not in DATASETS."""
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(DATASETS)}"
        raise ValueError(f"no data set is called {name!r}: {hint}")
    return DATASETS[name](root, split)


class Cached:
    """Keeps the decoded samples of a split in memory: for sets that are small enough."""

    def __init__(self, data: SegmentationData):
        self.classes = data.classes
        self.files = data.files
        self.samples = list(data)

    def __len__(self) -> int:
        return len(self.samples)

    def name(self, index: int) -> str:
        return self.samples[index].name

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]
