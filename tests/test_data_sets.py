"""Every data set by its official layout, with files written here."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rtseg.data.classes import (
    CAMVID,
    CITYSCAPES,
    CLASS_SETS,
    ClassSet,
    devkit_color,
    load_class_set,
)
from rtseg.data.datasets import CAMVID_COLORS, DATASETS, Cached, open_data, segnet_split
from rtseg.errors import DataError, UsageError
from tiny_camvid import write_camvid


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)
    return path


def frame(path: Path) -> Path:
    return write(path, np.full((1, 4, 3), 9, np.uint8))


def ids(path: Path, *values: int) -> Path:
    return write(path, np.array([values], np.uint8))


def labels(name: str, root: Path, split: str = "train") -> list[list[int]]:
    return [sample.label[0].tolist() for sample in open_data(name, root, split)]


def test_cityscapes(tmp_path):
    for city, values in (("aachen", (7, 0, 33, 6)), ("bonn", (8, 31, 255, 20))):
        stem = f"{city}_000000_000019"
        frame(tmp_path / f"leftImg8bit/train/{city}/{stem}_leftImg8bit.png")
        ids(tmp_path / f"gtFine/train/{city}/{stem}_gtFine_labelIds.png", *values)
    frame(tmp_path / "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit.png")
    assert labels("cityscapes", tmp_path) == [[0, 255, 18, 255], [1, 16, 255, 7]]
    test = open_data("cityscapes", tmp_path, "test")
    assert test[0].label is None
    assert test[0].name == "berlin_000000_000019"


def test_camvid_by_list_and_by_folder(tmp_path):
    write_camvid(tmp_path, frames=3)
    assert len(open_data("camvid", tmp_path, "train")) == 3
    listing = "/SegNet/CamVid/train/frame_2.png /SegNet/CamVid/trainannot/frame_2.png\n"
    (tmp_path / "train.txt").write_text(listing)
    data = open_data("camvid", tmp_path, "train")
    assert [sample.name for sample in data] == ["frame_2"]
    raw = cv2.imread(str(tmp_path / "trainannot/frame_2.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(data[0].label, np.where(raw == 11, 255, raw))


def test_camvid_in_32_colors(tmp_path):
    rgb = [(128, 128, 128), (64, 128, 192), (0, 0, 0), (1, 2, 3)]  # sky, SUV, void, no color
    frame(tmp_path / "701_StillsRaw_full/0006R0_f00930.png")
    label = np.array([rgb], np.uint8)[..., ::-1]
    write(tmp_path / "LabeledApproved_full/0006R0_f00930_L.png", label)
    assert labels("camvid32", tmp_path) == [[CAMVID.names.index("sky"), 8, 255, 255]]
    raw = open_data("camvid32", tmp_path, "train").read_label(
        tmp_path / "LabeledApproved_full/0006R0_f00930_L.png"
    )
    data = open_data("camvid32", tmp_path, "train")
    assert raw[0, 2] in data.void
    assert raw[0, 3] not in data.void


def test_camvid_has_32_colors_in_all_11_classes():
    rows = CAMVID_COLORS.strip().splitlines()
    assert len(rows) == len({row.split(":")[1].split("->")[0] for row in rows}) == 32
    assert {row.split("-> ")[1] for row in rows} == {*CAMVID.names, "void"}


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("0001TP_006690", "train"),
        ("0001TP_008550", "test"),
        ("0016E5_07959", "val"),
        ("0016E5_08161", "train"),
        ("Seq05VD_f00000", "test"),
        ("0006R0_f00930", "train"),
    ],
)
def test_segnet_split(name, split):
    assert segnet_split(name) == split


def test_ade20k(tmp_path):
    frame(tmp_path / "images/training/ADE_train_1.jpg")
    ids(tmp_path / "annotations/training/ADE_train_1.png", 0, 1, 150, 151)
    assert labels("ade20k", tmp_path) == [[255, 0, 149, 255]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("pascal_context_60", [0, 1, 59, 255]), ("pascal_context_59", [255, 0, 58, 255])],
)
def test_pascal_context(tmp_path, name, expected):
    frame(tmp_path / "JPEGImages/2008_000002.jpg")
    ids(tmp_path / "SegmentationClassContext/2008_000002.png", 0, 1, 59, 255)
    listing = tmp_path / "ImageSets/SegmentationContext/train.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("2008_000002\n")
    assert labels(name, tmp_path) == [expected]


def test_coco_stuff_as_converted(tmp_path):
    frame(tmp_path / "images/train2014/COCO_1.jpg")
    ids(tmp_path / "annotations/train2014/COCO_1_labelTrainIds.png", 0, 1, 171, 172)
    assert labels("coco_stuff_10k", tmp_path) == [[255, 0, 170, 255]]


def test_coco_stuff_as_released(tmp_path):
    io = pytest.importorskip("scipy.io", reason="scipy reads MATLAB files")
    frame(tmp_path / "images/COCO_1.jpg")
    (tmp_path / "annotations").mkdir()
    io.savemat(tmp_path / "annotations/COCO_1.mat", {"S": np.array([[0, 1, 92, 182]], np.uint16)})
    (tmp_path / "imageLists").mkdir()
    (tmp_path / "imageLists/train.txt").write_text("COCO_1\n")
    assert labels("coco_stuff_10k", tmp_path) == [[255, 0, 80, 170]]


def test_coco_ids_as_released_skip_the_eleven_gaps():
    table = DATASETS["coco_stuff_10k"].released
    names = CLASS_SETS["coco_stuff_10k"].names
    assert [names[table[i] - 1] for i in (1, 11, 13, 90, 92, 182)] == [
        "person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood",
    ]  # fmt: skip
    assert table[12] == table[0] == table[183] == 0


def test_bdd100k(tmp_path):
    frame(tmp_path / "images/10k/train/a.jpg")
    ids(tmp_path / "labels/sem_seg/masks/train/a.png", 0, 18, 255, 19)
    assert labels("bdd100k", tmp_path) == [[0, 18, 255, 255]]


def test_your_own_folder(tmp_path):
    frame(tmp_path / "images/train/drive1/a.jpg")
    ids(tmp_path / "labels/train/drive1/a.png", 0, 1, 2, 255)
    (tmp_path / "classes.yaml").write_text("- {name: road, color: [1, 2, 3]}\n- kerb\n")
    data = open_data("folder", tmp_path, "train")
    assert data.classes.names == ("road", "kerb")
    assert data.classes.palette == ((1, 2, 3), devkit_color(2))
    assert data[0].label.tolist() == [[0, 1, 255, 255]]
    frame(tmp_path / "images/new/a.jpg")
    assert open_data("folder", tmp_path, "new")[0].label is None


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "folder"])
def test_an_empty_folder_says_what_is_expected(name, tmp_path):
    with pytest.raises(DataError, match=r"no train images .* expected"):
        open_data(name, tmp_path, "train")


def test_wrong_names_are_met_with_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'camvid'"):
        open_data("camvit", tmp_path, "train")
    with pytest.raises(DataError, match="no split 'valid'"):
        open_data("ade20k", tmp_path, "valid")
    with pytest.raises(DataError, match="no folder"):
        open_data("camvid", tmp_path / "nowhere", "train")


def test_bad_files_are_named(tmp_path):
    write_camvid(tmp_path, frames=2)
    data = open_data("camvid", tmp_path, "train")
    path = tmp_path / "train/frame_0.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"frame_0\.png is damaged"):
        data[0]
    (tmp_path / "train/frame_1.png").unlink()
    with pytest.raises(DataError, match=r"cannot read .*frame_1\.png"):
        data[1]


def test_labels_of_another_size_or_in_color_are_refused(tmp_path):
    write_camvid(tmp_path, frames=2)
    data = open_data("camvid", tmp_path, "train")
    ids(tmp_path / "trainannot/frame_0.png", 1, 2)
    with pytest.raises(DataError, match="is 1x2, but its image"):
        data[0]
    frame(tmp_path / "trainannot/frame_1.png")
    with pytest.raises(DataError, match="one channel"):
        data[1]


def test_cached_data_are_the_same(tmp_path):
    data = open_data("camvid", write_camvid(tmp_path), "val")
    cached = Cached(data)
    assert len(cached) == len(data)
    assert all(np.array_equal(a.label, b.label) for a, b in zip(data, cached, strict=True))


def test_class_sets_are_complete():
    sizes = {name: len(each) for name, each in CLASS_SETS.items()}
    assert sizes == {
        "cityscapes": 19, "camvid": 11, "ade20k": 150, "pascal_context_59": 59,
        "pascal_context_60": 60, "coco_stuff_10k": 171, "bdd100k": 19,
    }  # fmt: skip
    for each in CLASS_SETS.values():
        assert len(set(each.names)) == len(set(each.palette)) == len(each)


def test_load_class_set_by_name_and_file(tmp_path):
    assert load_class_set("cityscapes") is CITYSCAPES
    path = tmp_path / "mine.yaml"
    path.write_text("- {name: road, color: [128, 64, 128]}\n- {name: rail, color: [0, 0, 9]}\n")
    assert load_class_set(path) == ClassSet("mine", ("road", "rail"), ((128, 64, 128), (0, 0, 9)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("road: 1", "should be a list"),
        ("- {name: road, shade: [1, 2, 3]}\n- kerb", "unknown key 'shade'"),
        ("- {color: [1, 2, 3]}\n- kerb", "class 0: write a name"),
        ("- {name: road, color: [1, 2, 300]}\n- kerb", "each 0..255"),
        ("- road\n- {name: road, color: [1, 2, 3]}", "classes 0 and 1 are both called 'road'"),
        ("- {name: road", "is not valid YAML"),
    ],
)
def test_class_files_that_are_wrong(tmp_path, text, message):
    path = tmp_path / "classes.yaml"
    with pytest.raises(UsageError, match=r"no file .*classes\.yaml: it should list the classes"):
        load_class_set(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_class_set(path)


def test_an_unknown_class_set_is_met_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'cityscapes'"):
        load_class_set("cityscape")
