"""The splits that a recipe names: opened, described, counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..data.classes import CLASS_SETS, IGNORE, ClassSet, load_class_set
from ..data.datasets import Cached, SegmentationData, open_data
from .sections import Recipe


def load(recipe: Recipe, split: str, labels_optional: bool = False) -> SegmentationData | Cached:
    """The data set of a recipe, its frames kept in memory where it says so."""
    options = recipe.data
    classes = load_class_set(options.classes) if options.classes else None
    data = open_data(options.name, options.root, split, classes)
    data.labels_optional = labels_optional
    return Cached(data) if options.cache else data


def described(classes: ClassSet) -> str | dict[str, Any]:
    """For a checkpoint's header: the name of a known set, another one in full."""
    if CLASS_SETS.get(classes.name) == classes:
        return classes.name
    return {"name": classes.name, "names": classes.names, "palette": classes.palette}


def class_counts(data: SegmentationData | Cached) -> np.ndarray:
    """(K,) int64: the pixels of each class in the whole split."""
    counts = np.zeros(256, np.int64)
    for index in range(len(data)):
        label = data[index].label
        if label is not None:
            counts += np.bincount(label.ravel(), minlength=256)
    return counts[: min(IGNORE, len(data.classes))]
