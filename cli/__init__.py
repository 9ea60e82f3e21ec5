"""The subcommands, a file each; the command line is put together in `app.py`."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv`."""
    from .app import main

    main()
