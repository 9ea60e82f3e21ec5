"""`rtseg doctor`: what this machine can do."""

from __future__ import annotations

from ._console import show
from ._options import Json


def doctor(as_json: Json = False) -> None:
    """Show what this machine can do, and what is missing.

    rtseg doctor
    """
    from ..speed.doctor import examine

    findings = examine()
    show(findings.to_json(), findings.table(), as_json)
