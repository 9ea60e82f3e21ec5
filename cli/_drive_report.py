"""What `rtseg drive` tells at its end: a table, files, and whether it went well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from ._console import JobFailed


def what_ran(source: str, paths: list[str]) -> dict[str, Any]:
    """The report's first lines. Folders above a recording's own are left out: they say nothing to
    another machine."""
    from ..system import read_system

    where = Path(source)
    shown = "/".join(where.absolute().parts[-2:]) if where.exists() else source
    return {
        "source": shown,
        "artifacts": [Path(path).name for path in paths],
        "machine": str(read_system()),
    }


def write_report(path: Path, text: str, facts: dict[str, Any]) -> None:
    """The JSON, and beside it a page to read."""
    from ..data.files import write_atomically
    from ..runtime.drive.sheet import to_markdown

    write_atomically(path, (text + "\n").encode())
    write_atomically(path.with_suffix(".md"), to_markdown(facts).encode())


def table_of(facts: dict[str, Any]) -> Table:
    frames, age = facts["frames"], facts["age_ms"]
    times = f"p50 {age['p50']:.1f} ms, p95 {age['p95']:.1f}, p99 {age['p99']:.1f}"
    table = Table(show_header=False)
    table.add_row("ended", f"{facts['ended']} after {facts['seconds']:.1f} s, {facts['state']}")
    table.add_row("frames", f"{frames['captured']} captured, {frames['published']} answered")
    table.add_row("dropped", _counts(frames["dropped"]))
    table.add_row("age", times)
    table.add_row("results", _counts(facts["results_by_level"]))
    for change in facts["level_changes"]:
        table.add_row(f"at {change['at_s']:.1f} s", f"to {change['to']}: {change['why']}")
    for failure in facts["engine_failures"]:
        table.add_row(
            f"at {failure['at_s']:.1f} s", f"{failure['engine']} replaced: {failure['reason']}"
        )
    for sink in facts["sinks"]:
        counts = {name: sink[name] for name in ("delivered", "dropped", "failed", "unflushed")}
        table.add_row(sink["name"], f"{_counts(counts)}  {sink['last_error']}".rstrip())
    for wish, answer in facts["realtime"].items():
        table.add_row(wish, answer)
    for row in facts.get("injected", {}).get("faults", ()):
        table.add_row(f"{row['fault']} at {row['at_s']:g} s", _fate(row))
    return table


def _fate(row: dict[str, Any]) -> str:
    if row["noticed_after_s"] is None:
        return "NOT NOTICED"
    again = row["running_again_after_s"]
    return "NOT RECOVERED" if again is None else f"running again {again} s after its end"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def judge(facts: dict[str, Any]) -> None:
    """Raises JobFailed for a drive that did not do its work."""
    if facts["ended"] == "source lost":
        raise JobFailed(f"the source is lost: {'; '.join(facts['reasons'])}")
    if not facts["frames"]["published"]:
        raise JobFailed(f"no frame was answered: {'; '.join(facts['reasons'])}")
    if not facts.get("injected", {"passed": True})["passed"]:
        raise JobFailed("a fault went unnoticed or lasted, or a frame is not accounted for")
