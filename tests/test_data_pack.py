"""Packing street frames: labels of both class sets are brought to the one asked for."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from rtseg.cli.app import app
from rtseg.data.classes import CAMVID, CITYSCAPES, IGNORE
from rtseg.data.datasets import open_data
from rtseg.data.pack import pack_streets, refine_labels
from rtseg.data.soft_labels import load_class_map, read_probabilities
from rtseg.errors import DataError
from rtseg.train.trainer import train
from tiny_camvid import tiny_recipe, write_camvid
from typer.testing import CliRunner

MAP = np.array(load_class_map("cityscapes_to_camvid", CAMVID))
BUILDING, WALL, LIGHT, SIGN = 2, 3, 6, 7  # Cityscapes' train ids


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A CamVid of two frames a split, and a street19 of one Cityscapes and one highway frame."""
    root = tmp_path_factory.mktemp("sets")
    camvid, street = write_camvid(root / "camvid", frames=2), root / "street19"
    random = np.random.default_rng(0)
    image = cv2.GaussianBlur(random.integers(0, 256, (40, 64, 3)).astype(np.uint8), (0, 0), 2)
    for kind, names in (
        ("camvid", ["frame_0", "frame_1"]),
        ("cityscapes", ["city"]),
        ("highway", ["way"]),
    ):
        (street / "soft" / kind).mkdir(parents=True)
        (street / kind).mkdir(exist_ok=True)
        for name in names:
            soft = random.integers(0, 14, (19, 20, 32)).astype(np.uint8)
            soft[BUILDING], soft[WALL] = 200, 10
            np.savez_compressed(street / "soft" / kind / f"{name}.npz", probabilities=soft)
            if kind != "camvid":
                cv2.imwrite(str(street / kind / f"{name}.jpg"), image)
    (street / "camvid").rmdir()
    (street / "cityscapes_labels").mkdir()
    label = np.full((40, 64), SIGN, np.uint8)
    label[:4] = IGNORE
    cv2.imwrite(str(street / "cityscapes_labels" / "city.png"), label)
    return camvid, street


def test_the_teacher_chooses_among_the_fine_classes_of_the_true_one():
    label = np.array([[1, 1, 6, 6, 3, IGNORE]], np.uint8)  # building, sign, road
    soft = np.zeros((19, 1, 6), np.uint8)
    soft[WALL, 0, 1] = 90
    soft[BUILDING, 0, 0] = 50
    soft[LIGHT, 0, 2] = 8
    soft[8] = 255  # vegetation, which the true labels exclude
    fine = refine_labels(label, soft, MAP)
    assert fine.tolist() == [[BUILDING, WALL, LIGHT, IGNORE, 0, IGNORE]]


@pytest.mark.parametrize("classes", [CITYSCAPES, CAMVID], ids=["19", "11"])
def test_packed_sets_open_and_train(sets, tmp_path, classes):
    folder = tmp_path / "packed"
    packed = pack_streets(*sets, folder, classes)
    assert packed.frames == {"train": 4, "val": 2}
    data = open_data("folder", folder, "train", classes)
    data.labels_optional = True
    samples = {sample.name: sample for sample in data}
    assert samples["way"].label is None
    city = np.unique(samples["city"].label).tolist()
    assert city == ([SIGN, IGNORE] if classes == CITYSCAPES else [6, IGNORE])
    true = cv2.imread(str(sets[0] / "trainannot" / "frame_0.png"), cv2.IMREAD_UNCHANGED)
    label = samples["frame_0"].label
    if classes == CAMVID:
        assert np.array_equal(label, np.where(true < 11, true, IGNORE))
    else:
        coarse = np.append(MAP, np.full(237, IGNORE))[label]
        decided = label != IGNORE
        assert np.array_equal(coarse[decided], true[decided])
        assert (label[true == 1] == BUILDING).all()
    recipe = tiny_recipe(
        folder,
        data={"name": "folder", "classes": classes.name},
        schedule={"iterations": 2},
        teacher={
            "source": str(folder / "soft"),
            "class_map": "cityscapes_to_camvid" if classes == CAMVID else None,
        },
    )
    assert train(recipe, tmp_path / "run", show=False).finished


def test_without_soft_labels_only_clear_classes_are_refined(sets, tmp_path):
    pack_streets(*sets, tmp_path / "packed", CITYSCAPES)
    label = cv2.imread(str(tmp_path / "packed" / "labels" / "val" / "frame_0.png"), -1)
    true = cv2.imread(str(sets[0] / "valannot" / "frame_0.png"), -1)
    assert (label[true == 1] == BUILDING).all()  # 95 % of it, with walls
    assert (label[true == 6] == IGNORE).all()  # lights and signs alike
    assert (label[true == 3] == 0).all()


def test_probabilities_keep_32_levels(sets, tmp_path):
    pack_streets(*sets, tmp_path / "packed", CITYSCAPES)
    before = read_probabilities(sets[1] / "soft" / "highway" / "way.npz").astype(int)
    after = read_probabilities(tmp_path / "packed" / "soft" / "way.npz").astype(int)
    assert np.abs(after - before).max() <= 5
    assert len(np.unique(after)) <= 32


def test_nothing_is_written_over_and_what_lacks_is_named(sets, tmp_path):
    call = ["data", "pack", *map(str, sets), "-o", str(tmp_path / "packed"), "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["frames"] == {"train": 4, "val": 2}
    again = CliRunner().invoke(app, call).exception
    assert isinstance(again, DataError)
    assert "exists already" in str(again)
    with pytest.raises(DataError, match="expected cityscapes/ and highway/"):
        pack_streets(sets[0], tmp_path, tmp_path / "other", CITYSCAPES)
    assert not (tmp_path / "other").exists()
