"""Tables of figures: for a terminal, as Markdown, and as one JSON value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..system import SystemInfo

NAMES = ("model", "size", "run by")  # the first cells of every row


@dataclass(frozen=True)
class Figures:
    """A table: each row has the three cells of `names`, then one for each of `header`."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    names: Sequence[str] = NAMES

    def rich(self) -> Table:
        """For 80 columns: the cells of a row's name share one, and units go without saying."""
        table = Table(title=self.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("", overflow="fold", min_width=14)
        for name in self.header:
            table.add_column(name.removesuffix(" ms"), justify="right")
        for name, size, runner, *figures in self.rows:
            table.add_row(f"{name} {size} {runner}", *figures)
        return table

    def markdown(self) -> str:
        header = [*self.names, *self.header]
        rule = ["---" if i < len(self.names) else "---:" for i in range(len(header))]
        lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])


@dataclass(frozen=True)
class Sheet:
    """What one run of a protocol found.

    facts: JSON values by row; settings: what was asked for; started: UTC, ISO 8601; warnings and
    notes: lines for the user; answer: the line that sums it up, "" where there is none.
    """

    protocol: str
    tables: Sequence[Figures]
    facts: Sequence[Mapping[str, Any]]
    machine: SystemInfo
    started: str
    settings: Mapping[str, Any]
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    answer: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON value; times end in `_ms`, sizes are [height, width]."""
        value = {
            "protocol": self.protocol,
            "started": self.started,
            "settings": dict(self.settings),
            "machine": asdict(self.machine),
            "warnings": list(self.warnings),
            **self.extra,
            "rows": [dict(row) for row in self.facts],
        }
        return json.dumps(value, indent=2)

    def to_markdown(self) -> str:
        """The tables as Markdown, machine and versions below them."""
        parts = [table.markdown() for table in self.tables]
        lines = [*([self.answer] if self.answer else []), *self._lines(), *self.warnings]
        return "\n\n".join([*parts, "\n".join(f"- {line}" for line in lines)]) + "\n"

    def table(self) -> RenderableType:
        """The tables for a terminal."""
        return page(self.tables, self._lines(), self.warnings, self.answer)

    def _lines(self) -> list[str]:
        return [*self.notes, *self.machine.lines()]


def page(
    tables: Iterable[Figures], notes: Iterable[str], warnings: Iterable[str], answer: str = ""
) -> RenderableType:
    """Tables, then what is to be known of them, for a terminal."""
    return Group(
        *(table.rich() for table in tables),
        *([Text(answer, style="bold")] if answer else []),
        *(Text(line, style="dim") for line in notes),
        *(Text(line, style="yellow") for line in warnings),
    )


def figure(value: float | None) -> str:
    """Three digits that count; "" for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
