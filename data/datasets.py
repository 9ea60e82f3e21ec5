"""Data sets: pairs of image and label files, in their official folder layouts or in your own.

`open_data` opens a split by the name of its set.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from ..errors import DataError, UsageError
from .classes import (
    ADE20K,
    BDD100K,
    CAMVID,
    CITYSCAPES,
    COCO_STUFF_10K,
    IGNORE,
    PASCAL_CONTEXT_59,
    PASCAL_CONTEXT_60,
    ClassSet,
    load_class_set,
)
from .images import IMAGES, read_image, read_png
from .limits import read_lines


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


class SegmentationData(ABC):
    """A split of a data set. Subclasses say where files lie (`find`) and what ids mean.

    `ids`: 256 train ids, one for each value in a label file; 255 for values that do not count.
    `void`: those of them that may occur; others are mistakes. `label_pattern`: names of all label
    files beside a split's own; "" where a folder serves several splits.

    Raises:
        DataError: if the split has no files.
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

    @abstractmethod
    def layout(self) -> str:
        """The files of a split, for messages."""

    @abstractmethod
    def find(self) -> Iterable[Files]:
        """The split's files in a fixed order; they need not exist."""

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


def identity_ids(count: int) -> np.ndarray:
    """A table for label files that already hold train ids; other values do not count."""
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


class Cityscapes(SegmentationData):
    """leftImg8bit and gtFine, by city; label ids become the 19 train ids. `test` has no labels."""

    classes = CITYSCAPES
    ids = identity_ids(0)
    ids[list(CITYSCAPES.label_ids or ())] = np.arange(len(CITYSCAPES))
    void = tuple(range(34))  # its ids without a train id, and unlabeled: 0
    label_pattern = "*_gtFine_labelIds.png"

    def layout(self) -> str:
        label = (
            "" if self.split == "test" else f" and gtFine/{self.split}/CITY/{self.label_pattern}"
        )
        return f"leftImg8bit/{self.split}/CITY/*_leftImg8bit.png{label}"

    def find(self) -> Iterator[Files]:
        images = self.root / "leftImg8bit" / self.split
        for image in images_in(images, "*_leftImg8bit.png"):
            frame = image.name.removesuffix("_leftImg8bit.png")
            labels = self.root / "gtFine" / self.split / image.parent.name
            label = labels / f"{frame}_gtFine_labelIds.png"
            yield Files(image, None if self.split == "test" else label)

    def name(self, index: int) -> str:
        return super().name(index).removesuffix("_leftImg8bit")


class CamVid(SegmentationData):
    """The 11-class version that SegNet uses: `train.txt` lists image and label path per line."""

    classes = CAMVID
    ids = identity_ids(len(CAMVID))
    void = (len(CAMVID),)

    def layout(self) -> str:
        return f"{self.split}.txt, {self.split}/ and {self.split}annot/"

    def find(self) -> Iterator[Files]:
        listing = self.root / f"{self.split}.txt"
        if not listing.is_file():
            for image in images_in(self.root / self.split):
                yield Files(image, self.root / f"{self.split}annot" / f"{image.stem}.png")
            return
        for line in read_lines(listing):
            image, label = (self._inside(entry) for entry in line.split())
            yield Files(image, label)

    def _inside(self, entry: str) -> Path:
        """Published lists give paths from their author's machine: the last two parts count."""
        return self.root.joinpath(*Path(entry).parts[-2:])


CAMVID_COLORS = """
Sky: 128 128 128 -> sky
Building: 128 0 0 -> building
Archway: 192 0 128 -> building
Bridge: 0 128 64 -> building
Tunnel: 64 0 64 -> building
Wall: 64 192 0 -> building
Column_Pole: 192 192 128 -> pole
TrafficCone: 0 0 64 -> pole
Road: 128 64 128 -> road
LaneMkgsDriv: 128 0 192 -> road
LaneMkgsNonDriv: 192 0 64 -> road
Sidewalk: 0 0 192 -> pavement
ParkingBlock: 64 192 128 -> pavement
RoadShoulder: 128 128 192 -> pavement
Tree: 128 128 0 -> tree
VegetationMisc: 192 192 0 -> tree
SignSymbol: 192 128 128 -> sign
Misc_Text: 128 128 64 -> sign
TrafficLight: 0 64 64 -> sign
Fence: 64 64 128 -> fence
Car: 64 0 128 -> car
SUVPickupTruck: 64 128 192 -> car
Truck_Bus: 192 128 192 -> car
Train: 192 64 128 -> car
OtherMoving: 128 64 64 -> car
Pedestrian: 64 64 0 -> pedestrian
Child: 192 128 64 -> pedestrian
CartLuggagePram: 64 0 192 -> pedestrian
Animal: 64 128 64 -> pedestrian
Bicyclist: 0 128 192 -> bicyclist
MotorcycleScooter: 192 0 192 -> bicyclist
Void: 0 0 0 -> void
"""


