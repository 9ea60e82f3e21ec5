"""Soft labels: exact under class maps, in files and under augmentation."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from rtseg.data.classes import CAMVID, CITYSCAPES, IGNORE
from rtseg.data.soft_labels import (
    FACTS,
    SoftLabels,
    load_class_map,
    read_probabilities,
    write_soft_labels,
)
from rtseg.data.transforms import Augment
from rtseg.errors import DataError, UsageError
from tiny_camvid import one_hot, write_npz


def test_the_map_from_cityscapes_to_camvid_adds_probabilities_exactly(tmp_path):
    random = np.random.default_rng(0)
    probabilities = random.integers(0, 256, (19, 5, 7)).astype(np.uint8)
    write_npz(tmp_path, "a", probabilities)
    ids = (3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10)
    class_map = load_class_map("cityscapes_to_camvid", CAMVID)
    assert class_map == ids
    merged = SoftLabels(tmp_path, CAMVID, class_map)["a"]
    for train_id in range(11):
        members = [i for i in range(19) if ids[i] == train_id]
        assert np.array_equal(merged[train_id], probabilities[members].sum(axis=0, dtype=int))


def test_a_class_map_is_a_list_of_names_ids_and_null(tmp_path):
    path = tmp_path / "map.yaml"
    path.write_text("[road, 0, null, 255]")
    assert load_class_map(path, CAMVID) == (3, 0, IGNORE, IGNORE)
    write_npz(tmp_path, "a", np.full((4, 1, 1), 60, np.uint8))
    assert SoftLabels(tmp_path, CAMVID, (3, 0, IGNORE, IGNORE))["a"].sum() == 120


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[rode]", "entry 0: 'rode' is no class of camvid"),
        ("[11]", "entry 0: 11 is no class"),
        ("[true]", "entry 0: True is no class"),
        ("{road: 1}", "a class map is a list"),
        ("[", "not valid YAML"),
    ],
)
def test_a_wrong_class_map_says_what_is_wrong(tmp_path, content, said):
    path = tmp_path / "map.yaml"
    path.write_text(content)
    with pytest.raises(UsageError, match=said):
        load_class_map(path, CAMVID)


def test_an_unknown_class_map_lists_those_that_ship():
    with pytest.raises(UsageError, match="cityscapes_to_camvid"):
        load_class_map("cityscapes_to_camvit", CAMVID)


def test_soft_labels_move_with_the_true_ones():
    """At the frame's own scale to the pixel: crop, padding and mirror included."""
    random = np.random.default_rng(1)
    label = random.integers(0, 11, (24, 30)).astype(np.uint8)
    image = np.zeros((24, 30, 3), np.uint8)
    for crop in ((8, 16), (32, 32)):
        augment = Augment(crop=crop, flip=0.5)
        for seed in range(10):
            _, cut, view = augment.augment(image, label, np.random.default_rng(seed))
            soft = view.cut(one_hot(label))
            expected = one_hot(cut)  # 0 in all classes where padded
            assert np.array_equal(soft, expected)


def test_half_size_soft_labels_at_stride_two_are_the_windows_own():
    soft = np.random.default_rng(2).integers(0, 256, (3, 12, 15)).astype(np.uint8)
    image, label = np.zeros((24, 30, 3), np.uint8), np.zeros((24, 30), np.uint8)
    augment = Augment(crop=(8, 16), flip=0.5)
    seen = set()
    for seed in range(40):
        _, _, view = augment.augment(image, label, np.random.default_rng(seed))
        if view.top % 2 == 0 and view.left % 2 == 0:
            window = soft[:, view.top // 2 :, view.left // 2 :][:, :4, :8]
            assert np.array_equal(view.cut(soft, 2), window[..., ::-1] if view.mirrored else window)
            seen.add(view.mirrored)
    assert seen == {False, True}


def test_soft_labels_follow_every_scale():
    label = np.kron(np.arange(6).reshape(2, 3), np.ones((20, 20), int)).astype(np.uint8)
    image = np.zeros((*label.shape, 3), np.uint8)
    augment = Augment(crop=(32, 40), scale=(0.5, 2.5), flip=0.5)
    for seed in range(30):
        _, cut, view = augment.augment(image, label, np.random.default_rng(seed))
        soft = view.cut(one_hot(label).astype(np.int16))
        counts = cut != IGNORE
        assert (soft.sum(axis=0) > 0).mean() == pytest.approx(counts.mean(), abs=0.08)
        assert (soft.argmax(axis=0) == cut)[counts].mean() > 0.9


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"other": np.zeros(3)}, "no array `probabilities`"),
        ({"probabilities": np.zeros((11, 2, 2), np.float32)}, "should be uint8"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, said):
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(DataError, match=said):
        read_probabilities(tmp_path / "a.npz")


