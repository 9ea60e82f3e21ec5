"""Recipes: every option of a training run with its unit and default; read from YAML, merged and
checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from ..data.limits import parse_yaml, read_yaml
from ..data.transforms import Augment
from ..errors import RecipeError, warn_renamed


class Section(BaseModel):
    """A part of a recipe, which refuses unknown keys, changes, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """`cache` keeps all decoded images in memory; `workers` are processes that load and augment.
    `edge_margin`: pixels at an image's border in which borders between classes do not count.
    `repeat`: by the beginning of training frames' names, how often an epoch takes each of them."""

    name: str
    root: Path = Path()
    train: str = "train"
    val: str = "val"
    classes: Path | None = None
    cache: bool = False
    workers: int = Field(default=2, ge=0)
    edge_margin: int = Field(default=0, ge=0)
    repeat: dict[str, Annotated[int, Field(ge=1)]] = {}


class Group(Section):
    """Parameters with one of `names` in their name, as the reference implementation calls them;
    their learning rate and weight decay are multiplied by `rate` and `decay`."""

    names: tuple[str, ...] = Field(min_length=1)
    rate: float = Field(default=1.0, ge=0)
    decay: float = Field(default=1.0, ge=0)


class Optimizer(Section):
    """Weight decay spares all parameters of one dimension (norms and biases) unless `decay_all`.
    `clip` bounds the norm of the whole gradient; `backbone` multiplies the backbone's learning
    rate. Of `groups` the first that fits a parameter counts."""

    kind: Literal["sgd", "adam", "adamw"] = "sgd"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Field(default=5e-4, ge=0)
    decay_all: bool = False
    backbone: float = Field(default=1.0, ge=0)
    groups: tuple[Group, ...] = ()
    clip: float | None = Field(default=None, gt=0)


class Schedule(Section):
    """A warm-up over `warmup` iterations from `warmup_from` times the learning rate, then a decay
    down to `last` times at the end: (1 - progress) ** power, or half a cosine. Give `epochs` or
    `iterations`.

    `warmup_within`: the decay runs from the first iteration on, and the warm-up scales it; else it
    begins after the warm-up. `per_epoch`: the rate changes between epochs alone. `stop`: the part
    of the schedule after which training ends.
    """

    epochs: float | None = Field(default=None, gt=0)
    iterations: int | None = Field(default=None, gt=0)
    warmup: int = Field(default=0, ge=0)
    warmup_from: float = Field(default=1 / 3, ge=0, le=1)
    warmup_shape: Literal["linear", "exponential"] = "linear"
    warmup_within: bool = False
    shape: Literal["poly", "cosine"] = "poly"
    power: float = Field(default=0.9, gt=0)
    last: float = Field(default=0.0, ge=0, le=1)
    per_epoch: bool = False
    stop: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("give either epochs or iterations (null takes one away)")
        if self.warmup_shape == "exponential" and self.warmup and not self.warmup_from:
            raise ValueError("an exponential warm-up cannot begin at warmup_from=0")
        return self


class Term(Section):
    """How one output of the network is compared with the label.

    `kind`: `cross_entropy`; `ohem`, the same over the hard pixels alone, those whose true class has
    a probability up to `threshold`, and at least the hardest `kept` of the batch (or `kept` times
    its images, or its pixels that count: `kept_per`); `probabilities`, for an output that is class
    probabilities up to a factor; `bordered`, cross-entropy that counts more near borders between
    classes; `edges`, for an output of one channel that finds those borders.
    `mean`: over the pixels kept by their class weights, over those `pixels`, or over `all` pixels
    whether they count or not. `at`: compared at the `label`'s size or the `output`'s. `dice`: the
    weight of the Dice loss beside it.
    """

    kind: Literal["cross_entropy", "ohem", "probabilities", "bordered", "edges"] = "cross_entropy"
    weight: float = Field(default=1.0, ge=0)
    threshold: float = Field(default=0.9, gt=0, le=1)
    kept: float = Field(default=110_000, gt=0)
    kept_per: Literal["batch", "image", "pixel"] = "batch"
    mean: Literal["weights", "pixels", "all"] = "weights"
    at: Literal["label", "output"] = "label"
    dice: float = Field(default=0.0, ge=0)


