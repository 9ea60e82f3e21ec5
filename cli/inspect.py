"""`rtseg inspect`: what is in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument

from ._console import show
from ._options import Json


def inspect(
    file: Annotated[Path, Argument(help="An artifact or a checkpoint.")], as_json: Json = False
) -> None:
    """Show the network, classes, size, proof and origin of a file.

    rtseg inspect artifacts/csfcn_512x1024_fp16.engine
    """
    from ..reporting import Table
    from ..runtime.artifact import describe

    facts = describe(file)
    rows = [(name.replace("_", " "), _text(value)) for name, value in facts.items()]
    show(json.dumps(facts, indent=2), Table(("", ""), rows, words=("",)), as_json)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k or 'file'}: {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return str(value)
