"""Run artifacts: `load` one, call it with frames. PyTorch is not needed and not imported."""

from __future__ import annotations

from .card import ArtifactError, Card, EngineFacts, Proof, read_card, verify
from .segmenter import Segmenter, load

__all__ = [
    "ArtifactError",
    "Card",
    "EngineFacts",
    "Proof",
    "Segmenter",
    "load",
    "read_card",
    "verify",
]
