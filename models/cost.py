"""Multiply-adds and parameters of a network at a size."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """`macs`: multiply-adds of convolutions and matrix products for one image; resampling, norms
    and element-wise work are not counted. `params`: trained values. `layers`: convolutions, linear
    maps and norms."""

    macs: int
    params: int
    layers: int


def count(network: nn.Module, size: tuple[int, int]) -> Cost:
    """The cost of one (height, width) image; nothing is computed, so any size is quick."""
    shadow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    image = torch.empty(1, 3, *size, device="meta", dtype=next(shadow.parameters()).dtype)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(image)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    return Cost(
        macs=counter.get_total_flops() // 2,
        params=sum(p.numel() for p in network.parameters()),
        layers=sum(isinstance(m, kinds) for m in network.modules()),
    )
