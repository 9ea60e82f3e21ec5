"""Evaluation: exact counts, every way of predicting, any function from frame to labels."""

from __future__ import annotations

import json
import zipfile

import cv2
import numpy as np
import pytest
import torch
from rtseg.api import sample_frames
from rtseg.data.classes import CAMVID, CITYSCAPES
from rtseg.data.corruptions import CORRUPTIONS
from rtseg.data.datasets import open_data
from rtseg.errors import DataError, UsageError
from rtseg.models import build
from rtseg.train.evaluate import (
    Confusion,
    build_table,
    draw_worst_frames,
    evaluate_frames,
)
from rtseg.train.predictor import Predictor, normalize, window_starts
from rtseg.train.submit import submit
from tiny_camvid import write_camvid


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data("camvid", write_camvid(tmp_path_factory.mktemp("camvid")), "val")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("csfcn_nano", 11)


@pytest.fixture
def frame():
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)


def test_confusion_by_hand():
    counts = Confusion(3)
    counts.update(np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 1, 1, 2]], np.uint8))
    assert counts.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert counts.iou()[:2].tolist() == [0.5, 0.5]
    assert np.isnan(counts.iou()[2])
    assert counts.miou() == 0.5
    assert counts.accuracy()[:2].tolist() == [0.5, 1]
    assert counts.mean_accuracy() == 0.75
    assert counts.pixel_accuracy() == pytest.approx(2 / 3)


def test_confusion_counts_beyond_what_floats_hold():
    counts = Confusion(2, np.array([[2**60, 0], [0, 0]]))
    counts.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    assert counts.matrix[0, 0] == 2**60 + 1


def test_confusion_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="class id 3"):
        Confusion(3).update(np.zeros((1, 1), np.uint8), np.full((1, 1), 3, np.uint8))
    with pytest.raises(ValueError, match="prediction is"):
        Confusion(3).update(np.zeros((1, 2), np.uint8), np.zeros((2, 1), np.uint8))


def test_any_function_can_be_evaluated(data):
    truth = {sample.image.tobytes(): sample.label for sample in data}

    def perfect(frame):
        return np.where(truth[frame.tobytes()] == 255, 0, truth[frame.tobytes()])

    facts = json.loads(evaluate_frames(perfect, data).to_json())
    assert (facts["miou"], facts["pixel_accuracy"], facts["images"]) == (1, 1, 6)
    assert facts["iou"].keys() == set(CAMVID.names)
    counted = sum(int((sample.label != 255).sum()) for sample in data)
    assert sum(map(sum, facts["confusion"])) == counted


def test_some_frames_are_spread_over_the_split(data):
    whole = [int(data[i].image.sum()) for i in range(len(data))]
    assert [int(each.image.sum()) for each in sample_frames(data, 3)] == [
        *(whole[0], whole[2], whole[5])
    ]
    assert len(sample_frames(data, 1)) == 1
    assert len(sample_frames(data, 99)) == len(data) == 6
    with pytest.raises(UsageError, match="--images is 1 or more"):
        sample_frames(data, 0)


def test_a_command_scores_some_frames_under_every_corruption(tmp_path, rtseg):
    root = write_camvid(tmp_path / "camvid")
    command = ["eval", "csfcn_nano:camvid", "camvid", "--root", str(root), "--images", "2"]
    done = rtseg(*command, "--corrupt", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["images"], len(facts["corruptions"])) == (2, len(CORRUPTIONS))
    done = rtseg(*command, "--temporal")
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "rtseg: flicker is of whole sequences: leave --images or --temporal out"
    )


def test_a_class_that_never_occurs_is_null(data):
    facts = evaluate_frames(
        lambda frame: np.full(frame.shape[:2], 3, np.uint8), data, [0]
    ).as_dict()
    assert facts["iou"]["road"] == pytest.approx(facts["pixel_accuracy"])
    absent = set(range(11)) - set(np.unique(data[0].label)) - {3}
    assert all(facts["iou"][CAMVID.names[index]] is None for index in absent)


def test_a_split_without_labels_cannot_be_evaluated(tmp_path):
    image = tmp_path / "leftImg8bit/test/a/a_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    cv2.imwrite(str(image), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match="has no label"):
        evaluate_frames(lambda frame: frame[..., 0], open_data("cityscapes", tmp_path, "test"))


