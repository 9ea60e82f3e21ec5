"""Terminal output: results on stdout, progress and log lines on stderr.

rich is imported where something is printed: `rtseg --help` does without it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from ..errors import RtsegError
from ..reporting import wrap

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

PIPED_WIDTH = 160  # columns of a table that no terminal shows
LEVELS = ("debug", "info", "warning", "error")
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


class JobFailed(RtsegError):
    """The command ran and its answer is no: exit code 1, after the message if there is one."""


class JobUndecided(JobFailed):
    """The command ran and could not answer, and may another time: exit code 3."""

    exit_code = 3


def stdout() -> Console:
    """Standard output as it is now: tests and redirections exchange it."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Standard error as it is now, for notes and progress."""
    return _console(sys.stderr)


@cache
def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # rich takes 80 columns for a pipe, and would break what `grep` and `less -S` read.
    fixed = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH
    return Console(file=stream, width=fixed)


def show(as_text: str, table: object, as_json: bool) -> None:
    """One JSON value on stdout, or the table or the lines."""
    if as_json:
        sys.stdout.write(as_text.rstrip() + "\n")
    else:
        # rich would color numbers and paths of its own accord.
        if isinstance(table, str):
            table = fold(table, sys.stdout)
        stdout().print(table, soft_wrap=isinstance(table, str), highlight=False, markup=False)


def note(line: str) -> None:
    """A line on stderr that is not the result."""
    line = fold(line, sys.stderr)
    stderr().print(line, style="dim", soft_wrap=True, highlight=False, markup=False)


def fold(text: str, stream: TextIO) -> str:
    """Text broken between words where a terminal would break it within names; whole elsewhere."""
    if not stream.isatty():
        return text
    return "\n".join(wrap(text, shutil.get_terminal_size().columns))


@contextmanager
def bar(unit: str) -> Iterator[Progress]:
    """A progress bar with rate and remaining time, on stderr."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    rate = TextColumn(f"{{task.fields[rate]}} {unit}/s")
    with Progress(
        *columns, rate, TimeElapsedColumn(), TimeRemainingColumn(), console=stderr()
    ) as progress:
        yield progress


@contextmanager
def steps(
    description: str, total: int | None, unit: str = "frames"
) -> Iterator[Callable[..., None]]:
    """A bar; gives what moves it on, whatever it is called with."""
    with bar(unit) as progress:
        task = progress.add_task(description, total=total, rate="-")

        def advance(*_: object) -> None:
            progress.advance(task)
            if speed := progress.tasks[0].speed:
                progress.update(task, rate=f"{speed:.1f}")

        try:
            yield advance
        except BaseException:
            if not progress.tasks[0].completed:  # an error in what was asked leaves its line alone
                progress.live.transient = True
                progress.live.stop()
                progress.disable = True  # or it ends in an empty line where there is no terminal
            raise


@contextmanager
def working() -> Iterator[Callable[..., None]]:
    """A spinner on stderr; gives a function that says what is being done, and shows the share done
    as a bar, once there is one."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.text import Text

    class Bar(BarColumn):
        def render(self, task: Task) -> Any:
            return super().render(task) if task.completed else Text()

    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, Bar(bar_width=24), TimeElapsedColumn())
    here = stderr()
    # Elsewhere than on a terminal it would leave an empty line behind.
    silent = not here.is_terminal
    with Progress(*columns, console=here, transient=True, disable=silent) as progress:
        task = progress.add_task("starting", total=1.0)

        def say(line: str, share: float = 0.0) -> None:
            # A task that is full would stop its clock, and the next step begins anew.
            progress.update(task, description=line, completed=min(share, 0.999))

        yield say


class _Lines(logging.Formatter):
    """Time, message and the record's own fields, for people."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in _fields(record).items())
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{self.formatTime(record, '%H:%M:%S')} {level}{record.getMessage()}"
        return f"{line}  {fields}" if fields else line


class _JsonLines(logging.Formatter):
    """A JSON object a line, for machines; `time` in seconds since 1970."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        return json.dumps(facts, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What the caller added; other libraries (Ray) mark every record with a private name."""
    fields = vars(record).items()
    return {name: value for name, value in fields if name not in _PLAIN and name[0] != "_"}


def start_log(level: str, as_json: bool) -> None:
    """The package's log on stderr, and its warnings as lines of their own."""
    # stderr: stdout is the result's, which other programs read.
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    logger = logging.getLogger("rtseg")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    # Ray and others set up the root logger, which would print every line again.
    logger.propagate = False
    # A warning's file and source line mean nothing to the user of a command.
    warnings.showwarning = _show_warning


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, FutureWarning):
        sys.stderr.write(f"rtseg: {message}\n")
    else:
        logging.getLogger("rtseg").info("%s: %s", category.__name__, message)
