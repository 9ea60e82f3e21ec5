"""Export a network to artifacts, and prove each before it counts."""

from __future__ import annotations

import sys

from .._package import CallablePackage
from ..errors import ExportError, MissingPackage, ProofError
from ..runtime.packages import pip_line

try:
    from .artifacts import Artifact
    from .export import export
except ModuleNotFoundError as error:
    if error.name != "onnxruntime":
        raise
    raise MissingPackage(f"export needs ONNX Runtime: {pip_line('cpu')}") from error

__all__ = ["Artifact", "ExportError", "ProofError", "export"]

sys.modules[__name__].__class__ = CallablePackage  # `rtseg.export(...)` works too
