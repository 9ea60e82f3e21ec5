"""Soft labels: a folder of class probabilities, one file a frame, and maps between class sets.

A file NAME.npz holds `probabilities`, uint8 (C, h, w): 255 is 1. h x w may be smaller than the
frame, whose stem is NAME; folders below count too. A class map says what the C classes become
in the data set that is trained on: a train id for each, 255 for classes that do not count.
Probabilities of classes that are merged are added. `write_soft_labels` also writes
`soft_labels.json`: which model wrote them, and its confidence by frame and by class.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from ..errors import DataError, UsageError
from .classes import IGNORE, ClassSet
from .files import write_atomically
from .limits import read_arrays, read_yaml

CLASS_MAPS = Path(__file__).with_name("class_maps")
FACTS = "soft_labels.json"
SMALLEST = 3  # of 255: below, a probability is written as 0, which packs well


class SoftLabels:
    """A folder of soft labels, in the classes of the data set they are for.

    Args:
        folder: Holds NAME.npz files, in any depth.
        classes: The data set's class set.
        class_map: A train id for each class in the files; None: they are the data set's.

    Raises:
        DataError: if the folder holds no such file, or two of one name.
    """

    def __init__(self, folder: Path, classes: ClassSet, class_map: Sequence[int] | None = None):
        self.folder, self.classes = Path(folder), classes
        ids = range(len(classes)) if class_map is None else class_map
        self.map = np.asarray(list(ids), np.int64)
        self.files: dict[str, Path] = {}
        for path in sorted(self.folder.rglob("*.npz")):
            if path.stem in self.files:
                raise DataError(f"{path} and {self.files[path.stem]} have the same name")
            self.files[path.stem] = path
        if not self.files:
            raise DataError(f"no soft labels in {folder}: give a folder of NAME.npz files")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def __getitem__(self, name: str) -> np.ndarray:
        """(K, h, w) int16 of the data set's K classes; 255 is 1, up to the rounding of each part
        of a sum. Raises DataError for a file that cannot be read or has other classes."""
        path = self.files[name]
        probabilities = read_probabilities(path)
        if len(probabilities) != len(self.map):
            raise DataError(
                f"{path} has {len(probabilities)} classes, not {len(self.map)}: give a class map "
                f"(teacher.class_map) from them to the {len(self.classes)} of {self.classes.name}"
            )
        return merge_classes(probabilities, self.map, len(self.classes))


def merge_classes(probabilities: np.ndarray, class_map: np.ndarray, classes: int) -> np.ndarray:
    """probabilities (C, h, w) uint8, class_map (C,) train ids -> sums (classes, h, w) int16."""
    # int16: the sum of several bytes may exceed 255 by their rounding.
    merged = np.zeros((classes, *probabilities.shape[1:]), np.int16)
    for values, train_id in zip(probabilities, class_map, strict=True):
        if train_id != IGNORE:
            merged[train_id] += values
    return merged


def read_probabilities(path: Path) -> np.ndarray:
    """(C, h, w) uint8; raises DataError naming the file."""
    try:
        values = np.asarray(read_arrays(path, DataError)["probabilities"])
    except KeyError as error:
        raise DataError(f"{path} holds no array `probabilities`") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}): write it again") from error
    if values.dtype != np.uint8 or values.ndim != 3:
        raise DataError(
            f"{path}: probabilities should be uint8 (C, h, w), not {values.dtype} {values.shape}"
        )
    return values


def load_class_map(source: str | Path | Sequence[int], classes: ClassSet) -> tuple[int, ...]:
    """A class map from a list, a YAML file that holds one, or the name of a shipped one.

    Args:
        source: Entries are train ids or names of `classes`; null or 255 for what does not count.
        classes: The class set that is mapped to.

    Raises:
        UsageError: if there is no such map, or an entry is no class.
    """
    entries: object = source
    if isinstance(source, (str, Path)):
        named = CLASS_MAPS / f"{source}.yaml"
        path = named if named.is_file() else Path(source)
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in CLASS_MAPS.glob("*.yaml")))
            raise UsageError(f"no class map {str(source)!r}, as a file or by name: known: {known}")
        entries = read_yaml(path)
    if not isinstance(entries, (list, tuple)) or not entries:
        raise UsageError(f"a class map is a list with an entry for each class, not {source}")
    return tuple(_train_id(entry, number, classes) for number, entry in enumerate(entries))


def _train_id(entry: object, number: int, classes: ClassSet) -> int:
    if entry is None or entry == IGNORE:
        return IGNORE
    if isinstance(entry, str) and entry in classes.names:
        return classes.names.index(entry)
    if isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < len(classes):
        return entry
    raise UsageError(
        f"class map, entry {number}: {entry!r} is no class of {classes.name}: write one of "
        f"{', '.join(classes.names)}, an id below {len(classes)}, or null"
    )


@dataclass
class Confidence:
    """The probability of the likeliest class: its mean over each frame, and over the pixels of
    each class that won, (K,) sums and counts."""

    frames: dict[str, float] = field(default_factory=dict)
    sums: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, name: str, probabilities: np.ndarray) -> None:
        """probabilities (K, h, w) uint8, 255 is 1."""
        best, labels = probabilities.max(axis=0) / 255, probabilities.argmax(axis=0)
        if not self.frames:
            self.sums = np.zeros(len(probabilities))
            self.counts = np.zeros(len(probabilities), np.int64)
        self.frames[name] = float(best.mean())
        self.sums += np.bincount(labels.ravel(), best.ravel(), len(probabilities))
        self.counts += np.bincount(labels.ravel(), minlength=len(probabilities))

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.frames.values()))) if self.frames else 0.0

    def by_class(self, classes: ClassSet) -> dict[str, dict[str, float | None]]:
        """The share of the pixels that each class won, and its mean confidence there."""
        share = self.counts / max(1, int(self.counts.sum()))
        mean = self.sums / np.maximum(1, self.counts)
        return {
            name: {"share": float(share[i]), "confidence": float(mean[i]) if share[i] else None}
            for i, name in enumerate(classes.names)
        }


def write_soft_labels(
    score: Callable[[np.ndarray], np.ndarray],
    frames: Iterable[tuple[str, np.ndarray]],
    folder: Path,
    classes: ClassSet,
    stride: int = 2,
    facts: dict[str, object] | None = None,
) -> Confidence:
    """Write a model's probabilities for frames as a folder of soft labels.

    Args:
        score: A frame (H, W, 3) uint8 BGR -> probabilities (K, h, w) float of any size.
        frames: Names, which become the files', and frames.
        folder: Made if it is not there.
        classes: The model's K classes.
        stride: Pixels of a frame for one soft label, the mean of theirs.
        facts: For `soft_labels.json`, such as the model's name.

    Returns:
        How sure the model was.

    Raises:
        UsageError: if two frames have the same name.
    """
    confidence = Confidence()
    for name, image in frames:
        if name in confidence.frames:
            raise UsageError(f"two frames are called {name}: label their folders one by one")
        height, width = (max(1, side // stride) for side in image.shape[:2])
        small = [
            # By area: the mean of the pixels that a soft label stands for.
            cv2.resize(np.asarray(each, np.float32), (width, height), interpolation=cv2.INTER_AREA)
            for each in score(image)
        ]
        quantized = np.rint(np.stack(small) * 255).clip(0, 255).astype(np.uint8)
        quantized[quantized < SMALLEST] = 0
        content = io.BytesIO()
        np.savez_compressed(content, probabilities=quantized)
        write_atomically(folder / f"{name}.npz", content.getvalue())
        confidence.add(name, quantized)
    summary = {
        **(facts or {}),
        "classes": list(classes.names),
        "stride": stride,
        "confidence": confidence.mean,
        "by_class": confidence.by_class(classes) if confidence.frames else {},
        "frames": confidence.frames,
    }
    write_atomically(folder / FACTS, json.dumps(summary, indent=1).encode())
    return confidence
