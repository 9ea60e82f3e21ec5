"""Latency and FPS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from .options import Device, Json, Sizes, parse_sizes
from .terminal import show, working


def bench(
    model: Annotated[list[str], Argument(help="Artifacts, models' names or checkpoints.")],
    size: Sizes = None,
    backend: Annotated[
        list[str] | None, Option(help="onnxruntime, openvino, tensorrt, torch; may be repeated.")
    ] = None,
    precision: Annotated[
        list[str] | None, Option(help="fp32, fp16, bf16; may be repeated.")
    ] = None,
    seconds: Annotated[float, Option(help="Measuring time for each row, or --runs.")] = 5.0,
    runs: Annotated[int, Option(help="Runs for each row, or --seconds.")] = 100,
    threads: Annotated[int | None, Option(help="CPU threads; by default one per core.")] = None,
    frames: Annotated[Path | None, Option(help="Folder of images; else drawn scenes.")] = None,
    eager: Annotated[bool, Option(help="With the row of the plain PyTorch network.")] = True,
    device: Device = None,
    markdown: Annotated[Path | None, Option(help="Write the tables there too.")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and FPS at batch 1, beside the plain PyTorch network in the same run.

    rtseg bench csfcn_tiny --size 512x1024
    """
    from ..data.files import write_atomically
    from ..data.frames import read_folder
    from ..speed import bench as run

    with working() as step:
        report = run(
            model,
            parse_sizes(size),
            backend or [],
            precision or [],
            seconds=seconds,
            runs=runs,
            threads=threads,
            frames=[image for _, image in read_folder(frames)] if frames else None,
            eager=eager,
            device=device,
            progress=lambda line, share: step(f"{line} ({share:.0%})"),
        )
    if markdown:
        write_atomically(markdown, report.to_markdown().encode())
    show(report.to_json(), report.table(), as_json)
