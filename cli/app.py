"""Entry point: registers the commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer
from typer import Option

from .. import __version__
from ..errors import RtsegError, UsageError
from ._console import LEVELS, fold, start_log
from ._help import CONTEXT, Command
from .bench import app as bench
from .check import check
from .data import check_data, pack_data
from .demo import demo
from .doctor import doctor
from .drive import drive
from .evaluate import evaluate
from .export import export
from .fleet import fleet
from .incident import incident
from .inspect import inspect
from .models import models
from .pareto import pareto
from .predict import predict
from .pseudo_label import pseudo_label
from .quickstart import quickstart
from .replay import replay
from .sbom import sbom
from .sign import sign
from .submit import submit
from .targets import targets
from .train import train

app = typer.Typer(
    no_args_is_help=True,
    # typer would box tracebacks and print local variables, whole arrays among them.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
    help="Street-scene segmentation: export a network, prove it, measure it, run it.",
)
data = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Check data sets and pack them."
)

COMMANDS: tuple[Callable[..., None], ...] = (
    *(quickstart, doctor, models, targets, export, inspect, check, sign, sbom),
    *(predict, demo, drive, incident, replay, fleet),
    *(pareto, pseudo_label, train),
)
for command in COMMANDS:
    app.command(cls=Command, context_settings=CONTEXT)(command)
app.command("eval", cls=Command, context_settings=CONTEXT)(evaluate)
app.command(cls=Command, context_settings=CONTEXT)(submit)
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
data.command("check", cls=Command, context_settings=CONTEXT)(check_data)
data.command("pack", cls=Command, context_settings=CONTEXT)(pack_data)

RENAMED = {"--colour-blind": "--color-blind"}  # options of 0.1
GONE = {  # commands and options of 0.1 that are programs now
    "bench-labels": "python scripts/label_cost.py",
    "--compare-bench": "python scripts/age_beside_bench.py",
}
JSON_LOGS = ("drive", "fleet")  # commands that run for hours beside other programs
TOLD = (*JSON_LOGS, "eval", "submit")  # whose log says what ran, where no level is asked for


@app.callback()
def options(
    debug: Annotated[bool, Option("--debug", help="Show the traceback of every error.")] = False,
    log_level: Annotated[
        str, Option("--log-level", metavar="LEVEL", help=f"{', '.join(LEVELS)}; on stderr.")
    ] = "warning",
    version: Annotated[
        bool,
        Option(
            "--version",
            is_eager=True,
            callback=lambda wanted: _print_version(wanted),
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """Takes what stands before a command, for its help: `main` acts on it, wherever it stands."""


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"rtseg {__version__}\n")
        raise typer.Exit


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the job failed, 2 wrong usage, 128
    and the signal's number where one ended it.

    An exception that is neither an RtsegError nor an OSError is a bug: it keeps its traceback.
    """
    debug = "--debug" in sys.argv
    for kind in (signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
        signal.signal(kind, _stop)
    try:
        arguments = _take_common(sys.argv[1:])
        app(args=arguments, prog_name="rtseg")
    # An absent package of an extra is a line; any other module that is not found is a bug.
    except ModuleNotFoundError as error:
        from ..runtime.packages import explain_import

        if (missing := explain_import(error)) is None:
            raise
        fail(missing, missing.exit_code, debug)
    except RtsegError as error:
        fail(error, error.exit_code, debug)
    except OSError as error:
        fail(error, 1, debug)
    except KeyboardInterrupt:
        # As shells have it: 128 plus the number of SIGINT.
        sys.exit(130)


def _stop(number: int, frame: object) -> None:
    """Leave as after Ctrl-C, so that what is half written is removed or kept as partial."""
    sys.exit(128 + number)


def _take_common(arguments: list[str]) -> list[str]:
    """The arguments without those that every command takes, which may stand anywhere; starts the
    log that they ask for."""
    left: list[str] = []
    level = ""
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option in GONE:
            raise UsageError(f"{option} is a separate program now: {GONE[option]}")
        if option in RENAMED:
            sys.stderr.write(f"rtseg: {option} is called {RENAMED[option]} now: use that\n")
            left.append(RENAMED[option] + equals + value)
        elif option == "--log-level":
            level = value if equals else next(words, "")
            if level not in LEVELS:
                raise UsageError(f"--log-level is {', '.join(LEVELS)}, not {level!r}")
        elif word != "--debug":
            left.append(word)
    command = next((word for word in left if not word.startswith("-")), "")
    # Here and not in a command: what is loaded before it may log as well.
    start_log(level or ("info" if command in TOLD else "warning"), command in JSON_LOGS)
    return left


def fail(error: Exception, code: int, debug: bool) -> None:
    """Ends the process with an exit code: an error as its one line, or with its traceback."""
    if debug:
        traceback.print_exception(error)
    elif str(error):
        sys.stderr.write(fold(f"rtseg: {error}\n", sys.stderr))
    sys.exit(code)
