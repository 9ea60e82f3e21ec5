"""Help pages: options in groups, examples below them, as wide as the terminal."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand

WIDEST = 160  # columns
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": WIDEST}


class Command(TyperCommand):
    """A command whose docstring ends in examples, lines that begin with `rtseg`."""

    def format_help_text(self, ctx: object, formatter: Any) -> None:
        words, examples = split_help(self.help or "")
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(words)
        if examples:
            with formatter.section("Examples"):
                indent = " " * formatter.current_indent
                for example in examples:
                    for line in _fold(example, formatter.width - len(indent)):
                        formatter.write(f"{indent}{line}\n")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                kind = "Arguments" if param.param_type_name == "argument" else "Options"
                group = getattr(param, "rich_help_panel", None) or kind
                groups.setdefault(group, []).append(record)
        # Sorting is stable: other groups keep the order of their first options.
        for group in sorted(groups, key=lambda name: (name != "Arguments", name != "Options")):
            with formatter.section(group):
                formatter.write_dl(groups[group])


def _fold(example: str, width: int) -> list[str]:
    """A command line on as many lines as it needs, each but the last one ending in a backslash."""
    if len(example) <= width:
        return [example]
    # An option stays beside its value, and what is quoted stays whole: NUL is no place to break.
    glued = re.sub(r"'[^']*'", lambda quoted: quoted[0].replace(" ", "\0"), example)
    glued = re.sub(r"( --?\w[\w-]*) (?=[^-])", "\\1\0", glued)
    lines = textwrap.wrap(
        glued,
        width - len(" \\"),
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines).replace("\0", " ").splitlines()


def split_help(text: str) -> tuple[str, list[str]]:
    """(the words, the examples) of a docstring."""
    lines = text.splitlines()
    first = next(
        (i for i, line in enumerate(lines) if line.strip().startswith("rtseg ")), len(lines)
    )
    examples: list[str] = []
    for line in lines[first:]:
        if examples and examples[-1].endswith("\\"):
            # A shell line continued after a backslash is one example.
            examples[-1] = examples[-1][:-1].rstrip() + " " + line.strip()
        elif line.strip():
            examples.append(re.sub(r"\s+", " ", line.strip()))
    return "\n".join(lines[:first]).strip(), examples


def list_commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(what is typed, the command) of a group and of those below it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from list_commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command
