"""What `rtseg drive` writes and prints at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._console import JobFailed, show

if TYPE_CHECKING:
    from ..runtime.drive.report import DriveReport


def what_ran(source: str, artifacts: list[Path]) -> dict[str, Any]:
    """Fields of the report. Folders above a recording's own are left out: they say nothing to
    another machine."""
    from ..system import read_system

    where = Path(source)
    return {
        "source": "/".join(where.absolute().parts[-2:]) if where.exists() else source,
        "artifacts": [path.name for path in artifacts],
        "machine": str(read_system()),
    }


def tell_report(report: DriveReport, path: Path | None, as_json: bool) -> None:
    """Write it as JSON, and a page to read beside it; print it; raise JobFailed for a drive that
    did not do its work."""
    from rich.console import Group

    from ..data.files import write_atomically

    text = json.dumps(report.to_dict(), indent=2)
    if path is not None:
        write_atomically(path, (text + "\n").encode())
        write_atomically(path.with_suffix(".md"), report.to_markdown().encode())
    show(text, Group(*report.tables(history=False)), as_json)
    if why := report.failure():
        raise JobFailed(why)
