"""The networks."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from rich import box
from rich.table import Table
from typer import Argument

from ._console import need, out, show
from ._options import Json

WIDE = 150  # columns of a terminal that has room for recipes and sources


def models(
    name: Annotated[str | None, Argument(help="One network, in full.")] = None,
    as_json: Json = False,
) -> None:
    """List the networks with size, cost and published mIoU in %, or show one in full.

    rtseg models sfnet_r18
    """
    need("torch", "PyTorch", "export", "models")
    if name is not None:
        facts = one(name)
        show(json.dumps(facts, indent=2), _page(facts), as_json)
        return
    zoo = listed()
    show(json.dumps(zoo, indent=2), _table(zoo, out.width >= WIDE), as_json)


def listed() -> list[dict[str, Any]]:
    """`models.zoo.describe` of every variant, with the names of its `recipes`."""
    from ..models.zoo import list_rows

    recipes = _recipes()
    return [row | {"recipes": recipes.get(row["model"], [])} for row in list_rows()]


def one(name: str) -> dict[str, Any]:
    """`models.zoo.describe_fully` of a variant, with the names of its `recipes`.

    Raises ValueError for a name that is none.
    """
    from ..models.zoo import describe_fully

    facts = describe_fully(name)
    return facts | {"recipes": _recipes().get(name, [])}


def _recipes() -> dict[str, list[str]]:
    """{variant: recipes}; {} where what reads them is not installed."""
    if importlib.util.find_spec("yaml") is None:
        return {}
    from ..train.recipe import recipes_by_variant

    return recipes_by_variant()


def _table(zoo: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    """A line a network; a narrow one counts the recipes and has one score."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False)
    table.add_column("network", no_wrap=True)
    for heading in ("params\nM", "GMACs\n512x\n1024", "GMACs\n1024x\n2048"):
        table.add_column(heading, justify="right", no_wrap=True)
    if wide:
        table.add_column("GMACs\nas reported", justify="right", no_wrap=True)
    for heading in ("mIoU, %\nCityscapes", "recipes", "license"):
        table.add_column(heading, no_wrap=not wide)
    for row in zoo:
        table.add_row(*_cells(row, wide))
    table.caption = (
        "license: of the reference implementation, - where not known\n"
        "`rtseg models NAME` shows a network in full, `--json` gives all of everything"
    )
    return table


def _cells(row: Mapping[str, Any], wide: bool) -> list[str]:
    reported = row["reported"]
    cells = [
        row["model"],
        f"{row['params'] / 1e6:.2f}",
        f"{row['macs_512x1024'] / 1e9:.1f}",
        f"{row['macs_1024x2048'] / 1e9:.1f}",
    ]
    if wide:
        cells.append(f"{reported['size']}: {reported['macs'] / 1e9:.1f}")
    scores = score_texts(row["published"])
    recipes = ", ".join(row["recipes"]) if wide else str(len(row["recipes"]) or "")
    shown = ", ".join(scores if wide else scores[:1])
    return [*cells, shown or "-", recipes or "-", row["license"] or "-"]


def score_texts(published: Sequence[Mapping[str, Any]]) -> list[str]:
    """mIoU at one scale, Cityscapes' first and without its name: "79.9", "52.1 Pascal Context"."""
    scores = sorted(published, key=lambda score: not score["data"].startswith("Cityscapes val"))
    names = [score["data"].removesuffix(" val").removeprefix("Cityscapes") for score in scores]
    return [
        f"{s['single']:g} {name}".replace("  ", " ").rstrip()
        for s, name in zip(scores, names, strict=True)
    ]


def _page(facts: Mapping[str, Any]) -> Table:
    """What is known of one network, a line a fact."""
    page = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    page.add_column(no_wrap=True, style="bold")
    page.add_column()
    for name, text in _lines(facts):
        page.add_row(name, text)
    return page


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