def _color_rows(text: str) -> tuple[np.ndarray, np.ndarray]:
    """(color codes, sorted; CamVid train id of each), 255 for void."""
    rows = {}
    for row in text.strip().splitlines():
        _, color, target = (part.strip() for part in row.replace("->", ":").split(":"))
        red, green, blue = map(int, color.split())
        known = target in CAMVID.names
        rows[red << 16 | green << 8 | blue] = CAMVID.names.index(target) if known else IGNORE
    codes = sorted(rows)
    return np.array(codes), np.array([rows[code] for code in codes], np.uint8)


class CamVid32(SegmentationData):
    """The original release in 32 colors, which become the 11 classes.

    A split is a list of frame names, `train.txt` and so on; without lists the frames part by
    sequence as SegNet's did.
    """

    classes = CAMVID
    codes, targets = _color_rows(CAMVID_COLORS)
    # Labels are read as row numbers of the color table, which the ids turn into classes.
    ids = np.append(targets, np.full(256 - len(targets), IGNORE, np.uint8))
    void = (int(np.argmax(targets == IGNORE)),)
    label_pattern = ""

    def layout(self) -> str:
        return "701_StillsRaw_full/*.png and LabeledApproved_full/*_L.png"

    def find(self) -> Iterator[Files]:
        listing = self.root / f"{self.split}.txt"
        listed = {Path(line).stem for line in read_lines(listing)} if listing.is_file() else None
        for image in images_in(self.root / "701_StillsRaw_full"):
            name = image.stem
            if name in listed if listed is not None else segnet_split(name) == self.split:
                yield Files(image, self.root / "LabeledApproved_full" / f"{name}_L.png")

    def read_label(self, path: Path) -> np.ndarray:
        blue, green, red = (read_image(path)[..., channel].astype(np.int64) for channel in range(3))
        code = red << 16 | green << 8 | blue
        # A color as one number, found by bisection in the sorted table: a picture at once.
        row = np.searchsorted(self.codes, code).clip(max=len(self.codes) - 1)
        unknown = self.codes[row] != code
        return np.where(unknown, IGNORE, row).astype(np.uint8)


def segnet_split(name: str) -> str:
    """train, val or test for a frame such as 0016E5_07959."""
    sequence, _, number = name.partition("_")
    if sequence == "Seq05VD" or (sequence == "0001TP" and int(number) >= 8550):
        return "test"
    if sequence == "0016E5" and 7959 <= int(number) <= 8159:
        return "val"
    return "train"


class Ade20k(SegmentationData):
    """ADEChallengeData2016: 150 classes from 1 on in the files; 0 does not count."""

    classes = ADE20K
    splits = ("train", "val")
    # By one: 0 does not count, and class 0 is 1 in the files.
    ids = np.roll(identity_ids(len(ADE20K)), 1)
    void = (0,)

    @property
    def folder(self) -> str:
        return {"train": "training", "val": "validation"}[self.split]

    def layout(self) -> str:
        return f"images/{self.folder}/*.jpg and annotations/{self.folder}/*.png"

    def find(self) -> Iterator[Files]:
        for image in images_in(self.root / "images" / self.folder):
            yield Files(image, self.root / "annotations" / self.folder / f"{image.stem}.png")


class PascalContext60(SegmentationData):
    """VOC2010 with Pascal Context's 59 commonest classes and background, 0."""

    classes = PASCAL_CONTEXT_60
    splits = ("train", "val")
    ids = identity_ids(len(PASCAL_CONTEXT_60))
    label_pattern = ""

    def layout(self) -> str:
        return (
            f"JPEGImages/, SegmentationClassContext/ and "
            f"ImageSets/SegmentationContext/{self.split}.txt"
        )

    def find(self) -> Iterator[Files]:
        listing = self.root / "ImageSets" / "SegmentationContext" / f"{self.split}.txt"
        for name in read_lines(listing) if listing.is_file() else ():
            label = self.root / "SegmentationClassContext" / f"{name}.png"
            yield Files(self.root / "JPEGImages" / f"{name}.jpg", label)


