"""What any of our files is, as facts to print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ArtifactError
from .artifact import Card, read_card


def describe(path: Path) -> dict[str, Any]:
    """The facts of an artifact or a checkpoint. Raises ArtifactError if it is neither."""
    if path.suffix == ".safetensors" and "card" not in _header(path):
        return _checkpoint(path)
    if path.suffix in (".pth", ".pt"):
        raise ArtifactError(
            f"{path} is a pickled checkpoint, which says nothing of itself: "
            f"`rtseg export VARIANT --weights {path}` tells whether it fits"
        )
    return _artifact(path, read_card(path))


def _artifact(path: Path, card: Card) -> dict[str, Any]:
    height, width = card.size
    outputs = {
        "labels": f"uint8 (1, {height}, {width})",
        "logits": "float (1, classes, h, w)",
        "coarse": "float (1, channels, h, w), for the label kernel beside it",
    }
    facts: dict[str, Any] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "model": card.model,
        "size": f"{height}x{width}",
        "precision": card.precision,
        "class_set": card.class_set,
        "classes": list(card.classes),
        "inputs": {"frame": f"uint8 (1, {height}, {width}, 3), {card.channels}"},
        "outputs": {name: outputs[name] for name in card.outputs},
        "normalization": {"mean": list(card.mean), "std": list(card.std), "where": "in the graph"},
        "macs": card.macs,
        "params": card.params,
        "weights_from": card.weights_from,
        "trained": card.trained,
        "digests": {"weights": card.weights, **card.files},
        "tools": card.tools,
        "proof": card.proof.model_dump() if card.proof else "built, not proven",
    }
    if card.engine:
        facts["engine"] = card.engine.model_dump(exclude={"blocks"})
    return facts


def _checkpoint(path: Path) -> dict[str, Any]:
    header = _header(path)
    tensors = header.pop("", {})
    floats = [t for name, t in tensors.items() if not name.endswith("num_batches_tracked")]
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "kind": "checkpoint",
        **header,
        "entries": len(floats),
        "dtypes": sorted({t["dtype"] for t in floats}),
    }


def _header(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file by name, and its tensors under ""."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000)))
    except FileNotFoundError as error:
        raise ArtifactError(f"no file at {path}") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged or not a safetensors file") from error
    facts: dict[str, Any] = {}
    for name, text in (header.pop("__metadata__", None) or {}).items():
        try:
            facts[name] = json.loads(text)
        except ValueError:
            facts[name] = text
    return {**facts, "": header}