class Loss(Term):
    """The main output's loss, and how the others add to it.

    Each auxiliary output is compared as the main one, with the weight `auxiliary`, unless
    `outputs` has a term for it. `boundary` is the weight of the main loss once more, over the
    pixels alone where the output of kind `edges` sees a border. `class_weights`: one for each
    class; `class_balance` x makes them (median frequency / frequency) ** x: 0 is even.
    """

    auxiliary: float = Field(default=0.4, ge=0)
    outputs: dict[str, Term] = {}
    boundary: float = Field(default=0.0, ge=0)
    class_weights: tuple[float, ...] | None = None
    class_balance: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Loss:
        if self.class_weights and self.class_balance:
            raise ValueError("give either class_weights or class_balance")
        if self.boundary and not self.edges:
            raise ValueError("boundary needs an output of kind edges")
        return self

    @property
    def edges(self) -> str | None:
        """The output that finds borders between classes."""
        return next((name for name, term in self.outputs.items() if term.kind == "edges"), None)

    @property
    def maps(self) -> tuple[str, ...]:
        """What it needs beside the label, see the module `loss`."""
        kinds = {self.kind, *(term.kind for term in self.outputs.values())}
        return tuple(name for name in ("edges", "bordered") if name in kinds)


class Teacher(Section):
    """Soft labels that are learned beside the true ones: a student learns from a teacher.

    `source`: a folder of soft labels, see `data.soft_labels`, or a model that writes them before
    training begins; several are averaged. `class_map`: what the classes of teachers that do not
    have the data's become, as a list of train ids, a file, or a shipped map's name. `weight` is
    that of the soft loss, `true_weight` that of the recipe's own. `temperature` softens both
    sides. `where` soft labels count: on `all` pixels, on those `unlabeled`, or also where teacher
    and true label `agree`; and the teacher's probability is at least `confidence`. They are
    compared at every `stride`th pixel.
    """

    source: tuple[str, ...] = Field(min_length=1)
    class_map: str | tuple[int, ...] | None = None
    weight: float = Field(default=1.0, ge=0)
    true_weight: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    where: Literal["all", "unlabeled", "agree"] = "all"
    confidence: float = Field(default=0.0, ge=0, lt=1)
    stride: Literal[1, 2, 4, 8] = 2

    @model_validator(mode="before")
    @classmethod
    def _short(cls, content: Any) -> Any:
        """`teacher: FOLDER` is short for `teacher: {source: [FOLDER]}`."""
        if isinstance(content, str):
            content = {"source": content}
        if isinstance(content, dict) and isinstance(content.get("source"), str):
            content = content | {"source": (content["source"],)}
        return content


