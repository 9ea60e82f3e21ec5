"""Description of an artifact or a checkpoint, as `rtseg inspect` prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.letterbox import is_letterbox
from ..data.safetensors_header import read_tensor_header
from ..errors import ArtifactError
from .artifact import read_card, read_sealed


def describe(path: Path) -> dict[str, object]:
    """The facts of an artifact or a checkpoint, as values for JSON.

    Raises:
        ArtifactError: if it is neither.
    """
    if path.suffix in (".pth", ".pt"):
        raise ArtifactError(
            f"{path} is a pickled checkpoint, which does not describe itself: "
            f"`rtseg export {path}` recognizes its network by the names and shapes of its values"
        )
    if not path.is_file():
        raise ArtifactError(f"no file at {path}")
    if path.suffix == ".safetensors":
        tensors = read_tensor_header(path, ArtifactError)[0]
        metadata = tensors.pop("__metadata__", None) or {}
        if "card" not in metadata:
            return _describe_checkpoint(path, metadata, tensors)
    card = read_card(path)
    height, width = card.size
    outputs = {
        "labels": f"uint8 {card.label_shape}",
        "logits": f"float ({card.batch}, classes, h, w)",
        "coarse": f"float ({card.batch}, channels, h, w), for the label kernel beside it",
    }
    facts: dict[str, object] = {
        "file": path.name,
        "bytes": path.stat().st_size,
        "model": card.model,
        "size": f"{height}x{width}",
        "sizes": [f"{high}x{wide}" for high, wide in card.all_sizes],
        "batch": card.batch,
        "fit": card.fit,
        **({"pad_color": list(card.pad_color or (0, 0, 0))} if is_letterbox(card.fit) else {}),
        "precision": card.precision,
        "class_set": card.class_set,
        "classes": list(card.classes),
        "inputs": {"frame": f"uint8 {card.input_shape}, {card.input.upper()}"},
        "outputs": {name: outputs[name] for name in card.outputs},
        "normalization": {"mean": list(card.mean), "std": list(card.std), "where": "in the graph"},
        "macs": card.macs,
        "params": card.params,
        "weights_from": card.weights_from,
        "trained": card.trained,
        "license": card.license or "not stated",
        "trained_on": card.trained_on or "not stated",
        "digests": {"weights": card.weights, **card.files},
        "tools": card.tools,
        "proof": card.proof.model_dump() if card.proof else "built, not proven",
    }
    try:
        for name in card.files:
            read_sealed(path, card, name)
        facts["intact"] = "yes, as its digests say"
    except ArtifactError as error:
        facts["intact"] = f"NO: {error}"
    if card.preprocess:
        facts["preprocess"] = card.preprocess.model_dump()
    if card.engine:
        facts["engine"] = card.engine.model_dump(exclude={"blocks"})
    return facts


def _describe_checkpoint(
    path: Path, metadata: dict[str, str], tensors: dict[str, Any]
) -> dict[str, object]:
    facts: dict[str, object] = {}
    for name, text in metadata.items():
        try:
            facts[name] = json.loads(text)
        except ValueError:  # another tool's, in its own form
            facts[name] = text
    floats = [each for name, each in tensors.items() if not name.endswith("num_batches_tracked")]
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "kind": "checkpoint",
        **facts,
        "entries": len(floats),
        "dtypes": sorted({each["dtype"] for each in floats}),
    }
