"""Export a network to artifacts, and prove each before it counts."""

from __future__ import annotations

from ..errors import ExportError, ProofError
from .artifact import Artifact
from .export import export

__all__ = ["Artifact", "ExportError", "ProofError", "export"]
