"""What a file is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument

from ._console import show
from ._options import Json


def inspect(
    file: Annotated[Path, Argument(help="An artifact or a checkpoint.")], as_json: Json = False
) -> None:
    """Show what a file is: network, classes, size, precision, digests, tools, proof.

    rtseg inspect artifacts/csfcn_512x1024_fp16.engine
    """
    from ..runtime.describe import describe

    facts = describe(file)
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _shown(value))
    show(json.dumps(facts, indent=2), table, as_json)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k or 'file'}: {_shown(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return str(value)
