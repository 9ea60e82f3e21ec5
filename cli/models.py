"""`rtseg models`: the networks."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

from typer import Argument

from ..errors import UsageError
from ..reporting import Table
from ._console import note, show, stdout
from ._options import ROOT, Json, complete_models

IN_FULL = ("multiple", "mean", "std", "checkpoint")  # of one network, not in the list of all
WIDE = 150  # columns of a terminal that has room for recipes and all scores


def models(
    name: Annotated[
        str | None, Argument(help="Show this network in full.", autocompletion=complete_models)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the networks with cost and published mIoU, or show one.

    rtseg models sfnet_r18
    """
    if name is not None:
        facts = one(name)
        show(json.dumps(facts, indent=2), Table(("", ""), _lines(facts), words=("",)), as_json)
        return
    zoo = listed()
    show(json.dumps(zoo, indent=2), _table(zoo, stdout().width >= WIDE), as_json)
    if not as_json:
        note("license: of the reference implementation; `rtseg models NAME` shows one in full")


def listed() -> list[dict[str, Any]]:
    """`models.zoo.describe` of every variant, with the names of its `recipes`."""
    try:
        from ..models.zoo import list_rows
    except ModuleNotFoundError as error:
        zoo = _stored(error).values()
        rows: Iterable[Mapping[str, Any]] = (
            {key: value for key, value in facts.items() if key not in IN_FULL} for facts in zoo
        )
    else:
        rows = list_rows()
    recipes = _recipes()
    return [{**row, "recipes": recipes.get(row["model"], [])} for row in rows]


def one(name: str) -> dict[str, Any]:
    """`models.zoo.describe_fully` of a variant, with the names of its `recipes`.

    Raises:
        UsageError: no variant is called so.
    """
    try:
        from ..models.zoo import describe_fully
    except ModuleNotFoundError as error:
        zoo = _stored(error)
        if name not in zoo:
            near = get_close_matches(name, zoo, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`rtseg models` lists them"
            raise UsageError(f"no model is called {name!r}: {hint}") from error
        facts = zoo[name]
    else:
        facts = describe_fully(name)
    return {**facts, "recipes": _recipes().get(name, [])}


def _stored(error: ModuleNotFoundError) -> dict[str, dict[str, Any]]:
    """What a machine with PyTorch wrote down of each variant, where this one lacks it."""
    if (error.name or "").partition(".")[0] not in ("torch", "safetensors"):
        raise error
    stored: dict[str, dict[str, Any]] = json.loads((ROOT / "models" / "costs.json").read_text())
    return stored


def _recipes() -> dict[str, list[str]]:
    """{variant: recipes}; {} where what reads them is not installed."""
    # PyYAML comes with the training extra: without it the zoo is listed all the same.
    if importlib.util.find_spec("yaml") is None:
        return {}
    from ..train.recipe import recipes_by_variant

    return recipes_by_variant()


NARROW = ("network", "params", "GMACs 512", "1024", "mIoU, %", "recipes")
BROAD = (*NARROW[:4], "as reported", *NARROW[4:], "license")
TITLE = "Parameters in millions, GMACs at 512x1024 and 1024x2048"


def _table(zoo: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    """A line a network; a narrow one counts the recipes and has one score."""
    words = ("mIoU, %", "recipes", "license") if wide else ("mIoU, %",)
    return Table(BROAD if wide else NARROW, [_cells(row, wide) for row in zoo], TITLE, words=words)


def _cells(row: Mapping[str, Any], wide: bool) -> list[str]:
    reported, scores = row["reported"], score_texts(row["published"])
    cost = [
        f"{row['params'] / 1e6:.2f}",
        f"{row['macs_512x1024'] / 1e9:.1f}",
        f"{row['macs_1024x2048'] / 1e9:.1f}",
    ]
    if not wide:
        return [row["model"], *cost, *(scores[:1] or "-"), str(len(row["recipes"]) or "-")]
    return [
        row["model"],
        *cost,
        f"{reported['size']}: {reported['macs'] / 1e9:.1f}",
        ", ".join(scores) or "-",
        ", ".join(row["recipes"]) or "-",
        row["license"] or "-",
    ]


def score_texts(published: Sequence[Mapping[str, Any]]) -> list[str]:
    """mIoU at one scale, Cityscapes' first and without its name: "79.9", "52.1 Pascal Context"."""
    scores = sorted(published, key=lambda score: not score["data"].startswith("Cityscapes val"))
    names = [
        score["data"].replace("Cityscapes val", "").removesuffix(" val").removeprefix("Cityscapes")
        for score in scores
    ]
    return [
        f"{s['single']:g} {name}".replace("  ", " ").rstrip()
        for s, name in zip(scores, names, strict=True)
    ]


def _lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    reported, model = facts["reported"], facts["model"]
    scores = [
        f"{score['data']}: {score['single']:g}"
        + (f", several scales and flip {score['multiple']:g}" if score["multiple"] else "")
        + f" ({score['source']})"
        for score in facts["published"]
    ]
    known = facts["reference"] or "none: the network is ours"
    license = f", license {facts['license'] or 'not known here'}" if facts["reference"] else ""
    colors = zip("RGB", facts["mean"], facts["std"], strict=True)
    norm = ", ".join(f"({name} - {mean:g}) / {std:g}" for name, mean, std in colors)
    return [
        ("network", model),
        ("paper", facts["paper"]),
        ("reference", known + license),
        ("parameters", f"{facts['params'] / 1e6:.3f} M at 19 classes"),
        (
            "multiply-adds",
            f"{facts['macs_512x1024'] / 1e9:.2f} G at 512x1024, "
            f"{facts['macs_1024x2048'] / 1e9:.2f} G at 1024x2048",
        ),
        (
            "as reported",
            f"at {reported['size']}, {reported['classes']} classes: "
            f"{reported['params'] / 1e6:.3f} M, {reported['macs'] / 1e9:.2f} G",
        ),
        ("mIoU, %", "\n".join(scores) or "none published"),
        ("recipes", "\n".join(facts["recipes"]) or "none"),
        ("weights", _weights(facts["weights"])),
        ("checkpoints", _naming(facts["checkpoint"])),
        ("frames", f"sides are multiples of {facts['multiple']}; colors 0..1 as {norm}"),
    ]


def _weights(names: Sequence[str]) -> str:
    if not names:
        return "none in the package: seeded random ones are taken"
    return f"{', '.join(names)}; for research, as the data that they learned from"


def _naming(checkpoint: Mapping[str, str | None]) -> str:
    """By which names state dicts are taken."""
    ours = f"our names, such as {checkpoint['ours']}"
    if checkpoint["official"] is None:
        return ours
    return f"the reference's names, such as {checkpoint['official']}, and {ours}"
