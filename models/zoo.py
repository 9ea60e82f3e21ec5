"""The zoo as rows of facts: what `rtseg models` lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from . import VARIANTS, build, count
from .cost import Cost
from .network import Network
from .published import reported_classes, scores
from .shadow import shadow
from .source import shipped_weights

CLASSES = 19
SIZES = ((512, 1024), (1024, 2048))


def rows() -> list[dict[str, Any]]:
    """`row` of every variant."""
    return [row(name) for name in VARIANTS]


def row(name: str) -> dict[str, Any]:
    """The facts of a variant: parameters and MACs at 19 classes, and at the size and class count
    that it is `reported` with; the mIoU `published` for it, in percent; the weights in the package;
    its paper, and the licence of the reference implementation where it is known.

    Raises ValueError for a name that is not in VARIANTS.
    """
    if name not in VARIANTS:
        build(name)  # says what the name might have been
    variant, network = VARIANTS[name], shadow(name, CLASSES)
    costs = {size: count(network, size) for size in SIZES}
    weights = shipped_weights(name)
    return {
        "model": name,
        "params": costs[SIZES[0]].params,
        **{f"macs_{height}x{width}": cost.macs for (height, width), cost in costs.items()},
        "reported": _reported(name, network, costs),
        "published": [asdict(score) for score in scores(name)],
        "weights": weights.stem if weights else None,
        "paper": variant.paper,
        "licence": variant.licence,
    }


def _reported(name: str, network: Network, costs: Mapping[tuple[int, int], Cost]) -> dict[str, Any]:
    """By our own counter, at the size and class count of the paper."""
    size, classes = VARIANTS[name].size, reported_classes(name)
    if classes == CLASSES:
        cost = costs.get(size) or count(network, size)
    else:
        cost = count(shadow(name, classes), size)
    return {
        "size": f"{size[0]}x{size[1]}",
        "classes": classes,
        "params": cost.params,
        "macs": cost.macs,
    }
