"""The speed table's pages: the machines' files read, merged and written as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.files import write_atomically
from ..errors import UsageError
from .sheet import figure, percent

Row = Mapping[str, Any]
MARKS = "<!-- speed table -->", "<!-- end of speed table -->"
FORMAT = 1  # of a machine's JSON


def read_machines(folder: Path) -> list[dict[str, Any]]:
    """The machines' files in a folder, by title; ValueError names one that is no such file."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            value = json.loads(path.read_text())
        except ValueError as error:
            raise UsageError(f"{path} is no JSON: {error}") from error
        if not isinstance(value, dict) or value.get("format") != FORMAT or "rows" not in value:
            continue  # other results live here too
        found.append(value)
    return sorted(found, key=lambda value: str(value["title"]))


def write(folder: Path, readme: Path | None = None) -> list[Path]:
    """From every machine's file in `folder`: `speed.md`, the plots, and the short table between
    README's marks. Returns the files written.

    Raises ValueError if no machine's file is there, or README lacks the marks.
    """
    machines = read_machines(folder)
    if not machines:
        raise UsageError(f"no machine's table in {folder}: run `rtseg bench --table` first")
    full = folder / "speed.md"
    write_atomically(full, full_page(machines).encode())
    written = [full]
    if readme is not None:
        write_atomically(readme, put_between_marks(readme, short_page(machines)).encode())
        written.append(readme)
    from .plots import accuracy_plot, latency_plot

    for name, draw in (("accuracy.png", accuracy_plot), ("latency.png", latency_plot)):
        picture = draw(machines)
        if picture is not None:
            write_atomically(folder / name, picture)
            written.append(folder / name)
    return written


def put_between_marks(page: Path, text: str) -> str:
    """The page with `text` between MARKS in place of what stood there."""
    content = page.read_text()
    start, end = (content.find(mark) for mark in MARKS)
    if start < 0 or end < start:
        raise UsageError(f"{page} has no lines {MARKS[0]} and {MARKS[1]} to write a table between")
    return content[: start + len(MARKS[0])] + f"\n\n{text.strip()}\n\n" + content[end:]


def short_page(machines: Iterable[Mapping[str, Any]]) -> str:
    """A line a network, the fastest of ours at each size: frames a second, end to end, batch 1, and
    times as fast as PyTorch eager in the same run."""
    parts = []
    for value in machines:
        sizes = sorted({tuple(row["size"]) for row in value["rows"]})
        head = ["network", *(f"{h}x{w}" for h, w in sizes)]
        lines = [_line(head), _line(["---", *["---:"] * len(sizes)])]
        for model in dict.fromkeys(row["model"] for row in value["rows"]):
            cells = [_short_cell(value["rows"], model, size) for size in sizes]
            lines.append(_line([f"`{model}`", *cells]))
        parts.append(f"**{_heading(value)}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _heading(value: Mapping[str, Any]) -> str:
    packages = value["machine"]["packages"]
    runners = [name for name in ("openvino", "onnxruntime", "torch") if name in packages]
    versions = ", ".join(f"{name} {packages[name]}" for name in runners)
    return f"{value['title']}: {versions}"


def _short_cell(rows: Sequence[Row], model: str, size: Sequence[int]) -> str:
    best = fastest_of_ours(rows, model, size)
    if best is None:
        return ""
    eager = next((each for each in best["against"] if each["peer"].startswith("eager")), None)
    times = f" ({figure(eager['frame_to_labels']['ratio'])}x)" if eager else ""
    return f"{figure(best['frame_to_labels']['fps'])} {best['precision']}{times}"


def fastest_of_ours(rows: Sequence[Row], model: str, size: Sequence[int]) -> Row | None:
    ours = [
        row
        for row in rows
        if row["model"] == model and tuple(row["size"]) == tuple(size) and not row["peer"]
    ]
    return min(ours, key=lambda row: row["frame_to_labels"]["p50_ms"], default=None)


def full_page(machines: Sequence[Mapping[str, Any]]) -> str:
    """Every row of every machine, with its four protocols."""
    parts = ["# Speed, machine by machine", NOTE]
    for value in machines:
        parts += [f"## {value['title']}", _facts_of(value), _full_table(value["rows"])]
        if value["absent"]:
            lines = [f"- {title}: {reason}" for title, reason in value["absent"].items()]
            parts.append("Absent:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


NOTE = """Written by `rtseg bench --table`; [benchmarking.md](../benchmarking.md) says how it is measured.
Batch 1, 19 classes, medians unless said otherwise. *paper*: random input, network alone, calls queued
one behind another, frames a second; *net*: the network alone, ms; *burst*: frame in to labels out, one
after another, ms; *camera*: the same at the camera's pace; *due p99*, *p99.9*: from when a frame was
due; *share*: of the roofline's limit, network alone; the last column is PyTorch eager's time over the
row's, with the 95 % interval."""  # noqa: E501


def _facts_of(value: Mapping[str, Any]) -> str:
    settings, here = value["settings"], value["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    busiest = max((row["others"] or 0 for row in value["rows"]), default=0)
    lines = [
        settings["machine"],
        f"{here['system']}, Python {here['python']}; {packages}",
        f"{settings['runs']} runs or {settings['seconds']:g} s a row; {value['measured']}; "
        f"other work took at most {busiest:.0%} of the processor time",
    ]
    if busiest > 0.05:
        lines.append("**The machine was busy meanwhile: these figures are not to be quoted.**")
    return "\n".join(f"- {line}" for line in lines)


def _full_table(rows: Sequence[Row]) -> str:
    header = [
        "network", "size", "run by", "paper FPS", "net", "burst p50", "burst p99", "FPS", "camera",
        "due p99", "due p99.9", "missed", "share", "x eager",
    ]  # fmt: skip
    rule = ["---"] * 3 + ["---:"] * (len(header) - 3)
    by_size = sorted(rows, key=lambda row: tuple(row["size"]))
    return "\n".join([_line(header), _line(rule), *(_line(_full_cells(row)) for row in by_size)])


def _full_cells(row: Row) -> list[str]:
    burst, camera, papers = row["frame_to_labels"], row["camera"], row["papers"]
    due = camera["from_due"] if camera else {}
    times = [
        papers["fps"] if papers else None,
        row["network"]["p50_ms"],
        burst["p50_ms"],
        burst["p99_ms"],
        burst["fps"],
        camera["service"]["p50_ms"] if camera else None,
        due.get("p99_ms"),
        due.get("p99_9_ms"),
    ]
    missed = percent(camera["miss_ratio"]) if camera else ""
    share = percent(row["roofline"]["reached"]) if row["roofline"] else ""
    size = f"{row['size'][0]}x{row['size'][1]}"
    runner = f"{row['backend']} {row['precision']}"
    return [row["model"], size, runner, *map(figure, times), missed, share, _against(row)]


def _against(row: Row) -> str:
    eager = next((each for each in row["against"] if each["peer"].startswith("eager")), None)
    if eager is None:
        return "1" if row["backend"] == "eager" else ""
    ratio = eager["frame_to_labels"]
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
