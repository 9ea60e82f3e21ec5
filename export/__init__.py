"""Export a network to artifacts, and prove each before it counts."""

from __future__ import annotations

import sys

from .._package import CallablePackage
from ..errors import ExportError, ProofError
from .artifact import Artifact
from .export import export

__all__ = ["Artifact", "ExportError", "ProofError", "export"]

sys.modules[__name__].__class__ = CallablePackage  # `rtseg.export(...)` works too
