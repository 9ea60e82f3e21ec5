"""The weights that ship are as good as their header says."""

from __future__ import annotations

import pytest
from rtseg.data.datasets import open_data
from rtseg.models.source import PRETRAINED, header, open_source
from rtseg.train.evaluate import evaluate
from rtseg.train.predict import Predictor

FILES = sorted(PRETRAINED.glob("*_camvid.safetensors"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_miou_on_camvid_val(path, shared_data):
    facts = header(path)
    network = open_source(str(path)).network
    data = open_data("camvid", shared_data / "camvid", "val")
    result = evaluate(Predictor(network), data)
    assert result.confusion.miou() == pytest.approx(facts["metrics"]["miou"], abs=1e-4)
    assert result.confusion.miou() >= 0.55
    assert path.stat().st_size <= 8_000_000
