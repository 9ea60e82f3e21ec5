"""`rtseg data check`: finds what is wrong with a split before hours of training do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .classes import IGNORE, ClassSet
from .datasets import SegmentationData
from .images import add_title, arrange, blend, draw_legend, read_image

SHOWN = 12  # frames on the contact sheet


@dataclass
class DataReport:
    """What a split holds, and what is wrong with it.

    `pixels` (K,) int64 and `frames` (K,) int64 count each class's pixels and the images it is in.
    `problems` maps a kind of mistake to what was found, a line each; `absent` are classes that no
    label has, which is no mistake.
    """

    classes: ClassSet
    images: int = 0
    labels: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    frames: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    uncounted: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems

    def note(self, kind: str, line: str) -> None:
        self.problems.setdefault(kind, []).append(line)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; frequencies are fractions of all pixels that count."""
        share = self.pixels / max(1, int(self.pixels.sum()))
        rows = zip(self.classes.names, share.tolist(), self.frames.tolist(), strict=True)
        every = self.uncounted + int(self.pixels.sum())
        return {
            "images": self.images,
            "labels": self.labels,
            "sizes": self.sizes,
            "classes": {name: {"frequency": f, "images": n} for name, f, n in rows},
            "uncounted": self.uncounted / max(1, every),
            "absent": self.absent,
            "problems": self.problems,
        }


def check(data: SegmentationData, seen: Callable[[int], None] = lambda index: None) -> DataReport:
    """Read every file of the split; `seen` is called with each image that is done."""
    found = DataReport(data.classes)
    found.pixels, found.frames = np.zeros((2, len(data.classes)), np.int64)
    for index, files in enumerate(data.files):
        image = _image_size(files.image, found)
        if files.label is not None:
            _check_label(data, files.label, image, found)
        seen(index)
    for path in data.strays():
        found.note("label without image", str(path))
    if found.labels:
        found.absent = [data.classes.names[i] for i in np.flatnonzero(found.frames == 0)]
    return found


def _image_size(path: Path, found: DataReport) -> tuple[int, int] | None:
    if not path.is_file():
        found.note("missing image", str(path))
        return None
    try:
        height, width = read_image(path).shape[:2]
    except DataError as error:
        found.note("unreadable", str(error))
        return None
    found.images += 1
    key = f"{height}x{width}"
    found.sizes[key] = found.sizes.get(key, 0) + 1
    return height, width


def _check_label(
    data: SegmentationData, path: Path, image: tuple[int, int] | None, found: DataReport
) -> None:
    if not path.is_file():
        found.note("image without label", str(path))
        return
    try:
        raw = data.read_label(path)
    except DataError as error:
        found.note("unreadable", str(error))
        return
    found.labels += 1
    if image is not None and raw.shape != image:
        sizes = f"label {raw.shape[0]}x{raw.shape[1]}, image {image[0]}x{image[1]}"
        found.note("sizes differ", f"{path}: {sizes}")
    counts = np.bincount(raw.ravel(), minlength=256)
    # An id that means nothing and is not known to be void: often a label of another data set.
    strange = [i for i in np.flatnonzero(counts) if data.ids[i] == IGNORE and i not in data.void]
    if strange:
        found.note("ids out of range", f"{path}: {', '.join(map(str, strange))}")
    # The file's ids through the data set's table: two ids of one class add up.
    by_class = np.bincount(data.ids, weights=counts, minlength=256).astype(np.int64)
    found.pixels += by_class[: len(data.classes)]
    found.frames += by_class[: len(data.classes)] > 0
    found.uncounted += int(by_class[IGNORE])


def contact_sheet(data: SegmentationData, columns: int = 3, width: int = 400) -> np.ndarray:
    """(H, columns * width, 3) uint8 BGR: frames spread over the split with their labels laid on
    top, and the legend below. Raises DataError if none can be read."""
    pictures = []
    for index in np.unique(np.linspace(0, len(data) - 1, SHOWN).round().astype(int)):
        try:
            sample = data[int(index)]
        except DataError:
            continue
        shown = sample.image
        if sample.label is not None:
            shown = blend(sample.image, sample.label, data.classes.palette)
        pictures.append(add_title(shown, sample.name, width))
    if not pictures:
        raise DataError(f"nothing to show: no {data.split} image under {data.root} can be read")
    return np.vstack([arrange(pictures, columns), draw_legend(data.classes, columns * width)])
