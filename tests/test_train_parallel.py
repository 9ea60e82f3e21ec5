"""Two processes train as one with the double batch does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from rtseg.models import build
from rtseg.train.log import read_log
from rtseg.train.state import read_state
from rtseg.train.trainer import LOG, STATE, train
from tiny_camvid import RECIPE, tiny_recipe, write_camvid
from torch import nn

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"
)
SCRIPT = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from tiny_camvid import tiny_recipe
from rtseg.train.trainer import train
train(tiny_recipe(Path(sys.argv[2]), **eval(sys.argv[4])), Path(sys.argv[3]), show=False)
"""
CHANGES = {
    "schedule": {"iterations": 4},
    "augment": {"crop": [64, 96]},  # so that norms at stride 32 see enough values to be stable
    "optimizer": {"learning_rate": 1e-4},  # more, and rounding grows from step to step
    "loss": {"class_balance": 0.5},
    "data": {"workers": 0},
}


def test_two_gloo_processes_equal_one_with_the_double_batch(tmp_path):
    root = write_camvid(tmp_path / "camvid")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [os.path.dirname(__file__), str(root), str(tmp_path / "two"), repr(CHANGES)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script), *arguments],
        capture_output=True, text=True, timeout=100, cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    train(tiny_recipe(root, batch=2 * RECIPE["batch"], **CHANGES), tmp_path / "one", show=False)
    one, two = ([*read_log(tmp_path / name / LOG)] for name in ("one", "two"))
    losses = [[row["loss"] for row in each if "loss" in row] for each in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    torch.manual_seed(0)
    start = dict(build("csfcn_nano", 11).named_parameters())
    ends = [read_state(tmp_path / name / STATE)["network"] for name in ("one", "two")]
    moved = sum((ends[0][k] - start[k]).square().sum().item() for k in start)
    apart = sum((ends[0][k] - ends[1][k]).square().sum().item() for k in start)
    assert apart < 0.05**2 * moved
    vals = [next(row["val"] for row in each if "val" in row) for each in (one, two)]
    assert vals[0]["images"] == vals[1]["images"] == 6
    assert sum(map(sum, vals[0]["confusion"])) == sum(map(sum, vals[1]["confusion"]))


def test_shared_norms_keep_names_and_statistics():
    from rtseg.train.parallel import SharedBatchNorm, share_norms

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    model[1].running_mean.fill_(3)
    scale = model[1].weight
    keys = list(model.state_dict())
    shared = share_norms(model)
    assert list(shared.state_dict()) == keys
    assert isinstance(shared[1], SharedBatchNorm)
    assert isinstance(shared[2][0], SharedBatchNorm)
    assert shared[1].running_mean.tolist() == [3] * 4
    assert shared[1].weight is scale, "an optimizer made before would train the old one"
