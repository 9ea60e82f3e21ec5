"""Biases for the best mean IoU: what is chosen, and what the file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load_script
from rtseg.models import build, save_checkpoint
from rtseg.models.checkpoints import read_metadata
from rtseg.models.loading import load_model
from tiny_camvid import write_camvid

script = load_script("choose_biases")


def make_pixels(seed: int) -> tuple[Any, Any]:
    """Logits of 4 classes whose truth is their argmax but for class 2, which lacks 0.9."""
    logits = np.random.default_rng(seed).normal(0, 3, (4, 5000)).astype(np.float32)
    true = logits.copy()
    true[2] += 0.9
    return logits, true.argmax(axis=0)


def test_pixels_that_no_bias_can_change_are_counted_once() -> None:
    logits, labels = make_pixels(0)
    sifted = script.sift(logits, labels)
    assert 0 < sifted.sure.sum() < 5000
    assert sifted.sure.sum() + len(sifted.labels) == 5000
    bias = np.array([0.0, -1.5, 2.0, 1.0], np.float32)
    guess = (logits + bias[:, None]).argmax(axis=0)
    hit = [((guess == k) & (labels == k)).sum() for k in range(4)]
    union = [((guess == k) | (labels == k)).sum() for k in range(4)]
    assert sifted.miou(bias) == pytest.approx(np.mean(np.divide(hit, union)))


def test_the_class_that_lacks_some_gets_it_and_pixels_that_did_not_choose_gain_too() -> None:
    split = [script.sift(*make_pixels(seed)) for seed in range(2)]
    bias = script.choose([split], 4)
    assert bias[2] - np.delete(bias, 2).mean() == pytest.approx(0.9, abs=0.15)
    for before, after in script.cross_check([split], 4):
        assert after > before + 0.02


def test_what_is_written_is_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_camvid(tmp_path / "camvid", frames=2)
    torch.manual_seed(0)
    network = build("csfcn_nano", 11)
    before, out = tmp_path / "before.safetensors", tmp_path / "after.safetensors"
    save_checkpoint(network, before, metadata={"classes": "camvid", "license": "research"})
    script.main([str(before), "camvid", "--root", str(root), "-o", str(out)])
    facts = read_metadata(out)
    assert facts["license"] == "research"
    old, new = (load_model(str(path)).network.state_dict() for path in (before, out))
    moved = {name for name, value in new.items() if not torch.allclose(value, old[name], atol=1e-2)}
    assert moved <= {"classifier.bias"}
    told = torch.tensor([facts["biases"][name] for name in load_model(str(out)).classes.names])
    difference = new["classifier.bias"] - old["classifier.bias"]
    assert torch.allclose(difference, told, atol=2e-3)
    assert "chosen by the other part" in capsys.readouterr().out
