"""Whether an artifact will run here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument

from ._console import JobFailed, show
from ._options import Json


def check(file: Annotated[Path, Argument(help="An artifact.")], as_json: Json = False) -> None:
    """Say in a moment, without loading it, whether an artifact will run on this machine.

    rtseg check artifacts/csfcn_512x1024_fp16.engine
    """
    from dataclasses import asdict

    from ..runtime.preflight import check as examine

    verdict = examine(file)
    show(json.dumps(asdict(verdict)), str(verdict), as_json)
    if not verdict.ok:
        raise JobFailed
