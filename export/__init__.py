"""Export a network to artifacts, and prove each before it counts."""

from __future__ import annotations

from .artifact import Artifact
from .export import ExportError, ProofError, export

__all__ = ["Artifact", "ExportError", "ProofError", "export"]
