"""`rtseg train`: trains a network by a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, show
from ._options import Json, complete_recipes


def train(
    recipe: Annotated[
        str,
        Argument(
            help="A recipe file, or the name of a shipped recipe.", autocompletion=complete_recipes
        ),
    ],
    changes: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Such as data.root=DIR.")
    ] = None,
    out: Annotated[
        Path | None,
        Option(
            "-o",
            "--out",
            help="Folder for the run; by default runs/RECIPE, for own data runs/MODEL_ROOT.",
        ),
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Continue where the run stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network by a recipe.

    Its best weights are OUT/best.safetensors.

    rtseg train csfcn_nano_camvid data.root=data/camvid schedule.epochs=2
    rtseg train csfcn_nano_camvid data.name=folder data.root=mine
    """
    from ..train import train as run
    from ..train.trainer import BEST

    outcome = run(recipe, changes or (), out=out, resume=resume, show=True)
    facts = {
        "weights": str(outcome.folder / BEST),
        "iterations": outcome.iteration,
        "finished": outcome.finished,
        "miou": outcome.miou,
    }
    # Of several processes, one prints.
    if outcome.first and (outcome.finished or as_json):
        line = f"best mIoU {outcome.miou:.2%}: {outcome.folder / BEST}"
        show(json.dumps(facts), line, as_json)
    if not outcome.finished:
        raise JobFailed(f"stopped and saved at iteration {outcome.iteration}: --resume continues")
