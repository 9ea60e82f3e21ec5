"""Each family takes optimizer steps on real frames with its recipe's own losses, and they fall.

By the recipe's optimizer and its groups; two CamVid frames at a quarter of their size, whole and
without random changes, so that the loss of every step is of the same pictures.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from rtseg.train.log import read_log
from rtseg.train.recipe import load_recipe
from rtseg.train.trainer import LOG, train

pytestmark = pytest.mark.usefixtures("one_thread")
STILL = [
    "data.name=camvid", "data.val=val", "data.workers=0", "augment.scale=[0.25, 0.25]",
    "augment.fit=null",
    "augment.category_cap=1", "augment.flip=0", "augment.blur=0", "augment.photometric=0",
    "augment.brightness=0", "augment.contrast=0", "augment.saturation=0", "augment.hue=0",
    "schedule.epochs=null", "schedule.warmup=0", "schedule.stop=1", "loss.class_weights=null",
    "batch=2", "precision=fp32", "ema=null", "log_every=1", "save_every=1000", "val_every=1000",
    "val_fit=null", "val_window=null", "val_size=[96, 128]",
]  # fmt: skip
SIZE = (96, 128)
FAST = [
    ("csfcn_nano_camvid", 6),
    ("sfnet_cityscapes model=sfnet_r18_dsn", 6),
    ("sfnet_lite_cityscapes", 6),
    ("sfanet_cityscapes", 6),
    ("mgseg_cityscapes", 6),
    ("icnet_cityscapes", 6),
    ("swiftnet_cityscapes", 6),
    ("swiftnet_pyramid_cityscapes", 6),
    ("bisenetv1_cityscapes", 6),
    ("bisenetv2_cityscapes", 6),
    ("pidnet_cityscapes", 6),
    ("ddrnet_cityscapes", 6),
]
SLOW = [
    ("csfcn_cityscapes", 20),
    ("sfnet_cityscapes model=sfnet_r50", 6),
    ("sfnet_official_cityscapes", 6),
    ("ecfd_cityscapes", 8),
    ("ecfd_bdd100k", 8),
    ("ecfd_pascal_context", 8),
    ("senformer_ade20k", 8),
    ("senformer_swin_ade20k", 8),
    ("senformer_coco_stuff_10k", 8),
    ("senformer_pascal_context", 8),
    ("senformer_cityscapes", 8),
    ("crossformer_fpn_ade20k", 8),
    ("crossformer_upernet_ade20k", 8),
    ("pidnet_camvid", 6),
]
CASES = [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]


@pytest.fixture(scope="module")
def two_frames(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CamVid of two frames, the same ones to train and to validate on."""
    root = tmp_path_factory.mktemp("camvid")
    source = shared_data / "camvid"
    lines = (source / "train.txt").read_text().splitlines()[:2]
    for folder in ("train", "trainannot"):
        (root / folder).symlink_to(source / folder)
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize(("words", "steps"), CASES)
def test_its_losses_fall(words: str, steps: int, two_frames: Path, tmp_path: Path) -> None:
    name, *changes = words.split()
    sizes = [f"augment.crop={list(SIZE)}", f"schedule.iterations={steps}"]
    recipe = load_recipe(name, [*STILL, f"data.root={two_frames}", *sizes, *changes])
    outcome = train(recipe, tmp_path, show=False)
    assert outcome.finished
    losses = [row["loss"] for row in read_log(tmp_path / LOG) if "loss" in row]
    assert len(losses) == steps
    assert losses[-1] < 0.97 * losses[0], losses
