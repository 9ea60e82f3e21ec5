"""The front door: puts the commands together, and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer
from typer import Option

from .. import __version__
from ..errors import RtsegError
from ._console import err, out
from .bench import bench
from .bench_labels import bench_labels
from .check import check
from .data import check_data, pack_data
from .demo import demo
from .doctor import doctor
from .drive import drive
from .evaluate import evaluate
from .export import export
from .fleet import fleet
from .inspect import inspect
from .models import models
from .pareto import pareto
from .predict import predict
from .pseudo_label import pseudo_label
from .quickstart import quickstart
from .submit import submit
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Street-scene segmentation: export a network, prove it, measure it, run it.",
)
data = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check data sets and pack them."
)

COMMANDS: tuple[Callable[..., None], ...] = (
    *(quickstart, doctor, models, export, inspect, check),
    *(predict, demo, drive, fleet),
    *(bench, bench_labels, pareto, pseudo_label, train),
)
for command in COMMANDS:
    app.command()(command)
app.command("eval")(evaluate)
app.command()(submit)
app.add_typer(data, name="data")
data.command("check")(check_data)
data.command("pack")(pack_data)


@app.callback()
def options(
    debug: Annotated[bool, Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, Option("--version", is_eager=True, callback=lambda v: _version(v), help="And stop.")
    ] = False,
) -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"rtseg {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the job failed, 2 wrong usage.

    An exception that is neither an RtsegError nor an OSError is a bug: it keeps its traceback.
    """
    try:
        app()
    except RtsegError as error:
        fail(error, error.exit_code)
    except OSError as error:
        fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: Exception, code: int) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    elif str(error):
        err.print(f"rtseg: {error}", soft_wrap=True, highlight=False, markup=False)
    sys.exit(code)
