"""What a command says to the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..errors import MissingPackage, RtsegError

out = Console()
err = Console(stderr=True)


class JobFailed(RtsegError):
    """The command ran and its answer is no: exit code 1, after the message if there is one."""


def need(module: str, title: str, extra: str, command: str) -> None:
    """Raises MissingPackage with the pip line if an extra is missing."""
    if importlib.util.find_spec(module) is None:
        from ..runtime.packages import pip_line

        raise MissingPackage(f"rtseg {command} needs {title}: {pip_line(extra)}")


def show(as_text: str, table: Any, as_json: bool) -> None:
    """One JSON value on stdout, or the table."""
    if as_json:
        sys.stdout.write(as_text.rstrip() + "\n")
    else:
        out.print(table, soft_wrap=isinstance(table, str), highlight=not isinstance(table, str))


def note(line: str) -> None:
    err.print(line, style="dim", soft_wrap=True, highlight=False)


def bar(unit: str) -> Progress:
    """A progress bar with rate and remaining time, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


class Rate(ProgressColumn):
    """Steps a second."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else f"- {self.unit}/s")


class working:
    """A spinner on stderr that says what is being done; gives a function that changes the line."""

    def __enter__(self) -> Any:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self.progress.start()
        task = self.progress.add_task("starting")
        return lambda line: self.progress.update(task, description=line)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()
