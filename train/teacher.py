"""Teachers: any model that this package runs, as a function from frame to class probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classes import ClassSet
from ..errors import UsageError
from ..models.loading import load_model
from .predictor import Predictor


@dataclass(frozen=True)
class TeacherModel:
    """`score`: a frame (H, W, 3) uint8 BGR -> probabilities (K, h, w) float32 of `classes`;
    `facts`: what it is, JSON-ready."""

    score: Callable[[np.ndarray], np.ndarray]
    classes: ClassSet
    facts: dict[str, Any]


@contextmanager
def open_teacher(
    model: str, weights: Path | None = None, device: str | None = None, **view: Any
) -> Iterator[TeacherModel]:
    """A network's name, a checkpoint, or an artifact that gives logits.

    Args:
        model: As `rtseg eval` takes it.
        weights: A checkpoint to load into the named network.
        device: cpu, cuda or cuda:N.
        view: How a network looks at a frame, as `Predictor` takes it.

    Raises:
        UsageError: for an artifact that gives labels alone, and for a network without weights.
    """
    from ..resolve import is_artifact

    if is_artifact(model):
        with _open_artifact(model, device) as teacher:
            yield teacher
        return
    source = load_model(model, weights)
    if not source.trained:
        raise UsageError(f"{model} has random weights, which teach nothing: give a checkpoint")
    predictor = Predictor(source.network.to(device or "cpu"), **view)
    facts = {"model": source.network.info.name, "weights": source.weights_from}
    yield TeacherModel(predictor.probabilities, source.classes, facts)


@contextmanager
def _open_artifact(model: str, device: str | None) -> Iterator[TeacherModel]:
    from ..runtime import load

    with load(model, None, device) as segmenter:
        card = segmenter.card
        if "logits" not in card.outputs:
            raise UsageError(
                f"{model} gives only labels, without probabilities: export it again with "
                "--output both"
            )

        def score(frame: np.ndarray) -> np.ndarray:
            # Labels and logits come of one call; only the logits are of use here.
            segmenter(frame)
            logits = segmenter.backend.logits()
            assert logits is not None
            return _softmax(np.asarray(logits[0], np.float32))

        facts = {"model": card.model, "artifact": Path(model).name}
        yield TeacherModel(score, card.class_table, facts)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """logits (K, h, w) float32 -> probabilities."""
    # Less the maximum, so that no power overflows.
    powers = np.exp(logits - logits.max(axis=0, keepdims=True))
    return np.asarray(powers / powers.sum(axis=0, keepdims=True))
