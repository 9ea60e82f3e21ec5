"""`rtseg fleet`: labels thousands of logs, on all cores of a machine or a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, show, working
from ._options import Backend, Device, Json, OneModel, RequireSignature, in_group

WORKERS = "Workers"


def fleet(
    inputs: Annotated[
        list[str], Argument(help="Folders, videos or quoted globs, one log each; @FILE: a list.")
    ],
    model: OneModel,
    out: Annotated[Path, Option("-o", "--out", help="Output folder, with a folder for each log.")],
    form: Annotated[
        str, Option("--as", help="png: label maps; rle: runs in a Parquet file.")
    ] = "png",
    workers: Annotated[
        int | None, in_group(WORKERS, min=1, help="How many; by default one per core, or per GPU.")
    ] = None,
    batch: Annotated[int, in_group(WORKERS, min=1, help="Frames that each takes at a time.")] = 8,
    address: Annotated[
        str | None,
        in_group(WORKERS, help="Ray cluster: auto or HOST:PORT; by default this machine only."),
    ] = None,
    gpus: Annotated[float, in_group(WORKERS, min=0, help="GPUs per worker.")] = 0.0,
    compare: Annotated[
        int, Option(min=0, help="Also measure a single-process loop on so many frames.")
    ] = 0,
    backend: Backend = None,
    device: Device = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Label thousands of logs with Ray Data, here or on a cluster.

    The same command continues where it was interrupted.

    Log lines on stderr are JSON.

    rtseg fleet 'logs/*.mp4' --model artifacts/csfcn_nano_512x1024_fp32.onnx -o labels
    """
    from ..fleet.fleet import FleetOptions, single_process
    from ..fleet.fleet import fleet as run
    from ..reporting import Table
    from ..resolve import resolve_artifact

    with working() as step:
        artifact = resolve_artifact(model, backend=backend, device=device, progress=step)
    options = FleetOptions(form, workers, batch, address, backend, device, gpus)
    loop = single_process(inputs, artifact, options, compare) if compare else None
    summary = run(inputs, artifact, out, options)
    facts = {
        "artifact": str(artifact),
        "logs": len(summary.logs),
        "done_before": summary.done,
        "failed": summary.failed,
        "frames": summary.frames,
        "skipped": summary.skipped,
        "seconds": round(summary.seconds, 3),
        "start_s": round(summary.start_s, 3),
        "frames_per_s": round(summary.frames_per_s, 2),
        "single_process_frames_per_s": None if loop is None else round(loop, 2),
        "out": str(out),
    }
    told = facts | {"failed": "; ".join(f"{log}: {why}" for log, why in summary.failed.items())}
    rows = [
        (name.replace("_", " "), value) for name, value in told.items() if value not in ("", None)
    ]
    show(json.dumps(facts), Table(("", ""), rows, words=("",)), as_json)
    if summary.failed:
        raise JobFailed(f"{len(summary.failed)} logs failed; the same command tries them again")
