"""What labels of coarse logits cost: both sides make the same ones, in turns."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import load_script
from labels_plain import FUSED
from rtseg.data.scenes import scenes
from rtseg.models.loading import Model
from rtseg.models.random_weights import build_untrained
from rtseg.speed.timing import Limits

script = load_script("label_cost")
SIZE = (128, 256)
MOST_DIFFERENT = 0 if FUSED else 1e-4  # near ties, where PyTorch rounds otherwise
QUICK = Limits(runs=2, seconds=0.2, rounds=2)


def test_cells_and_plain_labels_are_the_same(nano: Model) -> None:
    cost = script.label_cost(nano.network, scenes(2, SIZE), SIZE, limits=QUICK)
    assert (cost.model, cost.size, cost.device, cost.frames) == ("csfcn_nano", SIZE, "cpu", 2)
    assert cost.different_pixels <= MOST_DIFFERENT * 2 * SIZE[0] * SIZE[1]
    assert 0 < cost.uniform < 1
    assert cost.gain.low <= cost.gain.value <= cost.gain.high
    assert f"{cost.gain.value:.1f}x" in cost.row()


def test_the_script_prints_json_or_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["csfcn_nano", "--size", "96x160", "--seconds", "0.1"]
    script.main([*asked, "--json"])
    (cost,) = json.loads(capsys.readouterr().out)
    assert cost["different_pixels"] <= MOST_DIFFERENT * 96 * 160
    assert cost["size"] == [96, 160]
    script.main(asked)
    assert "| 96x160 | 1 |" in capsys.readouterr().out.replace("  ", " ")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["csfcn_nano", "csfcn"])
def test_both_kernels_against_pytorch_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    network = build_untrained(name, 19)
    cost = script.label_cost(network, scenes(1, SIZE), SIZE, limits=QUICK, device="cuda")
    assert cost.uniform is None
    # Sums are added in another order than on the CPU, so a near tie may turn.
    assert cost.different_pixels <= (0 if name == "csfcn_nano" else 0.001 * SIZE[0] * SIZE[1])
