"""Train networks by recipes, and evaluate them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .._package import CallablePackage

if TYPE_CHECKING:
    from .recipe import Recipe
    from .trainer import Outcome

__all__ = ["train"]


def train(
    recipe: str | os.PathLike[str] | Recipe,
    changes: Mapping[str, object] | Iterable[str] = (),
    *,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    show: bool = False,
) -> Outcome:
    """Train a network by a recipe.

    Args:
        recipe: the name of a shipped recipe, a YAML file, or a `Recipe`.
        changes: of the recipe: {"data.root": "camvid"} or ["data.root=camvid"].
        out: folder for the run, by default `runs/RECIPE`, or `runs/MODEL_ROOT` for data of one's
            own (`data.name=folder`); its best weights are `best.safetensors`.
        resume: continue where the run in that folder stopped.
        show: print progress on stderr.

    Returns:
        How far it came: iteration, best mIoU (a fraction), whether it finished, the weights.

    Raises:
        RecipeError: the recipe or a change cannot be used; nothing was written.
        DataError: the data set is missing or a file of it is damaged.
        TrainingError: the loss is not finite, or a data worker died.
    """
    from .recipe import Recipe, load_recipe
    from .trainer import train as run

    if isinstance(changes, Mapping):
        changes = [f"{key}={value}" for key, value in changes.items()]
    changes = list(changes)
    if isinstance(recipe, Recipe):
        name, chosen = recipe.model, recipe
    else:
        name, chosen = Path(recipe).stem, load_recipe(os.fspath(recipe), changes)
        if "data.name=folder" in changes:  # the recipe's name tells of another data set
            name = f"{chosen.model}_{chosen.data.root.resolve().name}"
    return run(chosen, Path(out) if out is not None else Path("runs") / name, resume, show)


sys.modules[__name__].__class__ = CallablePackage  # `rtseg.train(...)` works too
