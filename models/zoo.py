"""The zoo as rows of facts: what `rtseg models` lists."""

from __future__ import annotations

from typing import Any

import torch

from . import VARIANTS, build, count
from .source import shipped_weights

SIZES = ((512, 1024), (1024, 2048))


def rows() -> list[dict[str, Any]]:
    """A row per variant at 19 classes: parameters, MACs, the weights in the package, the paper."""
    facts = []
    for name, variant in VARIANTS.items():
        with torch.device("meta"):
            network = build(name)
        costs = {f"macs_{h}x{w}": count(network, (h, w)).macs for h, w in SIZES}
        weights = shipped_weights(name)
        facts.append(
            {
                "model": name,
                "params": sum(p.numel() for p in network.parameters()),
                **costs,
                "weights": weights.stem if weights else None,
                "paper": variant.paper,
            }
        )
    return facts
