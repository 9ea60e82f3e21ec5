"""The subcommands, one file each; `app.py` assembles the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line on `sys.argv`."""
    if (hidden := hidden_by()) is not None:
        sys.exit(f"rtseg: {hidden} was left by an older version and hides this one: delete it")
    # Only now: with such a folder in front, any import of ours would fail with a misleading name.
    from .app import main

    main()


def hidden_by() -> str | None:
    """The folder that Python takes for the package in place of this checkout, if there is one.

    It has no `__init__.py`, so it is a namespace, and its empty `runtime` comes before ours.
    """
    package = sys.modules[__name__.rpartition(".")[0]]
    return None if package.__file__ else str(next(iter(package.__path__)))
