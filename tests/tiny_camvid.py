"""A CamVid of a few small frames, and a recipe that trains on it in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rtseg.train.recipe import Recipe, check_recipe, merge

SIZE = (40, 64)
RECIPE = {
    "model": "csfcn_nano",
    "data": {"name": "camvid", "workers": 0},
    "augment": {"crop": [32, 64], "scale": [0.75, 1.5], "flip": 0.5, "brightness": 0.2},
    "optimizer": {"learning_rate": 0.01},
    "schedule": {"iterations": 4, "warmup": 2},
    "batch": 2,
    "val_size": [32, 64],
    "log_every": 1,
    "val_every": 100,
    "save_every": 100,
}


def write_camvid(root: Path, frames: int = 6) -> Path:
    """`train` and `val` of blocky frames whose color tells the class, as SegNet lays them out."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        (root / f"{split}annot").mkdir()
        for number in range(frames):
            label = np.kron(random.integers(0, 12, (5, 8)), np.ones((8, 8), int)).astype(np.uint8)
            image = np.stack([label * 20, 255 - label * 20, label * 10], axis=-1)
            name = f"frame_{number}.png"
            cv2.imwrite(str(root / split / name), image)
            cv2.imwrite(str(root / f"{split}annot" / name), label)
    return root


def tiny_recipe(root: Path, **changes: Any) -> Recipe:
    content = merge(RECIPE, {"data": {"root": str(root)}})
    return check_recipe(merge(content, changes))


def write_npz(folder: Path, name: str, probabilities: Any) -> None:
    """Soft labels (K, h, w) uint8 as a file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{name}.npz", probabilities=probabilities)


def one_hot(label: Any, classes: int = 11) -> Any:
    """label (H, W) -> (K, H, W) uint8, all of it on the true class."""
    return np.uint8(255 * (label[None] == np.arange(classes)[:, None, None]))
