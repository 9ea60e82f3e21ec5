"""Many logs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from ._console import JobFailed, err, need, note, show
from ._options import Backend, Device, Json


def fleet(
    inputs: Annotated[
        list[str], Argument(help="Folders, videos or quoted globs, a log each; @FILE: a list.")
    ],
    model: Annotated[str, Option("--model", help="An artifact, a model's name or a checkpoint.")],
    out: Annotated[Path, Option("-o", "--out", help="Folder; each log gets one in it.")],
    form: Annotated[
        str, Option("--as", help="png: label maps; rle: runs in a Parquet file.")
    ] = "png",
    workers: Annotated[int | None, Option(min=1, help="By default one a core, or a GPU.")] = None,
    batch: Annotated[int, Option(min=1, help="Frames that a worker takes at a time.")] = 8,
    address: Annotated[
        str | None, Option(help="Ray cluster: auto, or HOST:PORT; else this machine alone.")
    ] = None,
    gpus: Annotated[float, Option(min=0, help="GPUs for each worker.")] = 0.0,
    compare: Annotated[
        int, Option(min=0, help="Measure a single-process loop on so many frames too.")
    ] = 0,
    backend: Backend = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Label thousands of logs with Ray Data, here or on a cluster; a second run goes on.

    rtseg fleet 'logs/*.mp4' --model artifacts/csfcn_nano_512x1024_fp32.onnx -o labels
    """
    for module, title in (("ray", "Ray"), ("pyarrow", "pyarrow")):
        need(module, title, "fleet", "fleet")
    from ..fleet.fleet import Options, single_process
    from ..fleet.fleet import fleet as run
    from ..resolve import resolve_artifact

    artifact = resolve_artifact(model, backend=backend, progress=note)
    note(f"artifact: {artifact}")
    options = Options(form, workers, batch, address, backend, device, gpus)
    loop = single_process(inputs, artifact, options, compare) if compare else 0.0

    def finished(log: str, error: str) -> None:
        err.print(f"{log}: {error or 'done'}", soft_wrap=True, highlight=False, markup=False)

    summary = run(inputs, artifact, out, options, finished=finished)
    facts = {
        "logs": len(summary.logs),
        "done_before": summary.done,
        "failed": summary.failed,
        "frames": summary.frames,
        "skipped": summary.skipped,
        "seconds": round(summary.seconds, 3),
        "start_s": round(summary.start_s, 3),
        "frames_per_s": round(summary.frames_per_s, 2),
        "single_process_frames_per_s": round(loop, 2) if compare else None,
        "out": str(out),
    }
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), str(value))
    show(json.dumps(facts), table, as_json)
    if summary.failed:
        raise JobFailed(f"{len(summary.failed)} logs failed; the same command tries them again")