class Recipe(Section):
    """A training run. `also` names further variants that it is for as it stands. `batch` counts
    images per process and step; `accumulate` steps make one update. Intervals (`*_every`) count
    iterations, that is updates. `ema` is the decay of the averaged weights, which are then the ones
    validated and kept; null: no averaging.

    `quantize: int8` rounds, in training and validation, what an int8 export will round, see
    `qat`; null: nothing.

    `pretrained`: a file that starts the backbone; `weights`: one that starts the whole network, or
    weights that ship, such as csfcn_tiny:camvid; all but its classifier with `classifier: new`, and
    `classifier_map` then says which class of the file each of the new ones starts as (a list, a
    file or a shipped map's name). Validation takes whole frames: at `val_size`, fitted into
    `val_fit` (short, long side), or as they are, and in windows of `val_window` if given.
    """

    model: str
    also: tuple[str, ...] = ()
    data: Data
    augment: Augment
    options: dict[str, Any] = {}
    optimizer: Optimizer = Optimizer()
    schedule: Schedule
    loss: Loss = Loss()
    teacher: Teacher | None = None
    batch: int = Field(default=8, ge=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    quantize: Literal["int8"] | None = None
    ema: float | None = Field(default=None, gt=0, lt=1)
    compile: bool = False
    sync_norm: bool = True
    pretrained: Path | None = None
    weights: Path | None = None
    classifier: Literal["keep", "new"] = "keep"
    classifier_map: str | tuple[int, ...] | None = None
    seed: int = 0
    log_every: int = Field(default=20, ge=1)
    val_every: int = Field(default=1000, ge=1)
    save_every: int = Field(default=500, ge=1)
    val_size: tuple[PositiveInt, PositiveInt] | None = None
    val_fit: tuple[PositiveInt, PositiveInt] | None = None
    val_window: tuple[PositiveInt, PositiveInt] | None = None
    tensorboard: bool = False

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.pretrained and self.weights:
            raise ValueError("give either pretrained (the backbone's) or weights (the network's)")
        if self.classifier_map is not None and self.classifier == "keep":
            raise ValueError("classifier_map needs classifier: new")
        if self.val_size and self.val_fit:
            raise ValueError("give either val_size or val_fit")
        return self


RECIPES = Path(__file__).with_name("recipes")
RENAMED = {"optimiser": "optimizer", "quantise": "quantize"}  # keys of 0.1


def load_recipe(source: str | Path, changes: Iterable[str] = ()) -> Recipe:
    """A recipe from a YAML file or the name of a shipped one, with `key.key=value` changes.

    A `base:` key names a recipe (beside the file, or shipped) that this one changes, all but its
    `also`; a base has no base itself. Raises RecipeError.
    """
    path = find_recipe(source)
    content = _read(path)
    if "base" in content:
        if not isinstance(content["base"], str):
            raise RecipeError(f"{path}: base is the name of a recipe, not {content['base']!r}")
        base = _read(find_recipe(content.pop("base"), beside=path.parent))
        if "base" in base:
            raise RecipeError(f"{path}: its base has a base of its own: one step is the limit")
        # `also` is of the base: its further variants need not fit what this recipe changes.
        content = merge({key: value for key, value in base.items() if key != "also"}, content)
    for change in changes:
        content = merge(content, _parse_change(change))
    return check_recipe(content, str(path))


def find_recipe(source: str | Path, beside: Path = Path()) -> Path:
    """The file of a recipe: a path, one in the folder `beside`, or a shipped one by name."""
    for path in (beside / source, Path(source), RECIPES / f"{source}.yaml"):
        if path.is_file():
            return path
    names = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    near = get_close_matches(str(source), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped are {', '.join(names)}"
    raise RecipeError(f"no recipe {str(source)!r}, neither as a file nor by name: {hint}")


def recipes_by_variant() -> dict[str, list[str]]:
    """{variant: the shipped recipes that train it}; one that names the variant in `also` needs the
    change `model=VARIANT`."""
    recipes: dict[str, list[str]] = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = load_recipe(path)
        for variant in (recipe.model, *recipe.also):
            recipes.setdefault(variant, []).append(path.stem)
    return recipes


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path, RecipeError)
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no `key: value` lines")
    return _rename_keys(content)


def _rename_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Old spellings under their new names, in the same order."""
    for old in content.keys() & RENAMED:
        warn_renamed(f"the recipe's {old!r}", repr(RENAMED[old]))
    return {RENAMED.get(key, key): value for key, value in content.items()}


def _parse_change(change: str) -> dict[str, Any]:
    """`optimizer.clip=1` -> {"optimizer": {"clip": 1}}"""
    keys, equals, value = change.partition("=")
    if not equals or not keys:
        raise RecipeError(f"{change!r} is no change: write key=value or section.key=value")
    content: Any = parse_yaml(value, f"the value in {change!r}", RecipeError)
    for key in reversed(keys.split(".")):
        content = {key: content}
    return _rename_keys(content)


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` merged into `base`, section by section."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def check_recipe(content: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """Raises RecipeError with one line for each wrong key."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise RecipeError(f"{where}: " + "; ".join(lines)) from error


def _explain(detail: Mapping[str, Any]) -> str:
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
    """The section that a path of keys leads to; names and numbers of entries lead nowhere."""
    section: type[BaseModel] = Recipe
    for key in path:
        if key in section.model_fields:
            kinds = (section.model_fields[key].annotation,)
            kinds += get_args(kinds[0])
            section = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return section
