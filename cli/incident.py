"""`rtseg incident`: replays what a drive's black box kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, note, show
from ._options import Json, RequireSignature


def incident(
    file: Annotated[
        Path, Argument(help="A file of the black box, or its folder after a drive was cut off.")
    ],
    model: Annotated[
        list[Path] | None,
        Option(help="The artifact, where it lies elsewhere than then; may be repeated."),
    ] = None,
    every: Annotated[
        bool, Option("--all", help="Every incident of the folder, in place of the newest.")
    ] = False,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Replay the masks of an incident bit for bit.

    The artifacts are those that the file names, by their digests. Where a mask comes out otherwise,
    the libraries, machine and engines that differ from then are named.
    Of a folder the newest is replayed, and the others are listed; what a drive that was killed left
    becomes a file first. With --all, --json prints a list.

    rtseg incident box/incident_20260101T120000Z_degraded.mcap
    rtseg incident box --model artifacts/csfcn_tiny_512x1024_fp32.onnx
    rtseg incident box --all
    """
    from rich.console import Group

    from ..errors import UsageError
    from ..runtime.incident import replay_incident
    from ..runtime.sinks.black_box import find_incidents

    if every and not file.is_dir():
        raise UsageError(f"--all is for a black box's folder, and {file} is none")
    found = find_incidents(file) if file.is_dir() else [file]
    if not file.exists():
        raise UsageError(f"no such file or folder: {file}")
    chosen = found if every else found[-1:]
    for other in found[: -len(chosen)]:
        note(f"also there: rtseg incident {other}")
    done = [replay_incident(each, model or ()) for each in chosen]
    facts = [each.to_dict() for each in done]
    tables = [table for each in done for table in each.tables()]
    show(json.dumps(facts if every else facts[0], indent=2), Group(*tables), as_json)
    if failed := [f"{each.file}: {why}" for each in done if (why := each.failure())]:
        raise JobFailed("; ".join(failed) if every else done[0].failure())
