"""`rtseg quickstart`: runs the whole pipeline once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ._console import stdout, working
from ._options import complete_models


def quickstart(
    out: Annotated[Path, Option("-o", "--out", help="Folder for the results.")] = Path(
        "rtseg-quickstart"
    ),
    model: Annotated[
        str, Option(help="A name that `rtseg models` lists.", autocompletion=complete_models)
    ] = "csfcn_nano",
    frames: Annotated[Path | None, Option(help="Folder of images to run on.")] = None,
    seconds: Annotated[float, Option(help="Measuring time for each table row.")] = 2.0,
) -> None:
    """Run the whole job once, from export to segmented frames.

    It exports at three sizes, proves, builds engines, measures, and writes a report.

    rtseg quickstart --frames my/frames
    """
    from ..demo.quickstart import run

    with working() as step:
        result = run(out, model, frames, seconds, step)
    for part in (*result.tables, *result.notes, f"Report: {result.report}"):
        stdout().print(part, highlight=False, soft_wrap=isinstance(part, str))
