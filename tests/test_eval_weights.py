"""The weights that ship are as good as their header says."""

from __future__ import annotations

import pytest
from rtseg.api import evaluate
from rtseg.data.datasets import open_data
from rtseg.models.checkpoints import read_metadata
from rtseg.models.loading import PRETRAINED, load_model
from rtseg.train.evaluate import evaluate_frames
from rtseg.train.predictor import Predictor

BARS = {"csfcn_nano": (0.55, 8_000_000), "csfcn_tiny": (0.60, 30_000_000)}  # mIoU, bytes


@pytest.mark.parametrize("name", BARS)
def test_miou_on_camvid_val(name, shared_data):
    bar, limit = BARS[name]
    path = PRETRAINED / f"{name}_camvid.safetensors"
    facts = read_metadata(path)
    network = load_model(str(path)).network
    data = open_data("camvid", shared_data / "camvid", "val")
    result = evaluate_frames(Predictor(network), data)
    assert result.confusion.miou() == pytest.approx(facts["metrics"]["miou"], abs=1e-4)
    assert result.confusion.miou() >= bar
    assert path.stat().st_size <= limit


@pytest.mark.parametrize("name", BARS)
def test_streets_on_camvid_val(name, shared_data):
    """19 classes, brought to the 11 of the labels."""
    path = PRETRAINED / f"{name}_streets.safetensors"
    facts = read_metadata(path)
    result = evaluate(
        f"{name}:streets", "camvid", shared_data / "camvid", class_map="cityscapes_to_camvid"
    )
    assert facts["classes"] == "cityscapes"
    assert result.confusion.miou() == pytest.approx(facts["metrics"]["miou"], abs=1e-4)
    assert result.confusion.miou() >= 0.5
    assert path.stat().st_size <= BARS[name][1]
