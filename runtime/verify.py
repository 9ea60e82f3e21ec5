"""An engine proves itself on the machine that it will serve on, once, before its first frame."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import digest_of, write_atomically
from ..errors import ArtifactError
from .artifact import Card
from .backends.backend import Backend, Image, Labels
from .parity import Figures, Reference, bars_of, compare, faults


@dataclass(frozen=True)
class Place:
    """Where an engine runs; what a proof holds for. tensorrt: flavour and version."""

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str


def reference_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".reference.npz")


def record_path(engine: Path) -> Path:
    return engine.with_name(engine.name + ".proof.json")


def prove_once(path: Path, card: Card, backend: Backend, place: Place) -> dict[str, Any]:
    """The record of the engine's proof at this place, made now if there is none yet.

    The record lies beside the engine, as `NAME.proof.json`, where the folder can be written.
    Raises ArtifactError if the engine gives other labels than its reference, or has none.
    """
    key = {"engine": card.files.get(path.name), **asdict(place)}
    known = _read_record(path)
    if known.get("passed") and all(known.get(name) == value for name, value in key.items()):
        return known
    figures = _run(_reference(path, card), card, backend)
    found = faults(figures, card.precision, card.trained)
    record = {**key, "passed": not found, "faults": found, "frames": [asdict(f) for f in figures]}
    # A vehicle's folder may be read-only; then the proof is made at every start.
    with contextlib.suppress(OSError):
        write_atomically(record_path(path), (json.dumps(record, indent=2) + "\n").encode())
    if found:
        raise ArtifactError(
            f"{path.name} is not right on {place.gpu} with {place.tensorrt} ({'; '.join(found)}), "
            f"so it is not served: export it again for this machine, or use the ONNX artifact"
        )
    return record


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(record_path(path).read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _reference(path: Path, card: Card) -> Reference:
    beside = reference_path(path)
    expected = card.files.get(beside.name)
    if expected is None:
        raise ArtifactError(
            f"{path.name} carries no reference, so nothing proves it here: export it again"
        )
    reference = Reference.load(beside)
    if digest_of(beside) != expected:
        raise ArtifactError(f"{beside} is not the one exported with the engine: copy it again")
    return reference


def _run(reference: Reference, card: Card, backend: Backend) -> list[Figures]:
    """One comparison a frame."""
    bars, figures = bars_of(card.precision, card.trained), []
    for place, frame in enumerate(reference.frames):
        labels = labels_of(backend, card, frame[None])
        figures.append(
            compare(
                reference.labels[place],
                reference.margins[place],
                labels,
                bars,
                reference.names[place],
            )
        )
    return figures


def labels_of(backend: Backend, card: Card, image: Image) -> Labels:
    """Labels (H, W) of an image (1, H, W, 3), from the logits where the engine gives only those."""
    if card.gives_labels:
        return np.array(backend(image)[0])
    backend.upload(image)
    backend.compute()
    logits = backend.logits()
    if logits is None or logits.shape[2:] != card.size:
        raise ArtifactError(
            "logits below the frame's size cannot be proven: export it again with --output both"
        )
    return np.asarray(logits[0].argmax(0), np.uint8)
