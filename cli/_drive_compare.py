"""`rtseg drive --compare-bench`: the age of results beside the bench's latency."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ._console import JobFailed, show, working

if TYPE_CHECKING:
    from ..runtime import Drive
    from ..speed.age import Ages

FRAMES = 16  # of the source, that the bench takes in turn


def compare_with_bench(
    drive: Callable[[Ages], Drive],
    frames: Iterable[Any],
    artifact: Path,
    runs_on: tuple[str | None, str | None],
    turns: int,
    duration_s: float,
) -> dict[str, Any]:
    """runs_on: backend and device. Gives the comparison as JSON values."""
    from ..data.frames import Frame
    from ..runtime.backends.backend import choose
    from ..speed.age import compare
    from ..speed.contestant import Artifact

    backend, device = runs_on
    images = [each.image for each in islice(frames, FRAMES) if isinstance(each, Frame)]
    if not images:
        raise JobFailed("the source gives no frame to measure on")
    name = choose(artifact, backend, device)
    contestant = Artifact.open(artifact, name, images, device=device)
    try:
        with working() as step:
            found = compare(contestant.frame_to_labels, drive, turns, duration_s, progress=step)
    finally:
        contestant.close()
    return {"backend": name, **found.facts()}


def tell_age(facts: dict[str, Any], report: Path | None, as_json: bool) -> None:
    """Print it, write it, and raise JobFailed where results come too late."""
    from ..data.files import write_atomically

    text = json.dumps(facts, indent=2)
    if report is not None:
        write_atomically(report, (text + "\n").encode())
    show(text, _table(facts), as_json)
    if not facts["keeps_up"]:
        raise JobFailed("the machine does not keep up with the camera: the ages say nothing")
    if not facts["passed"]:
        raise JobFailed(
            f"results are {facts['ratio']} times as old as the bench's latency (p95), "
            f"{facts['limit']} at most"
        )


def _table(facts: dict[str, Any]) -> Table:
    keys = ("bench_ms", "age_ms", "waiting_ms", "inference_ms", "transfer_ms", "ratio", "answered")
    table = Table("p95", *(key.replace("_ms", " ms") for key in keys))
    for number, turn in enumerate(facts["turns"], start=1):
        table.add_row(f"drive {number}", *(f"{turn[key]:.2f}" for key in keys))
    overall = {"bench_ms": facts["bench_p95_ms"], "age_ms": facts["age_p95_ms"]}
    overall["ratio"] = facts["ratio"]
    table.add_row("all", *(f"{overall[key]:.2f}" if key in overall else "" for key in keys))
    return table
