"""Run artifacts: `load` one, call it with frames. PyTorch is not needed and not imported."""

from __future__ import annotations

from .artifact import ArtifactError, Card, EngineFacts, Proof, read_card, verify
from .drive.drive import Drive
from .drive.limits import Limits
from .drive.messages import Kind, Result, State, Status
from .segmenter import Segmenter, load

__all__ = [
    "ArtifactError",
    "Card",
    "Drive",
    "EngineFacts",
    "Kind",
    "Limits",
    "Proof",
    "Result",
    "Segmenter",
    "State",
    "Status",
    "load",
    "read_card",
    "verify",
]
