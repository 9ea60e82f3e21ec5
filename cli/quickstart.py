"""The whole job once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ._console import need, out, working


def quickstart(
    folder: Annotated[Path, Option("-o", "--out", help="Folder for all that it makes.")] = Path(
        "rtseg-quickstart"
    ),
    model: Annotated[str, Option(help="A name that `rtseg models` lists.")] = "csfcn_nano",
    frames: Annotated[Path | None, Option(help="Folder of images to run on.")] = None,
    seconds: Annotated[float, Option(help="Measuring time for each table row.")] = 2.0,
) -> None:
    """See the whole job once: export, proof, engines, speed at three sizes, segmented frames.

    rtseg quickstart
    """
    need("torch", "PyTorch", "all", "quickstart")
    from ..demo.quickstart import run

    with working() as step:
        result = run(folder, model, frames, seconds, step)
    for table in result.tables:
        out.print(table)
    for line in result.notes:
        out.print(line, highlight=False)
    out.print(f"Report: {result.report}", soft_wrap=True)
