"""docs/python.md: every command with its Python call, whose imports, names and arguments exist."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import typer
from conftest import ROOT
from rtseg.api import open_labeler
from rtseg.cli._help import list_commands
from rtseg.cli.app import app
from rtseg.drive_job import open_drive
from rtseg.speed.config import BenchConfig

PAGE = (ROOT / "docs" / "python.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
# Of a report, in Python its methods; of a machine, a variable.
OF_ALL = {"--json", "--format", "--markdown", "--require-signature"}
# Commands whose other options are parameters of just these calls.
CALLS = {
    "rtseg export": ["rtseg.export"],
    "rtseg drive": ["run_drive"],
    "rtseg bench latency": ["rtseg.bench"],
    "rtseg eval": ["rtseg.evaluate"],
}
# What these calls take as `**options`, `**settings` and `**view`.
FURTHER = {
    "run_drive": set(inspect.signature(open_drive).parameters),
    "rtseg.bench": {field.name for field in fields(BenchConfig)},
    "rtseg.evaluate": set(inspect.signature(open_labeler).parameters),
}
# An argument of the command line, and the parameter that it is.
SAME = {"dataset": "data"}


COMMANDS = dict(list_commands(typer.main.get_command(app), "rtseg"))


def import_all() -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        for node in ast.parse(block).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), names)
    return names


def list_examples() -> Iterator[tuple[str, str]]:
    """(command line, the lines of Python below it)."""
    for block in BLOCKS:
        parts = re.split(r"^# (rtseg .*)\n", block, flags=re.MULTILINE)
        yield from zip(parts[1::2], parts[2::2], strict=True)


def test_every_command_has_its_python_call() -> None:
    shown = [line for line, code in list_examples() if code.strip()]
    missing = [
        name for name in COMMANDS
        if not any(line == name or line.startswith(f"{name} ") for line in shown)
    ]  # fmt: skip
    assert missing == [], "docs/python.md has no row of these"


def test_command_lines_of_the_page_are_read() -> None:
    """Their options are the command's, and its arguments suffice."""
    for line, _ in list_examples():
        name = max((n for n in COMMANDS if f"{line} ".startswith(f"{n} ")), key=len)
        words = [word.strip("'") for word in line[len(name) :].split()]
        COMMANDS[name].make_context(name, words)


def test_calls_of_the_page_take_these_arguments() -> None:
    names = import_all()
    checked = set()
    for line, code in list_examples():
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.Call):
                continue
            root = next(each for each in ast.walk(node.func) if isinstance(each, ast.Name))
            if root.id not in names:  # a result's method
                continue
            what = ast.unparse(node.func)
            called = eval(what, names)
            given = {word.arg: None for word in node.keywords if word.arg}
            inspect.signature(called).bind(*node.args, **given)
            if further := FURTHER.get(what):
                own = set(inspect.signature(called).parameters)
                assert given.keys() <= own | further, line
            checked.add(line)
    # Constructors of the standard library aside, each example calls something of ours.
    assert checked == {line for line, _ in list_examples()}


@pytest.mark.parametrize("name", CALLS)
def test_options_with_another_name_are_named(name: str) -> None:
    names = import_all()
    known: set[str] = set()
    for call in CALLS[name]:
        known |= set(inspect.signature(eval(call, names)).parameters) | FURTHER.get(call, set())
    rows = re.findall(rf"^\| `{name}` \| (.*?) \|", PAGE, flags=re.MULTILINE)
    listed = set(re.findall(r"`(--[\w-]+)`", " ".join(rows)))
    other = {
        parameter.opts[-1]
        for parameter in COMMANDS[name].params
        if SAME.get(parameter.name, parameter.name) not in known
    } - OF_ALL
    # A parameter of the builder may be named like one of the call's own.
    assert other - listed == set(), "the table of docs/python.md lacks these"
    assert listed <= {option for each in COMMANDS[name].params for option in each.opts}
