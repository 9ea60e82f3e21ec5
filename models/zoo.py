"""Zoo: facts and costs of the variants, as `rtseg models` lists them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..data.files import write_atomically
from ..data.shipped import SHIPPED
from .checkpoints import official_names
from .network import copy_to_meta, dtype_of
from .registry import VARIANTS, build_on_meta, find_variant

CLASSES = 19
SIZES = ((512, 1024), (1024, 2048))
# Counting the whole zoo takes minutes, so that what was counted is kept; tests hold it true. The
# rest is kept beside it for machines without PyTorch, where no network can be built.
STORED = Path(__file__).with_name("costs.json")
COSTS = ("params", *(f"macs_{height}x{width}" for height, width in SIZES), "reported")


@dataclass(frozen=True)
class NetworkCost:
    """What a network costs for one image.

    Attributes:
        macs: multiply-adds of convolutions and matrix products; resampling, norms and element-wise
            work are not counted.
        params: trained values.
        layers: convolutions, linear maps and norms.
    """

    macs: int
    params: int
    layers: int


def count(network: nn.Module, size: tuple[int, int]) -> NetworkCost:
    """The cost of one (height, width) image; nothing is computed, so any size is quick."""
    if count_cost := getattr(network, "count_cost", None):  # what no PyTorch operation computes
        counted: NetworkCost = count_cost(size)
        return counted
    shadow = copy_to_meta(network).requires_grad_(False)
    image = torch.empty(1, 3, *size, device="meta", dtype=dtype_of(shadow))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(image)
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
    return NetworkCost(
        macs=counter.get_total_flops() // 2,  # PyTorch counts a multiply-add as two
        params=sum(p.numel() for p in network.parameters()),
        layers=sum(isinstance(m, kinds) for m in network.modules()),
    )


def list_rows() -> list[dict[str, Any]]:
    """`describe` of every variant."""
    return [describe(name) for name in VARIANTS]


def describe(name: str) -> dict[str, object]:
    """The facts of a variant.

    Returns:
        Parameters and MACs at 19 classes, and at the size and class count that it is `reported`
        with; the mIoU `published` for it, in percent; the weights of our own; its paper, the
        implementation that it reproduces, and the license of that where it is known.

    Raises:
        UsageError: for a name that is not in VARIANTS.
    """
    variant = find_variant(name)
    return {
        "model": name,
        **(stored_costs().get(name) or count_costs(name)),
        "published": [asdict(score) for score in variant.scores],
        "weights": [f"{name}:{weights}" for weights in SHIPPED.get(name, ())],
        "paper": variant.paper,
        "reference": variant.reference,
        "license": variant.license,
    }


def describe_fully(name: str) -> dict[str, object]:
    """`describe`, and what the variant takes: frames, and checkpoints by which names.

    Returns:
        Its `checkpoint` has the first entry's name as we write it and as its reference does, which
        is None where there is no reference.
    """
    facts, variant, network = describe(name), VARIANTS[name], build_on_meta(name, CLASSES)
    ours, official = next(iter(official_names(network).items()))
    return facts | {
        "multiple": variant.multiple,
        "mean": variant.mean,
        "std": variant.std,
        "checkpoint": {"ours": ours, "official": official if variant.reference else None},
    }


def count_costs(name: str) -> dict[str, object]:
    """Parameters and multiply-adds of a variant, by our own counter."""
    network, variant = build_on_meta(name, CLASSES), VARIANTS[name]
    own, counted = variant.size, {size: count(network, size) for size in SIZES}
    if variant.classes == CLASSES:
        reported = counted.get(own) or count(network, own)
    else:
        reported = count(build_on_meta(name, variant.classes), own)
    return {
        "params": counted[SIZES[0]].params,
        **{f"macs_{height}x{width}": cost.macs for (height, width), cost in counted.items()},
        "reported": {
            "size": f"{own[0]}x{own[1]}",
            "classes": variant.classes,
            "params": reported.params,
            "macs": reported.macs,
        },
    }


def stored_costs() -> dict[str, dict[str, object]]:
    """{variant: its costs}, as `store_costs` left them; a variant without is counted anew."""
    if not STORED.is_file():
        return {}
    zoo = json.loads(STORED.read_text())
    return {name: {key: facts[key] for key in COSTS} for name, facts in zoo.items()}


def store_costs(counted: Iterable[str] = VARIANTS) -> None:
    """Write what `rtseg models` lists: to be called when a network changes, which is `counted`
    anew."""
    costs = {name: count_costs(name) for name in counted}
    lines = [
        f'"{name}": {json.dumps(describe_fully(name) | costs.get(name, {}))}' for name in VARIANTS
    ]
    write_atomically(STORED, ("{\n" + ",\n".join(lines) + "\n}\n").encode())
