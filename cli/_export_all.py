"""The whole zoo, exported and proven."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ._console import JobFailed, need, note, show, working
from ._options import parse_sizes

DEFAULT_SIZE = (512, 1024)


def export_zoo(
    sizes: list[str] | None,
    only: Sequence[str],
    targets: Sequence[str],
    precisions: Sequence[str],
    scenes: int,
    keep: bool,
    folder: Path,
    as_json: bool,
) -> None:
    """Export the variants that `only` fits, print the table, and fail if a row did.

    Empty targets and precisions are `export_all`'s own.
    """
    need("torch", "PyTorch", "export", "export")
    from ..export.export_zoo import TABLE, build_table, export_all, list_faults, select_variants

    asked = parse_sizes(sizes) or [DEFAULT_SIZE]
    if len(asked) > 1:
        raise UsageError("--all exports at one size: give one, and another folder for the next")
    wanted = {"targets": tuple(targets), "precisions": tuple(precisions)}
    with working() as step:
        rows = export_all(
            select_variants(only),
            asked[0],
            folder,
            frames=scenes,
            keep=keep,
            progress=step,
            **{name: value for name, value in wanted.items() if value},
        )
    show(json.dumps([row.as_dict() for row in rows], indent=2), build_table(rows), as_json)
    for fault in list_faults(rows):
        note(fault)
    if failed := [row.key for row in rows if row.faults]:
        table = (folder / TABLE).with_suffix(".md")
        raise JobFailed(f"{len(failed)} of {len(rows)} failed: {', '.join(failed)}; why: {table}")
