"""Training by a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, need, show
from ._options import Json


def train(
    recipe: Annotated[str, Argument(help="A recipe's file, or the name of a shipped one.")],
    changes: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Such as data.root=DIR.")
    ] = None,
    folder: Annotated[
        Path | None, Option("-o", "--out", help="Folder for the run; by default runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on where the run stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network by a recipe; its best weights are OUT/best.safetensors.

    rtseg train csfcn_nano_camvid data.root=data/camvid schedule.epochs=2
    """
    need("torch", "PyTorch", "train", "train")
    from ..train.recipe import load_recipe
    from ..train.trainer import BEST
    from ..train.trainer import train as run

    folder = folder or Path("runs") / Path(recipe).stem
    outcome = run(load_recipe(recipe, changes or ()), folder, resume)
    facts = {
        "weights": str(folder / BEST),
        "iterations": outcome.iteration,
        "finished": outcome.finished,
        "miou": outcome.miou,
    }
    if outcome.first and (outcome.finished or as_json):
        show(json.dumps(facts), f"best mIoU {outcome.miou:.2%}: {folder / BEST}", as_json)
    if not outcome.finished:
        raise JobFailed(f"stopped and saved at iteration {outcome.iteration}: --resume goes on")
