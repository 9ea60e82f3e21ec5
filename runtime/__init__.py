"""Run artifacts: `load` one, call it with frames. PyTorch is not needed and not imported."""

from __future__ import annotations

from ..errors import ArtifactError
from .artifact import Card, EngineFacts, Proof, read_card, verify_artifact
from .bounds import Details, ErrorBound
from .drive.clock import DriveLimits
from .drive.drive import Drive
from .drive.messages import Result, State, Status, StatusKind
from .open_artifact import load
from .segmenter import Segmenter

__all__ = [
    "ArtifactError",
    "Card",
    "Details",
    "Drive",
    "DriveLimits",
    "EngineFacts",
    "ErrorBound",
    "Proof",
    "Result",
    "Segmenter",
    "State",
    "Status",
    "StatusKind",
    "load",
    "read_card",
    "verify_artifact",
]
