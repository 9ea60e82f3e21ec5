"""`rtseg incident`: replays what a drive's black box kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, show
from ._options import Json, RequireSignature


def incident(
    file: Annotated[
        Path, Argument(help="A file of the black box, or its folder after a drive was cut off.")
    ],
    model: Annotated[
        list[Path] | None,
        Option(help="The artifact, where it lies elsewhere than then; may be repeated."),
    ] = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Replay the masks of an incident bit for bit.

    The artifacts are those that the file names, by their digests. Where a mask comes out otherwise,
    the libraries, machine and engines that differ from then are named.
    Of a folder, what a drive that was killed left becomes a file first.

    rtseg incident box/incident_20260101T120000Z_degraded.mcap
    rtseg incident box --model artifacts/csfcn_tiny_512x1024_fp32.onnx
    """
    from rich.console import Group

    from ..errors import UsageError
    from ..runtime.incident import replay_incident
    from ..runtime.sinks.black_box import find_newest

    if file.is_dir():
        file = find_newest(file)
    if not file.is_file():
        raise UsageError(f"no such file or folder: {file}")
    done = replay_incident(file, model or ())
    show(json.dumps(done.to_dict(), indent=2), Group(*done.tables()), as_json)
    if why := done.failure():
        raise JobFailed(why)