class PascalContext59(PascalContext60):
    """The same files; background does not count."""

    classes = PASCAL_CONTEXT_59
    ids = np.roll(identity_ids(len(PASCAL_CONTEXT_59)), 1)
    void = (0, IGNORE)


COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)  # ids 1..182 that name nothing


class CocoStuff10k(SegmentationData):
    """COCO-Stuff 10K: MATLAB files and image lists as released (these need scipy), or the PNGs
    that mmsegmentation's converter makes of them; 171 classes, 0 does not count."""

    classes = COCO_STUFF_10K
    splits = ("train", "test")
    ids = np.roll(identity_ids(len(COCO_STUFF_10K)), 1)
    void = (0,)
    label_pattern = ""
    released = np.zeros(256, np.uint8)  # id as released -> 1..171 as converted
    released[np.setdiff1d(np.arange(1, 183), COCO_GAPS)] = np.arange(1, 172)

    def layout(self) -> str:
        return (
            f"imageLists/{self.split}.txt, images/*.jpg and annotations/*.mat, or "
            f"images/{self.split}2014 and annotations/{self.split}2014/*_labelTrainIds.png"
        )

    def find(self) -> Iterator[Files]:
        listing = self.root / "imageLists" / f"{self.split}.txt"
        if listing.is_file():
            for name in read_lines(listing):
                image = self.root / "images" / f"{name}.jpg"
                yield Files(image, self.root / "annotations" / f"{name}.mat")
            return
        for image in images_in(self.root / "images" / f"{self.split}2014"):
            labels = self.root / "annotations" / f"{self.split}2014"
            yield Files(image, labels / f"{image.stem}_labelTrainIds.png")

    def read_label(self, path: Path) -> np.ndarray:
        return self.released[_matlab(path)] if path.suffix == ".mat" else super().read_label(path)


def _matlab(path: Path) -> np.ndarray:
    try:
        from scipy.io import loadmat  # type: ignore[import-untyped]
    except ImportError as error:
        raise DataError(f"{path} needs `pip install scipy` to be read") from error
    try:
        return np.asarray(loadmat(path)["S"], np.uint8)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


class Bdd100k(SegmentationData):
    """BDD100K's 10k images with the 19 classes of Cityscapes; `test` has no labels."""

    classes = BDD100K
    ids = identity_ids(len(BDD100K))

    def layout(self) -> str:
        return f"images/10k/{self.split}/*.jpg and labels/sem_seg/masks/{self.split}/*.png"

    def find(self) -> Iterator[Files]:
        labels = self.root / "labels" / "sem_seg" / "masks" / self.split
        for image in images_in(self.root / "images" / "10k" / self.split):
            yield Files(image, None if self.split == "test" else labels / f"{image.stem}.png")


class Folder(SegmentationData):
    """Your own: images/SPLIT and labels/SPLIT with the same names, and classes.yaml, a list of
    `{name, color}` by the ids in the labels; 255 does not count. Without labels/SPLIT the split
    is one to predict."""

    def __init__(self, root: Path, split: str, classes: ClassSet | None = None):
        self.classes = classes or load_class_set(Path(root) / "classes.yaml")
        self.ids = identity_ids(len(self.classes))
        self.splits = (split,) if split and split == Path(split).name else ()
        super().__init__(root, split)

    def layout(self) -> str:
        return f"classes.yaml, images/{self.split}/* and labels/{self.split}/*.png"

    def find(self) -> Iterator[Files]:
        images, labels = (self.root / kind / self.split for kind in ("images", "labels"))
        for image in images_in(images):
            label = (labels / image.relative_to(images)).with_suffix(".png")
            yield Files(image, label if labels.is_dir() else None)


DATASETS: dict[str, type[SegmentationData]] = {
    "cityscapes": Cityscapes,
    "camvid": CamVid,
    "camvid32": CamVid32,
    "ade20k": Ade20k,
    "pascal_context_59": PascalContext59,
    "pascal_context_60": PascalContext60,
    "coco_stuff_10k": CocoStuff10k,
    "bdd100k": Bdd100k,
    "folder": Folder,
}


def open_data(
    name: str, root: Path, split: str, classes: ClassSet | None = None
) -> SegmentationData:
    """Open a split of a data set.

    Args:
        name: One of DATASETS.
        root: The data set's folder.
        split: Such as train or val.
        classes: For "folder" alone; else its `classes.yaml`.

    Raises:
        UsageError: if there is no data set of that name.
        DataError: if files are missing.
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(DATASETS)}"
        raise UsageError(f"no data set is called {name!r}: {hint}")
    if name == "folder":
        return Folder(root, split, classes)
    return DATASETS[name](root, split)
