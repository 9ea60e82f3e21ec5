"""`rtseg check`: will an artifact run on this machine?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument

from ._console import JobFailed, show
from ._options import Json, RequireSignature


def check(
    file: Annotated[Path, Argument(help="An artifact.")],
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Say whether an artifact will run on this machine.

    It is not loaded, so the answer is immediate.

    rtseg check artifacts/csfcn_512x1024_fp16.engine
    """
    from ..install import localize
    from ..runtime.preflight import check as examine

    verdict = examine(file)
    facts = asdict(verdict) | {"fix": localize(verdict.fix)}
    show(json.dumps(facts), str(verdict), as_json)
    if not verdict.ok:
        raise JobFailed
