"""Packing: frames, true labels and soft labels of several sets as one small `folder` data set."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml

from ..errors import DataError
from .classes import CAMVID, CITYSCAPES, IGNORE, ClassSet
from .datasets import CamVid, identity_ids, images_in
from .files import write_atomically
from .images import encode_png, read_image, read_png
from .soft_labels import load_class_map, read_probabilities

LEVELS = 32  # of a probability: as good to learn from, and a third of the size
CLEAR = 0.9  # share of a coarse class that its commonest fine one must have to stand for it
SEEN = 8  # of 255: what the fine classes of a coarse one must have for the teacher to choose


@dataclass(frozen=True)
class StreetFrame:
    """A frame to pack: `label` (H, W) in `classes`, or None; `soft`: its file of Cityscapes'
    probabilities, or None."""

    image: Path
    split: str
    label: np.ndarray | None
    classes: ClassSet
    soft: Path | None


@dataclass(frozen=True)
class Packed:
    """What was written: frames by split, and the bytes of all files."""

    frames: dict[str, int]
    bytes: int


def street_frames(camvid: Path, street19: Path) -> Iterator[StreetFrame]:
    """CamVid (SegNet's version) and the frames of a street19 folder: `cityscapes/` with labels in
    `cityscapes_labels/`, `highway/`, and soft labels in `soft/`.

    Raises:
        DataError: if a folder lacks what it should hold.
    """
    for split in ("train", "val"):
        data = CamVid(camvid, split)
        for files in data.files:
            assert files.label is not None
            label = data.ids[data.read_label(files.label)]
            soft = street19 / "soft" / "camvid" / f"{files.image.stem}.npz"
            yield StreetFrame(files.image, split, label, CAMVID, soft if split == "train" else None)
    ids = identity_ids(len(CITYSCAPES))
    for kind in ("cityscapes", "highway"):
        images = images_in(street19 / kind)
        if not images:
            raise DataError(f"no images in {street19 / kind}: expected cityscapes/ and highway/")
        for image in images:
            path = street19 / "cityscapes_labels" / f"{image.stem}.png"
            true = ids[read_png(path)] if kind == "cityscapes" and path.is_file() else None
            soft = street19 / "soft" / kind / f"{image.stem}.npz"
            yield StreetFrame(image, "train", true, CITYSCAPES, soft)


def pack_streets(
    camvid: Path,
    street19: Path,
    folder: Path,
    classes: ClassSet,
    quality: int = 90,
    seen: Callable[[], None] = lambda: None,
) -> Packed:
    """Write a `folder` data set for `classes`, Cityscapes' 19 or CamVid's 11.

    Labels of the other set are brought to these: 19 to 11 by the class map; 11 to 19 by the soft
    labels, which choose among the fine classes of each coarse one, see `refine_labels`.

    Args:
        camvid: CamVid in SegNet's version.
        street19: Folder with Cityscapes' frames and labels, and soft labels of CamVid's.
        folder: New; gets `images/SPLIT/*.jpg`, `labels/SPLIT/*.png`, `soft/*.npz`, `classes.yaml`.
        classes: CITYSCAPES or CAMVID, which the labels are brought to.
        quality: Of the JPEG files; those that are JPEG already are copied.
        seen: Called after each frame.

    Raises:
        DataError: if files are missing or cannot be read, or `folder` exists.
    """
    if classes not in (CITYSCAPES, CAMVID):
        raise DataError(f"streets are packed for cityscapes or camvid, not {classes.name!r}")
    if folder.exists():
        raise DataError(f"{folder} exists already: name a new folder, or delete it")
    class_map = np.array(load_class_map("cityscapes_to_camvid", CAMVID))
    frames = list(street_frames(camvid, street19))
    missing = [each.soft for each in frames if each.soft is not None and not each.soft.is_file()]
    if missing:
        raise DataError(f"{len(missing)} soft labels are missing, first {missing[0]}")
    clear = clear_classes([each.soft for each in frames if each.soft is not None], class_map)
    counts: dict[str, int] = {}
    for each in frames:
        soft = None if each.soft is None else read_probabilities(each.soft)
        label = each.label
        if label is not None and each.classes != classes:
            if classes == CAMVID:
                label = np.append(class_map, np.full(256 - len(class_map), IGNORE))[label]
            else:
                label = clear[label] if soft is None else refine_labels(label, soft, class_map)
        _write(folder, each, label, soft, quality)
        counts[each.split] = counts.get(each.split, 0) + 1
        seen()
    rows = [
        {"name": name, "color": list(color)}
        for name, color in zip(classes.names, classes.palette, strict=True)
    ]
    write_atomically(
        folder / "classes.yaml", yaml.safe_dump(rows, default_flow_style=None).encode()
    )
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Packed(counts, size)


def _write(
    folder: Path,
    frame: StreetFrame,
    label: np.ndarray | None,
    soft: np.ndarray | None,
    quality: int,
) -> None:
    """A frame's files; without a label it gets none, and is one to learn from soft labels."""
    name = frame.image.stem
    content = frame.image.read_bytes()
    # Those that are JPEG already are copied: packing them again would add losses.
    if frame.image.suffix.lower() not in (".jpg", ".jpeg"):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        content = cv2.imencode(".jpg", read_image(frame.image), options)[1].tobytes()
    write_atomically(folder / "images" / frame.split / f"{name}.jpg", content)
    if label is not None:
        write_atomically(
            folder / "labels" / frame.split / f"{name}.png", encode_png(label.astype(np.uint8))
        )
    if soft is not None:
        # To LEVELS steps and back to 0..255, so that readers need to know nothing of it.
        rounded = np.rint(np.rint(soft / 255 * (LEVELS - 1)) * 255 / (LEVELS - 1))
        packed = io.BytesIO()
        np.savez_compressed(packed, probabilities=rounded.astype(np.uint8))
        write_atomically(folder / "soft" / f"{name}.npz", packed.getvalue())


def refine_labels(label: np.ndarray, soft: np.ndarray, class_map: np.ndarray) -> np.ndarray:
    """Fine classes for a coarse true label: of those that the map brings to the true class, the
    one that the teacher finds likeliest; 255 where it sees none of several.

    Args:
        label: (H, W) uint8 coarse train ids, 255 where nothing counts.
        soft: (C, h, w) uint8 probabilities of the fine classes.
        class_map: (C,) the coarse class of each.

    Returns:
        (H, W) uint8 fine train ids.
    """
    height, width = label.shape
    fine = np.full(label.shape, IGNORE, np.uint8)
    full = [cv2.resize(each, (width, height), interpolation=cv2.INTER_LINEAR) for each in soft]
    for coarse in np.unique(label[label != IGNORE]):
        members = np.flatnonzero(class_map == coarse)
        if not len(members):
            continue
        own = label == coarse
        likely = np.stack([full[member][own] for member in members])
        chosen = members[likely.argmax(axis=0)]
        if len(members) > 1:
            chosen = np.where(likely.sum(axis=0, dtype=np.int64) >= SEEN, chosen, IGNORE)
        fine[own] = chosen
    return fine


def clear_classes(soft: list[Path], class_map: np.ndarray) -> np.ndarray:
    """256 fine train ids for coarse ones without soft labels: a coarse class becomes the fine one
    that has nearly all of it in the soft labels at hand, and 255 where none has."""
    total = sum(read_probabilities(path).mean(axis=(1, 2)) for path in soft)
    table = np.full(256, IGNORE, np.uint8)
    for coarse in np.unique(class_map[class_map != IGNORE]):
        members = np.flatnonzero(class_map == coarse)
        best = members[np.argmax(total[members])]
        if total[best] >= CLEAR * total[members].sum():
            table[coarse] = best
    return table
