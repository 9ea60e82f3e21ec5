"""Recipes read from YAML, laid over each other and checked; `sections` says what they hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import RecipeError, warn_renamed
from .sections import Recipe

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
        base = _read(find_recipe(content.pop("base"), beside=path.parent))
        if "base" in base:
            raise RecipeError(f"{path}: its base has a base of its own: one step is the limit")
        content = merged({key: value for key, value in base.items() if key != "also"}, content)
    for change in changes:
        content = merged(content, _parsed(change))
    return checked(content, str(path))


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
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} holds no `key: value` lines")
    return _rename_keys(content)


def _rename_keys(content: dict[str, Any]) -> dict[str, Any]:
    """Old spellings under their new names, in the same order."""
    for old in content.keys() & RENAMED:
        warn_renamed(f"the recipe's {old!r}", repr(RENAMED[old]))
    return {RENAMED.get(key, key): value for key, value in content.items()}


def _parsed(change: str) -> dict[str, Any]:
    """`optimizer.clip=1` -> {"optimizer": {"clip": 1}}"""
    keys, equals, value = change.partition("=")
    if not equals or not keys:
        raise RecipeError(f"{change!r} is no change: write key=value or section.key=value")
    try:
        content: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(f"the value in {change!r} is no YAML") from error
    for key in reversed(keys.split(".")):
        content = {key: content}
    return _rename_keys(content)


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
    """The section that a path of keys leads to; names and numbers of entries lead nowhere."""
    section: type[BaseModel] = Recipe
    for key in path:
        if key in section.model_fields:
            kinds = (section.model_fields[key].annotation,)
            kinds += get_args(kinds[0])
            section = next(k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel))
    return section
