"""The mean of two checkpoints: what it is, and what its file says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import load_script
from rtseg.api import evaluate
from rtseg.data.corruptions import CORRUPTIONS
from rtseg.models import build, save_checkpoint
from rtseg.models.checkpoints import read_metadata
from rtseg.models.loading import load_model
from tiny_camvid import SIZE, write_camvid

script = load_script("mix_weights")


def test_the_mean_is_of_values_and_not_of_counters() -> None:
    before = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    after = {"w": torch.tensor([1.0, 0.0]), "n": torch.tensor(9)}
    mixed = script.mix(before, after, 0.25)
    assert mixed["w"].tolist() == [0.25, 3.0]
    assert mixed["n"] == 3


def test_what_is_written_is_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = write_camvid(tmp_path / "camvid", frames=2)
    assert SIZE == (40, 64)  # which the network takes as it is
    paths = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = build("csfcn_nano", 11)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        paths.append(tmp_path / f"{seed}.safetensors")
        save_checkpoint(network, paths[-1], metadata={"classes": "camvid", "recipe": {"batch": 8}})
    out = tmp_path / "mixed.safetensors"
    told = [str(paths[0]), str(paths[1]), "camvid", "--root", str(root), "-o", str(out)]
    script.main([*told, "--share", "0.5"])
    states = [load_model(str(path)).network.state_dict() for path in (*paths, out)]
    for name, value in states[2].items():
        if value.is_floating_point():
            mean = (states[0][name] + states[1][name]) / 2
            assert torch.allclose(value, mean, atol=1e-3), name
    facts = read_metadata(out)
    assert facts["mixed"] == {"before": str(paths[0]), "share": 0.5}
    assert facts["recipe"] == {"batch": 8}
    again = evaluate(str(out), "camvid", root, corrupt=True).as_dict()
    assert facts["metrics"]["miou"] == again["miou"]
    assert facts["metrics"]["corruptions"] == again["corruptions"]
    assert set(again["corruptions"]) == set(CORRUPTIONS)
    assert '"clean"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.main([*told, "--share", "70"])
