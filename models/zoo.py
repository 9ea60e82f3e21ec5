"""The zoo as rows of facts: what `rtseg models` lists."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from . import VARIANTS, build, count
from .checkpoints import official_names
from .loading import shipped_weights
from .published import reference, reported_classes, scores
from .shadow import shadow

CLASSES = 19
SIZES = ((512, 1024), (1024, 2048))
# Counting the whole zoo takes minutes, so that what was counted is kept; tests hold it true.
COSTS = Path(__file__).with_name("costs.json")


def rows() -> list[dict[str, Any]]:
    """`row` of every variant."""
    return [row(name) for name in VARIANTS]


def row(name: str) -> dict[str, Any]:
    """The facts of a variant: parameters and MACs at 19 classes, and at the size and class count
    that it is `reported` with; the mIoU `published` for it, in percent; the weights in the package;
    its paper, the implementation that it reproduces, and the license of that where it is known.

    Raises ValueError for a name that is not in VARIANTS.
    """
    if name not in VARIANTS:
        build(name)  # says what the name might have been
    weights, theirs = shipped_weights(name), reference(name)
    return {
        "model": name,
        **(stored_costs().get(name) or costs(name)),
        "published": [asdict(score) for score in scores(name)],
        "weights": weights.stem if weights else None,
        "paper": VARIANTS[name].paper,
        "reference": theirs.where if theirs else None,
        "license": theirs.license if theirs else None,
    }


def costs(name: str) -> dict[str, Any]:
    """Parameters and multiply-adds of a variant, by our own counter."""
    network, own = shadow(name, CLASSES), VARIANTS[name].size
    counted = {size: count(network, size) for size in SIZES}
    classes = reported_classes(name)
    if classes == CLASSES:
        reported = counted.get(own) or count(network, own)
    else:
        reported = count(shadow(name, classes), own)
    return {
        "params": counted[SIZES[0]].params,
        **{f"macs_{height}x{width}": cost.macs for (height, width), cost in counted.items()},
        "reported": {
            "size": f"{own[0]}x{own[1]}",
            "classes": classes,
            "params": reported.params,
            "macs": reported.macs,
        },
    }


def stored_costs() -> dict[str, dict[str, Any]]:
    """{variant: its `costs`}, as `store_costs` left them."""
    if not COSTS.is_file():
        return {}
    stored: dict[str, dict[str, Any]] = json.loads(COSTS.read_text())
    return stored


def store_costs(names: Iterable[str] = VARIANTS) -> None:
    """Count the variants anew and write their costs: to be called when a network changes."""
    known = stored_costs() | {name: costs(name) for name in names}
    lines = (f'"{name}": {json.dumps(known[name])}' for name in VARIANTS if name in known)
    write_atomically(COSTS, ("{\n" + ",\n".join(lines) + "\n}\n").encode())


def details(name: str) -> dict[str, Any]:
    """`row`, and what the variant takes: frames, and checkpoints by which names.

    `checkpoint` has the first entry's name as we write it and as its reference does; the latter is
    None where there is no reference.
    """
    facts, variant, network = row(name), VARIANTS[name], shadow(name, CLASSES)
    ours, official = next(iter(official_names(network).items()))
    return facts | {
        "multiple": variant.multiple,
        "mean": variant.mean,
        "std": variant.std,
        "checkpoint": {"ours": ours, "official": official if facts["reference"] else None},
    }