def test_normalize_is_rgb_by_mean_and_std(network):
    bgr = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    red, green, blue = normalize(bgr, network.info).flatten().tolist()
    assert red == pytest.approx((1 - 0.485) / 0.229, rel=1e-5)
    assert green == pytest.approx((128 / 255 - 0.456) / 0.224, rel=1e-5)
    assert blue == pytest.approx((0 - 0.406) / 0.225, rel=1e-5)


def test_whole_frame_is_the_network_itself(network, frame):
    logits = network(normalize(torch.from_numpy(frame)[None], network.info))
    assert torch.allclose(Predictor(network).scores(frame), logits, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (61, 90), (1, 1), (200, 30)])
def test_labels_have_the_size_of_the_frame(network, size):
    labels = Predictor(network)(np.zeros((*size, 3), np.uint8))
    assert labels.shape == size
    assert labels.dtype == np.uint8
    assert Predictor(network, size=(32, 64))(np.zeros((*size, 3), np.uint8)).shape == size


def test_flip_makes_predictions_symmetric(network, frame):
    both = Predictor(network, flip=True)
    assert torch.allclose(
        both.scores(frame), both.scores(np.ascontiguousarray(frame[:, ::-1])).flip(-1), atol=1e-4
    )


def test_scales_are_averaged_probabilities(network, frame):
    one, two = (Predictor(network, scales=(s,)).scores(frame) for s in (1.0, 0.5))
    both = Predictor(network, scales=(1.0, 0.5)).scores(frame)
    assert torch.allclose(both, (one.softmax(1) + two.softmax(1)) / 2, atol=1e-5)


def test_a_window_of_the_whole_frame_changes_nothing(network, frame):
    whole = Predictor(network).scores(frame)
    assert torch.allclose(Predictor(network, window=(64, 96)).scores(frame), whole, atol=1e-4)


def test_windows_are_cut_and_averaged(network, frame):
    slid = Predictor(network, window=(64, 64)).scores(frame)
    left, right = (Predictor(network).scores(frame[:, s : s + 64]) for s in (0, 32))
    assert torch.allclose(slid[..., :32], left[..., :32], atol=1e-4)
    middle = (left[..., 32:] + right[..., :32]) / 2
    assert torch.allclose(slid[..., 32:64], middle, atol=1e-4)
    assert Predictor(network, window=(128, 64))(frame).shape == (64, 96)


@pytest.mark.parametrize(("length", "window"), [(64, 64), (65, 64), (1024, 512), (97, 32)])
def test_windows_cover_everything(length, window):
    places = window_starts(length, window)
    seen = {i for start in places for i in range(start, start + window)}
    assert seen == set(range(length))


def test_report_and_worst_frames(data):
    def mostly_right(frame):
        number = next(i for i, s in enumerate(data) if np.array_equal(s.image, frame))
        label = data[number].label.copy()
        label[: number * 6] = 1
        return np.where(label == 255, 0, label)

    result = evaluate_frames(mostly_right, data)
    assert [name for _, _, name in result.worst(2)] == ["frame_5", "frame_4"]
    assert len(build_table(result).rows) == 11 + 2
    assert draw_worst_frames(result, mostly_right, data, count=2, width=100).shape[1] == 200


def test_submit_writes_label_ids(tmp_path):
    for city in ("berlin", "bonn"):
        image = tmp_path / f"leftImg8bit/test/{city}/{city}_000000_000019_leftImg8bit.png"
        image.parent.mkdir(parents=True)
        cv2.imwrite(str(image), np.zeros((1, 19, 3), np.uint8))
    data = open_data("cityscapes", tmp_path, "test")
    archive = tmp_path / "out" / "test.zip"
    assert submit(lambda frame: np.arange(19, dtype=np.uint8)[None], data, archive) == 2
    with zipfile.ZipFile(archive) as content:
        assert sorted(content.namelist()) == [
            "berlin_000000_000019_pred_labelIds.png",
            "bonn_000000_000019_pred_labelIds.png",
        ]
        written = np.frombuffer(content.read("bonn_000000_000019_pred_labelIds.png"), np.uint8)
    labels = cv2.imdecode(written, cv2.IMREAD_UNCHANGED)
    assert labels[0].tolist() == list(CITYSCAPES.label_ids)


def test_submit_needs_a_test_server(data, tmp_path):
    with pytest.raises(ValueError, match="no label ids"):
        submit(lambda frame: frame[..., 0], data, tmp_path / "x.zip")