def test_a_damaged_or_empty_folder_says_so(tmp_path):
    with pytest.raises(DataError, match="give a folder of"):
        SoftLabels(tmp_path, CAMVID)
    (tmp_path / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="write it again"):
        read_probabilities(tmp_path / "a.npz")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="have the same name"):
        SoftLabels(tmp_path, CAMVID)


def test_what_is_written_is_the_mean_of_each_cell_and_how_sure_it_is(tmp_path):
    probabilities = np.zeros((19, 8, 12), np.float32)
    probabilities[3], probabilities[5], probabilities[7] = 0.7, 0.296, 0.004
    probabilities[3, :2, :2], probabilities[5, :2, :2] = [[1, 0], [0, 0]], [[0, 1], [1, 1]]
    frame = np.zeros((8, 12, 3), np.uint8)
    confidence = write_soft_labels(
        lambda image: probabilities, [("a", frame)], tmp_path, CITYSCAPES, facts={"model": "m"}
    )
    written = read_probabilities(tmp_path / "a.npz")
    assert written.shape == (19, 4, 6)
    assert written[3, 0, 0] == 64
    assert written[5, 0, 0] == 191
    assert written[7].max() == 0  # below 3 of 255
    assert written[3, 1, 1] == 178
    facts = json.loads((tmp_path / FACTS).read_text())
    assert facts["model"] == "m"
    assert facts["frames"]["a"] == pytest.approx(confidence.mean)
    assert facts["by_class"]["fence"] == {"share": 0, "confidence": None}
    assert facts["by_class"]["wall"]["confidence"] == pytest.approx(178 / 255)


def test_stronger_augmentation_leaves_sizes_and_labels_alone():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (40, 64, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 3)
    label = random.integers(0, 11, (40, 64)).astype(np.uint8)
    plain = Augment(crop=(40, 64))
    for change in ({"noise": 40.0}, {"jpeg": 1.0}, {"blur": 1.0, "blur_radius": 3.0}):
        strong = plain.model_copy(update=change)
        changed, same = strong(image, label, np.random.default_rng(1))
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        assert np.array_equal(same, label)
        assert not np.array_equal(changed, image)


def test_balanced_crops_find_what_is_rare():
    label = np.zeros((60, 80), np.uint8)
    label[50, 70] = 4
    image = np.zeros((60, 80, 3), np.uint8)
    shares = []
    for balanced in (0.0, 1.0):
        augment = Augment(crop=(8, 8), balanced=balanced)
        crops = [augment(image, label, np.random.default_rng(seed))[1] for seed in range(100)]
        shares.append(np.mean([(crop == 4).any() for crop in crops]))
    assert shares[0] < 0.1
    assert 0.35 < shares[1] < 0.65
    nothing = np.full((60, 80), IGNORE, np.uint8)
    assert Augment(crop=(8, 8), balanced=1.0)(image, nothing, np.random.default_rng(0))


def test_two_frames_of_one_name_are_not_mixed_up(tmp_path):
    frames = [("a", np.zeros((4, 4, 3), np.uint8))] * 2
    with pytest.raises(UsageError, match="two frames are called a"):
        write_soft_labels(lambda image: np.ones((11, 4, 4)), frames, tmp_path, CAMVID)
