"""`rtseg inspect`: what is in a file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from typer import Argument

from ._console import show
from ._options import Json


def inspect(
    file: Annotated[Path, Argument(help="An artifact or a checkpoint.")], as_json: Json = False
) -> None:
    """Show the network, classes, size, proof and origin of a file.

    rtseg inspect artifacts/csfcn_512x1024_fp16.engine
    """
    from ..reporting import Table
    from ..runtime.description import describe

    facts = describe(file)
    rows = [(name.replace("_", " "), _text(name, value)) for name, value in facts.items()]
    show(json.dumps(facts, indent=2), Table(("", ""), rows, words=("",)), as_json)


def _text(name: str, value: object) -> str:
    """A value for people; facts inside a fact are lines, named as `outer.inner`."""
    if isinstance(value, dict):
        return "\n".join(f"{inner}: {text}" for inner, text in _flatten(value))
    if isinstance(value, (list, tuple)):
        size = len(value) == 2 and name.endswith(("size", "crop", "window"))
        return ("x" if size else ", ").join(_text("", each) for each in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _flatten(facts: Mapping[str, object], outer: str = "") -> Iterator[tuple[str, str]]:
    """Without those that say nothing: None, and lists and dictionaries of nothing."""
    for key, value in facts.items():
        name = f"{outer}{key or 'file'}"
        if isinstance(value, dict):
            yield from _flatten(value, f"{name}.")
        elif value is not None and value not in ([], ()):
            yield name, _text(key, value)
