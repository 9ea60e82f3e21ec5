"""Tables: one `Table` for terminals, Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from .errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

Progress = Callable[[str, float], None]  # what is being done, and the share of it done, 0..1
GAP = 2  # spaces between a terminal's columns
NARROWEST = 20  # characters that a column of words keeps before rows are stacked
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; prints itself in a terminal, however narrow.

    Args:
        header: a name a column; all empty for pairs of name and value.
        rows: cells, one a column; None shows as nothing.
        title: one line above.
        names: the first columns, which say what a row is about: aligned left, never left out.
        words: further columns that are aligned left, and wrapped between words if need be.
        optional: columns that a narrow terminal leaves out, the first one first.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""
    names: int = 1
    words: Sequence[str] = ()
    optional: Sequence[str] = ()

    def format(self, name: str) -> str:
        """The table as text.

        Args:
            name: "md", "csv", "latex" or "html".

        Raises:
            UsageError: if no format is called that.
        """
        formats = {"md": self.markdown, "csv": self.csv, "latex": self.latex, "html": self.html}
        if name not in formats:
            raise UsageError(
                f"no table format is called {name!r}: choose from {', '.join(formats)}"
            )
        return formats[name]()

    def markdown(self) -> str:
        """A GitHub table below its title."""
        rule = ["---" if self._is_left(i) else "---:" for i in range(len(self.header))]
        lines = [[_escape_markdown(cell) for cell in row] for row in (self.header, *self._cells())]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:]))
        return f"**{self.title}**\n\n{body}" if self.title else body

    def csv(self) -> str:
        """RFC 4180, header first, without the title."""
        text = io.StringIO()
        # RFC 4180 says CRLF, which diffs and shells trip over.
        csv.writer(text, lineterminator="\n").writerows([self.header, *self._cells()])
        return text.getvalue()

    def latex(self) -> str:
        """A `tabular` in booktabs' style; the title stands in a comment."""
        columns = "".join("l" if self._is_left(i) else "r" for i in range(len(self.header)))
        head, *rows = (
            " & ".join(map(_escape_latex, cells)) + r" \\"
            for cells in (self.header, *self._cells())
        )
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows]
        comment = [f"% {self.title}"] if self.title else []
        return "\n".join([*comment, *lines, r"\bottomrule", r"\end{tabular}"])

    def html(self) -> str:
        """A `table` element, its title as the caption."""
        caption = f"<caption>{html.escape(self.title)}</caption>\n" if self.title else ""
        lines = [self._html_row("th", self.header)]
        lines += [self._html_row("td", cells) for cells in self._cells()]
        return f"<table>\n{caption}" + "\n".join(lines) + "\n</table>"

    def _html_row(self, tag: str, cells: Sequence[str]) -> str:
        right = ' style="text-align:right"'
        inner = (
            f"<{tag}{'' if self._is_left(i) else right}>{html.escape(cell)}</{tag}>"
            for i, cell in enumerate(cells)
        )
        return f"<tr>{''.join(inner)}</tr>"

    def _cells(self) -> list[list[str]]:
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]

    def _is_left(self, column: int) -> bool:
        return column < self.names or self.header[column] in self.words

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        title = wrap(self.title, options.max_width) if self.title else []
        lines = ((line, "italic") for line in title)
        for line, style in chain(lines, self._lay_out(options.max_width)):
            # Laid out already: rich would wrap again, in the middle of names.
            yield Text(line, style=style, no_wrap=True, overflow="ignore")
        yield Text("")

    def _lay_out(self, width: int) -> Iterator[tuple[str, str]]:
        """(line, style): the whole table, or figures under their names, or fewer columns, or a line
        a cell; names and figures are never cut."""
        rows, names = self._cells(), self.names
        if (widths := self._fit(width)) is not None:
            yield from self._head(widths)
            for row in rows:
                yield from self._row(row, widths)
            return
        figures = replace(
            self, header=self.header[names:], rows=[row[names:] for row in rows], names=0
        )
        if (widths := figures._fit(width)) is not None:
            yield from figures._head(widths)
            for row in rows:
                yield from ((line, "bold") for line in wrap(" ".join(row[:names]), width))
                yield from figures._row(row[names:], widths)
            return
        unused = next((name for name in self.optional if name in self.header), None)
        if unused is not None:
            yield from self._without(unused)._lay_out(width)
            return
        for row in rows:
            yield from ((line, "bold") for line in wrap(" ".join(row[:names]), width))
            for name, cell in zip(self.header[names:], row[names:], strict=True):
                yield from ((f"  {line}", "") for line in wrap(f"{name}: {cell}", width - 2))

    def _without(self, name: str) -> Table:
        place = list(self.header).index(name)
        header, *rows = (
            [cell for i, cell in enumerate(cells) if i != place]
            for cells in (self.header, *self.rows)
        )
        return replace(self, header=[str(cell) for cell in header], rows=rows)

    def _fit(self, width: int) -> list[int] | None:
        """Widths of the columns, those of words narrowed if need be; None if they do not fit."""
        rows = [list(self.header), *self._cells()]
        widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
        excess = sum(widths) + GAP * (len(widths) - 1) - width
        flexible = [i for i, name in enumerate(self.header) if name in self.words]
        # The widest column gives first.
        for place in sorted(flexible, key=lambda i: -widths[i]):
            longest = max(map(len, " ".join(row[place] for row in rows).split()), default=0)
            taken = min(max(excess, 0), max(0, widths[place] - max(NARROWEST, longest)))
            excess -= taken
            # Words seldom fill a line to its end: no wider than what is written there.
            lines = (line for row in rows for line in wrap(row[place], widths[place] - taken))
            widths[place] = max(map(len, lines))
        return None if excess > 0 else widths

    def _head(self, widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        if any(self.header):
            yield self._line(self.header, widths), "bold"
            yield "─" * (sum(widths) + GAP * (len(widths) - 1)), "dim"

    def _row(self, cells: Sequence[str], widths: Sequence[int]) -> Iterator[tuple[str, str]]:
        parts = [wrap(cell, width) for cell, width in zip(cells, widths, strict=True)]
        for line in zip_longest(*parts, fillvalue=""):
            yield self._line(line, widths), ""

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = (
            cell.ljust(width) if self._is_left(i) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return (" " * GAP).join(padded).rstrip()


def join(tables: Sequence[Table]) -> Table:
    """One wide table of those that name their rows alike, such as one for a spreadsheet.

    Args:
        tables: with the same names; a row that one of them lacks is left empty there.

    Returns:
        The rows in the order in which they first appear.
    """
    names = tables[0].names
    rows: dict[tuple[object, ...], list[object]] = {}
    header = list(tables[0].header[:names])
    for table in tables:
        for row in table.rows:
            kept = rows.setdefault(tuple(row[:names]), list(row[:names]))
            kept += [None] * (len(header) - len(kept)) + list(row[names:])
        header += table.header[names:]
    wide = [row + [None] * (len(header) - len(row)) for row in rows.values()]
    return Table(header, wide, tables[0].title, names)


def format_figure(value: float | None) -> str:
    """Three digits that count; "" for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _width(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def wrap(cell: str, width: int) -> list[str]:
    """The lines of a cell, broken between words only."""
    lines = cell.split("\n")
    return [
        part
        for line in lines
        for part in textwrap.wrap(
            line, max(1, width), break_long_words=False, break_on_hyphens=False
        )
        or [""]
    ]


def _escape_markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def _escape_latex(cell: str) -> str:
    return "".join(LATEX.get(character, character) for character in cell)
