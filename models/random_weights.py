"""Seeded random weights with sane activations, for networks without trained ones."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.scenes import scenes
from .network import Network
from .pipeline import normalize_frame
from .registry import build

SEED = 0


def build_untrained(variant: str, num_classes: int, seed: int = SEED) -> Network:
    """Build a network whose random weights behave: no layer is silent, none multiplies the scale of
    what it gets, and the norms fit drawn street scenes.

    Otherwise activations grow or vanish and attention saturates, and half precision has nothing
    real to be compared on. torch's own random state is not touched.

    Args:
        variant: a name in VARIANTS.
        num_classes: 2 to 255.
        seed: of weights and scenes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(variant, num_classes)
        for module in network.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan_in**-0.5)
            if init_untrained := getattr(module, "init_untrained", None):
                init_untrained()
    _fit_norms(network, scenes(2, (256, 512), seed))
    return network


def _fit_norms(network: Network, frames: Iterable[NDArray[np.uint8]]) -> None:
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        network.eval()
        return
    # float32's sums depend on threads and memory, and the weights would with them.
    network.double()
    momentum = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(_fit_if_enough) for norm in norms]
    for norm in norms:
        norm.momentum = None  # average over all frames seen, not a running one of the last
    with torch.no_grad():
        for frame in frames:
            network.forward_logits(normalize_frame(frame, network).double())
    for norm, before, hook in zip(norms, momentum, hooks, strict=True):
        norm.momentum = before
        hook.remove()
    network.float().eval()


def _fit_if_enough(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Measure a norm's statistics, where its input has enough values for any."""
    # Behind a global mean there is one value a channel and frame, and no spread to measure.
    norm.train(inputs[0][:, 0].numel() > 64)
