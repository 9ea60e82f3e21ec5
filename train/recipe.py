"""Recipes: every knob of a training run with its unit and default, checked when it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..data.transforms import Augment

RECIPES = Path(__file__).with_name("recipes")


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the key and what to write instead."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Section):
    """`cache` keeps all decoded images in memory; `workers` are processes that load and augment."""

    name: str
    root: Path = Path()
    train: str = "train"
    val: str = "val"
    classes: Path | None = None
    cache: bool = False
    workers: int = Field(default=2, ge=0)


class Optimiser(Section):
    """Weight decay spares all parameters of one dimension (norms and biases). `clip` bounds the
    norm of the whole gradient; `backbone` multiplies the backbone's learning rate."""

    kind: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0)
    backbone: float = Field(default=1.0, ge=0)
    clip: float | None = Field(default=None, gt=0)


class Schedule(Section):
    """Linear warm-up over `warmup` iterations from `warmup_from` times the learning rate, then
    (1 - progress) ** power down to 0 at the end. Give `epochs` or `iterations`."""

    epochs: float | None = Field(default=None, gt=0)
    iterations: int | None = Field(default=None, gt=0)
    warmup: int = Field(default=0, ge=0)
    warmup_from: float = Field(default=1 / 3, ge=0, le=1)
    power: float = Field(default=0.9, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("give either epochs or iterations (null takes one away)")
        return self


class Loss(Section):
    """`cross_entropy`, or `ohem`, which keeps pixels whose true class has a probability up to
    `threshold` and at least the `kept` hardest of a batch. `dice` and `auxiliary` are weights of
    the Dice loss and of each auxiliary output. `class_balance` x weighs classes by
    (median frequency / frequency) ** x: 0 is even."""

    kind: Literal["cross_entropy", "ohem"] = "cross_entropy"
    threshold: float = Field(default=0.9, gt=0, le=1)
    kept: int = Field(default=110_000, ge=1)
    dice: float = Field(default=0.0, ge=0)
    auxiliary: float = Field(default=0.4, ge=0)
    class_balance: float = Field(default=0.0, ge=0, le=1)


class Recipe(Section):
    """A training run. `batch` counts images per process and step; `accumulate` steps make one
    update. Intervals (`*_every`) count iterations, that is updates. `ema` is the decay of the
    averaged weights, which are then the ones validated and kept; null: no averaging."""

    model: str
    data: Data
    augment: Augment
    options: dict[str, Any] = {}
    optimiser: Optimiser = Optimiser()
    schedule: Schedule
    loss: Loss = Loss()
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | None = Field(default=None, gt=0, lt=1)
    compile: bool = False
    sync_norm: bool = True
    pretrained: Path | None = None
    seed: int = 0
    log_every: int = Field(default=20, ge=1)
    val_every: int = Field(default=1000, ge=1)
    save_every: int = Field(default=500, ge=1)
    val_size: tuple[int, int] | None = None
    tensorboard: bool = False


def load_recipe(source: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file or the name of a shipped one, with `key.key=value` changes.

    A `base:` key names a recipe (beside the file, or shipped) that this one changes; a base has no
    base itself. Raises RecipeError.
    """
    path = find_recipe(source)
    content = _read(path)
    if "base" in content:
        base = _read(find_recipe(content.pop("base"), beside=path.parent))
        if "base" in base:
            raise RecipeError(f"{path}: its base has a base of its own: one step is the limit")
        content = merged(base, content)
    for change in changes:
        content = merged(content, _parsed(change))
    return checked(content, str(path))


def find_recipe(source: str | Path, beside: Path = Path()) -> Path:
    for path in (beside / source, Path(source), RECIPES / f"{source}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    near = get_close_matches(str(source), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(names)}"
    raise RecipeError(f"no recipe {str(source)!r}, neither as a file nor by name: {hint}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no `key: value` lines")
    return content


def _parsed(change: str) -> dict[str, Any]:
    """`optimiser.clip=1` -> {"optimiser": {"clip": 1}}"""
    keys, equals, value = change.partition("=")
    if not equals or not keys:
        raise RecipeError(f"{change!r} is no change: write key=value or section.key=value")
    try:
        content: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value in {change!r} is no YAML") from error
    for key in reversed(keys.split(".")):
        content = {key: content}
    return dict(content)


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` laid over `base`, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merged(old, value) if both else value  # type: ignore[arg-type]
    return result


def checked(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Raises RecipeError with one line for each wrong key."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explained(detail) for detail in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(lines)) from error


def _explained(detail: Mapping[str, Any]) -> str:
    *path, key = detail["loc"] or ("",)
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        known = list(_section_at(path).model_fields)
        near = get_close_matches(str(key), known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        return f"unknown key {name!r}: {hint}"
    if detail["type"] == "missing":
        return f"key {name!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{name or 'recipe'}: {message[0].lower()}{message[1:]}"


def _section_at(path: Iterable[Any]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for key in path:
        kinds = (section.model_fields[key].annotation,)
        kinds += get_args(kinds[0])
        section = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return section
