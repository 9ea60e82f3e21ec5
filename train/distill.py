"""Distillation: a network learns from a teacher's class probabilities beside the true labels.

Hinton, Vinyals, Dean: "Distilling the Knowledge in a Neural Network", 2015.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.classes import IGNORE, ClassSet
from ..data.datasets import Cached, SegmentationData
from ..data.limits import read_json
from ..data.soft_labels import (
    FACTS,
    SoftLabels,
    load_class_map,
    read_probabilities,
    write_soft_labels,
)
from ..data.transforms import View
from ..errors import DataError, UsageError
from .parallel import Place, any_process
from .recipe import Recipe, Teacher
from .teacher import open_teacher

ONE = 255  # stands for probability 1
COUNTS = 0.5  # of a pixel's probability must be left by padding and the class map


class SoftSource:
    """The soft labels of a data set's frames, cut as their images are.

    Args:
        folders: Soft labels in the data set's classes; a frame's are averaged over those that
            have it.
        stride: Pixels of a crop for one of its soft labels.
        cache: Keep them in memory.
    """

    def __init__(self, folders: list[SoftLabels], stride: int, cache: bool = False):
        self.folders, self.stride = folders, stride
        self.kept: dict[str, list[np.ndarray]] | None = {} if cache else None

    @classmethod
    def open(
        cls, recipe: Recipe, data: SegmentationData | Cached, folder: Path, place: Place
    ) -> SoftSource:
        """The recipe's teachers; those that are models write into `folder`/teacher first.

        Raises:
            DataError: if no frame of `data` has soft labels.
            UsageError: if a teacher's classes are not those of `data`, and no class map is given.
        """
        teacher = recipe.teacher
        assert teacher is not None
        class_map = None
        if teacher.class_map is not None:
            class_map = load_class_map(teacher.class_map, data.classes)
        folders = []
        for number, each in enumerate(teacher.source):
            path = Path(each)
            if not path.is_dir():
                path = folder / "teacher" / str(number)
                if place.first:
                    _ask_model(each, data, path, teacher, class_map)
                # A barrier: the others wait for the files.
                any_process(False, place)
            folders.append(_open_folder(path, data.classes, class_map))
        source = cls(folders, teacher.stride, recipe.data.cache)
        names = [data.name(index) for index in range(len(data))]
        taught = [name for name in names if name in source]
        if not taught:
            raise DataError(
                f"{', '.join(teacher.source)}: no soft labels for any frame of the split, such as "
                f"{names[0]}.npz"
            )
        if source.kept is not None:  # now, before data workers fork: they share this memory
            source.kept.update({name: source.read(name) for name in taught})
        return source

    def __contains__(self, name: str) -> bool:
        return any(name in folder for folder in self.folders)

    def read(self, name: str) -> list[np.ndarray]:
        """Of each folder that has the frame: (K, h, w) int16, 255 is 1."""
        return [folder[name] for folder in self.folders if name in folder]

    def cut(self, name: str, view: View) -> np.ndarray:
        """(K, crop height / stride, crop width / stride) int16; 0 where nothing is known."""
        found = self.kept.get(name, []) if self.kept is not None else self.read(name)
        parts = [view.cut(each, self.stride) for each in found]
        if len(parts) == 1:
            return parts[0]
        height, width = (side // self.stride for side in view.crop)
        classes = len(self.folders[0].classes)
        # int16: sums of several bytes; the mean fits a byte again.
        total = np.zeros((classes, height, width), np.int16)
        for part in parts:
            total += part
        return total // max(1, len(parts))


def _open_folder(path: Path, classes: ClassSet, class_map: tuple[int, ...] | None) -> SoftLabels:
    """Its soft labels, through the class map unless they are in the data set's classes already:
    of several teachers, some may be."""
    found = SoftLabels(path, classes, class_map)
    if class_map is None or len(class_map) == len(classes):
        return found
    first = read_probabilities(next(iter(found.files.values())))
    return SoftLabels(path, classes) if len(first) == len(classes) else found


def _ask_model(
    model: str,
    data: SegmentationData | Cached,
    folder: Path,
    teacher: Teacher,
    class_map: tuple[int, ...] | None,
) -> None:
    """Write the soft labels that `model` gives the frames, unless they are there already."""
    if (folder / FACTS).is_file() and read_json(folder / FACTS)["model"] == model:
        return
    with open_teacher(model) as source:
        count = len(source.classes)
        same = source.classes.names == data.classes.names
        if class_map is None and not same:
            raise UsageError(
                f"the teacher {model} has {count} classes of {source.classes.name}, not those of "
                f"{data.classes.name}: give teacher.class_map"
            )
        if class_map is not None and not same and len(class_map) != count:
            raise UsageError(
                f"teacher.class_map has {len(class_map)} entries, the teacher {model} {count} "
                "classes: give one for each"
            )
        frames = ((data.name(index), data[index].image) for index in range(len(data)))
        facts = source.facts | {"model": model}
        write_soft_labels(source.score, frames, folder, source.classes, teacher.stride, facts)


def soft_loss(logits: Tensor, soft: Tensor, label: Tensor, teacher: Teacher) -> Tensor:
    """Kullback-Leibler divergence from teacher to student, times the temperature squared; the mean
    over the pixels that count, 0 where there are none.

    Args:
        logits: (N, K, H, W) of the student, at the crop's size or below.
        soft: (N, K, h, w) int16, 255 is 1; each pixel's are brought to a sum of 1.
        label: (N, H, W) int64 true labels.
        teacher: Its temperature and where it counts.
    """
    parts = soft.float()
    total = parts.sum(dim=1, keepdim=True)
    probability = parts / total.clamp(min=1)
    counts = total[:, 0] >= COUNTS * ONE
    if teacher.confidence:
        counts &= probability.amax(dim=1) >= teacher.confidence
    if teacher.where != "all":
        # A soft label stands for stride x stride pixels, so it meets the true label in their
        # middle.
        middle = teacher.stride // 2
        true = label[:, middle :: teacher.stride, middle :: teacher.stride]
        allowed = true == IGNORE
        if teacher.where == "agree":
            allowed |= true == probability.argmax(dim=1)
        counts &= allowed
    if teacher.temperature != 1:
        # The largest becomes 1 first, so that nothing vanishes in the power.
        probability = (probability / probability.amax(dim=1, keepdim=True).clamp(min=1e-6)).pow(
            1 / teacher.temperature
        )
        probability = probability / probability.sum(dim=1, keepdim=True).clamp(min=1e-6)
    logits = logits.float()
    if logits.shape[-2:] != soft.shape[-2:]:
        logits = F.interpolate(logits, soft.shape[-2:], mode="bilinear", align_corners=False)
    log_student = F.log_softmax(logits / teacher.temperature, dim=1)
    # xlogy, not p * log(p): it is 0 where p is.
    entropy = torch.xlogy(probability, probability).sum(dim=1)
    divergence = entropy - (probability * log_student).sum(dim=1)
    mean = (divergence * counts).sum() / counts.sum().clamp(min=1)
    # Gradients of softened probabilities shrink with the square of the temperature (Hinton et al.).
    return mean * teacher.temperature**2
