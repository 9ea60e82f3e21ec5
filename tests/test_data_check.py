"""`data check` finds what was planted, and nothing in clean data."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from rtseg.data.check import check, contact_sheet
from rtseg.data.datasets import open_data
from rtseg.errors import DataError
from tiny_camvid import write_camvid


@pytest.fixture
def root(tmp_path):
    return write_camvid(tmp_path)


def kinds(root, split="train"):
    return {
        kind: len(lines) for kind, lines in check(open_data("camvid", root, split)).problems.items()
    }


def test_clean_data_are_clean(root):
    found = check(open_data("camvid", root, "train"))
    assert found.good, found.problems
    facts = json.loads(json.dumps(found.as_dict()))
    assert (facts["images"], facts["labels"], facts["sizes"]) == (6, 6, {"40x64": 6})
    assert sum(row["frequency"] for row in facts["classes"].values()) == pytest.approx(1)


def test_frequencies_are_counted(root):
    for path in (root / "trainannot").iterdir():
        label = np.zeros((40, 64), np.uint8)
        label[:10] = 3
        label[10:20] = 11
        cv2.imwrite(str(path), label)
    facts = check(open_data("camvid", root, "train")).as_dict()
    assert facts["classes"]["road"] == {"frequency": pytest.approx(1 / 3), "images": 6}
    assert facts["classes"]["car"] == {"frequency": 0, "images": 0}
    assert facts["uncounted"] == pytest.approx(1 / 4)
    assert facts["problems"] == {}  # a class that never occurs is none
    assert len(facts["absent"]) == 9
    assert "car" in facts["absent"]


def test_a_missing_label_and_a_stray_one(root):
    (root / "trainannot/frame_0.png").rename(root / "trainannot/other.png")
    assert kinds(root) == {"image without label": 1, "label without image": 1}


def test_a_listed_image_that_is_missing(root):
    lines = [f"train/frame_{i}.png trainannot/frame_{i}.png" for i in range(6)]
    (root / "train.txt").write_text("\n".join(lines))
    (root / "train/frame_3.png").unlink()
    assert kinds(root) == {"missing image": 1}


def test_a_label_of_another_size(root):
    cv2.imwrite(str(root / "trainannot/frame_0.png"), np.zeros((20, 64), np.uint8))
    assert kinds(root) == {"sizes differ": 1}


def test_ids_out_of_range(root):
    label = np.zeros((40, 64), np.uint8)
    label[0, :2] = 12, 77
    cv2.imwrite(str(root / "trainannot/frame_0.png"), label)
    found = check(open_data("camvid", root, "train"))
    assert [line.split(": ")[1] for line in found.problems["ids out of range"]] == ["12, 77"]


def test_unreadable_files(root):
    for name in ("train/frame_0.png", "trainannot/frame_1.png"):
        (root / name).write_bytes(b"no image")
    assert kinds(root) == {"unreadable": 2}


def test_contact_sheet_shows_what_can_be_read(root):
    data = open_data("camvid", root, "train")
    assert contact_sheet(data, columns=3, width=100).shape[1:] == (300, 3)
    (root / "train/frame_0.png").write_bytes(b"")
    assert contact_sheet(data).any()
    for path in (root / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="nothing to show"):
        contact_sheet(data)
