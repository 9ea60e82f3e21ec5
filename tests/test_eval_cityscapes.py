"""Our numbers are those of cityscapesScripts on the same files."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from rtseg.data.classes import CITYSCAPES
from rtseg.data.datasets import open_data
from rtseg.train.evaluate import evaluate_frames

scripts = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling",
    reason="pip install cityscapesScripts to compare with it",
)
labels = pytest.importorskip("cityscapesscripts.helpers.labels")


@pytest.fixture
def tree(tmp_path):
    """Three frames of all label ids, and predictions that are right three times in four."""
    random = np.random.default_rng(0)
    predictions = {}
    for number in range(3):
        stem = f"ulm_000000_{number:06}"
        truth = np.kron(random.integers(0, 34, (8, 16)), np.ones((4, 4), int)).astype(np.uint8)
        image = random.integers(0, 255, (*truth.shape, 3), dtype=np.uint8)
        for path, content in (
            (f"leftImg8bit/val/ulm/{stem}_leftImg8bit.png", image),
            (f"gtFine/val/ulm/{stem}_gtFine_labelIds.png", truth),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / path), content)
        guess = random.integers(0, 19, truth.shape)
        known = np.isin(truth, CITYSCAPES.label_ids) & (random.random(truth.shape) < 0.75)
        train_ids = np.zeros(256, int)
        train_ids[list(CITYSCAPES.label_ids)] = np.arange(19)
        guess[known] = train_ids[truth[known]]
        predictions[image.tobytes()] = guess.astype(np.uint8)
        ids = np.array(CITYSCAPES.label_ids, np.uint8)[guess]
        cv2.imwrite(str(tmp_path / f"{stem}_pred.png"), ids)
    return tmp_path, predictions


def test_counts_and_ious_are_equal(tree, monkeypatch):
    root, predictions = tree
    data = open_data("cityscapes", root, "val")
    ours = evaluate_frames(lambda frame: predictions[frame.tobytes()], data)
    monkeypatch.setattr(scripts.args, "evalInstLevelScore", False)
    monkeypatch.setattr(scripts.args, "JSONOutput", False)
    monkeypatch.setattr(scripts.args, "quiet", True)
    theirs = scripts.evaluateImgLists(
        [str(root / f"{data.name(i)}_pred.png") for i in range(3)],
        [str(files.label) for files in data.files],
        scripts.args,
    )
    matrix = np.asarray(theirs["confMatrix"])
    ids = list(CITYSCAPES.label_ids)
    assert np.array_equal(matrix[np.ix_(ids, ids)], ours.confusion.matrix)
    assert theirs["averageScoreClasses"] == pytest.approx(ours.confusion.miou(), abs=1e-12)
    for name, iou in ours.as_dict()["iou"].items():
        assert theirs["classScores"][name] == pytest.approx(iou, abs=1e-12)


def test_the_class_table_is_theirs():
    known = {each.trainId: each for each in labels.labels if 0 <= each.trainId < 255}
    assert tuple(known[i].name for i in range(19)) == CITYSCAPES.names
    assert tuple(known[i].color for i in range(19)) == CITYSCAPES.palette
    assert tuple(known[i].id for i in range(19)) == CITYSCAPES.label_ids
