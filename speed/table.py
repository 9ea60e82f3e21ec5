"""The speed table: every real-time network at three sizes, measured cell by cell, and its pages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..data.classes import CITYSCAPES
from ..data.files import write_atomically
from ..data.limits import read_json
from ..errors import DataError, RtsegError, UsageError
from ..reporting import Progress, Table, format_figure
from ..runtime.packages import slug, writable_cache
from ..system import SystemInfo, read_system
from ..usage import BUSY
from .bench import measure_latency, set_up, utc_now
from .config import BenchConfig
from .plots import accuracy_plot, latency_plot
from .result import Column, fastest_of_ours, tabulate

if TYPE_CHECKING:
    from .config import Measurable

Row = Mapping[str, Any]
MARKS = "<!-- speed table -->", "<!-- end of speed table -->"
FORMAT = 1  # of a machine's JSON
REAL_TIME = (  # families' members that are meant for real time
    "csfcn",
    "csfcn_tiny",
    "csfcn_nano",
    "sfnet_r18",
    "sfnet_lite_r18",
    "swiftnet_r18",
    "swiftnet_r18_pyramid",
    "bisenetv1",
    "bisenetv2",
    "pidnet_s",
    "pidnet_m",
    "pidnet_l",
    "ddrnet_23_slim",
    "ddrnet_23",
    "sfanet",
    "mgseg",
    "icnet",
    "sctnet_s",
    "sctnet_b",
    "ffnet_40s",
    "ffnet_54s",
    "ffnet_78s",
    "ffnet_86s",
    "fddwnet",
    "efficientvit_b0",
    "efficientvit_b1",
    "efficientvit_b2",
    "efficientvit_b3",
    "segformer_b0",
    "segformer_b1",
    "segformer_b2",
)
SIZES = ((512, 1024), (768, 1536), (1024, 2048))
AGREE = ("backends", "precisions", "peers", "seconds", "runs", "threads", "camera_hz", "device")
ROW = (
    "model", "size", "precision", "backend", "backend_version", "device", "threads", "weights",
    "trained", "peer", "macs", "papers", "network", "frame_to_labels", "camera", "against",
    "roofline", "gpu", "histograms",
)  # fmt: skip


def measure(
    config: BenchConfig, folder: Path, progress: Progress = lambda step, share: None
) -> Path:
    """Measure what is not measured yet, a (model, size) at a time: a stopped run resumes where it
    was.

    Args:
        config: its models, by default REAL_TIME, and sizes, by default SIZES.
        folder: where this machine's file is written. What cannot be exported or run is listed in
            it under `absent`, with the reason.
        progress: called with what is being done and the share of it that is done, 0..1.

    Returns:
        The file.
    """
    config.refuse_batch("the table")
    here = read_system()
    key = cell_key(config, here)
    # In the cache and not beside the table: cells are of this machine, the table is committed.
    cells = writable_cache("table") / slug(str(here))
    path = folder / f"{slug(short_name(here))}.json"
    pairs = [(model, size) for size in config.sizes or SIZES for model in config.models]
    rows: list[dict[str, object]] = []
    absent: dict[str, str] = {}
    for done, (model, size) in enumerate(pairs):
        title = f"{_title_of(model)} {size[0]}x{size[1]}"
        progress(f"{title}, {done + 1} of {len(pairs)}", done / len(pairs))
        try:
            cell = _cell(cells / f"{title.replace(' ', '_')}.json", key, config.only(model, size))
        except RtsegError as error:
            absent[title] = str(error).splitlines()[0][:300]
        else:
            rows += cell["rows"]
            absent |= cell["absent"]
        # After every cell: a run that is stopped keeps what it has.
        _save(path, here, key, rows, absent)
    return path


def _title_of(model: Measurable) -> str:
    return Path(str(model)).stem


def cell_key(config: BenchConfig, here: SystemInfo) -> dict[str, object]:
    """What a cell has to agree in to be taken for measured already."""
    value = {name: getattr(config, name) for name in AGREE} | {
        "calib": str(config.calib),
        "machine": str(here),
        "packages": dict(here.packages) | {"rtseg": __version__},
    }
    # Through JSON, so that it equals what a cell's file gives back: tuples are lists there.
    cleaned: dict[str, object] = json.loads(json.dumps(value))
    return cleaned


def _save(
    path: Path,
    here: SystemInfo,
    key: Mapping[str, object],
    rows: Sequence[Row],
    absent: Mapping[str, str],
) -> None:
    """The machine's file: what is measured so far, and rows of an earlier run beside it."""
    measured = {(row["model"], tuple(row["size"])) for row in rows}
    before: list[Row] = []
    with suppress(OSError, ValueError, KeyError):
        before = read_json(path)["rows"]
    value = {
        "format": FORMAT,
        "machine": asdict(here),
        "title": short_name(here),
        "measured": utc_now(),
        "settings": dict(key),
        "absent": dict(absent),
        "rows": [
            *(row for row in before if (row["model"], tuple(row["size"])) not in measured),
            *rows,
        ],
    }
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def _cell(path: Path, key: Mapping[str, object], config: BenchConfig) -> dict[str, Any]:
    """ "rows" and "absent" of one network at one size, from an earlier run that was asked the same,
    or new."""
    with suppress(OSError, ValueError, KeyError):
        kept: dict[str, object] = read_json(path)
        if kept["key"] == key:
            return kept
    # A variant by its name is measured with Cityscapes' 19 classes, so that all rows of the table
    # do the same work.
    drawn = not Path(str(config.models[0])).exists()
    classes = config.classes or (CITYSCAPES if drawn else None)
    report = measure_latency(set_up(replace(config, roofline=True, classes=classes)))
    cell = {
        "key": dict(key),
        "rows": [compact(row.facts()) for row in report.rows],
        "absent": {" ".join(each.names()): each.why.splitlines()[0] for each in report.absent},
    }
    write_atomically(path, json.dumps(cell).encode())
    return cell


def compact(row: Row) -> dict[str, object]:
    """A row of a report, without the facts that all rows of a machine share."""
    kept = {name: row[name] for name in ROW if name in row}
    return kept | {"others": (row.get("noise") or {}).get("others")}


def short_name(here: SystemInfo) -> str:
    """A machine's name for a heading: its GPU, or its processor and cores."""
    if here.gpus:
        return " + ".join(dict.fromkeys(here.gpus))
    best = [name for name in ("amx_int8", "avx512", "avx2", "i8mm", "neon")
            if name in here.instruction_sets]  # fmt: skip
    name = re.sub(r"\((R|TM)\)", "", here.cpu)
    cores = f"{here.cores} core{'s' if here.cores > 1 else ''}"
    return " ".join(f"{name}, {cores} {best[0] if best else ''}".split())


def read_machines(folder: Path) -> list[dict[str, object]]:
    """The machines' files in a folder, by title. Raises DataError for invalid JSON."""
    found = []
    for path in sorted(folder.glob("*.json")):
        value = read_json(path, DataError)
        if not isinstance(value, dict) or value.get("format") != FORMAT or "rows" not in value:
            continue  # other results live here too
        found.append(value)
    return sorted(found, key=lambda value: str(value["title"]))


@dataclass(frozen=True)
class SpeedTable:
    """The files written, and every machine's rows."""

    written: Sequence[Path]
    machines: Sequence[Mapping[str, Any]]

    def to_json(self) -> str:
        return json.dumps({"written": list(map(str, self.written))})

    def table(self) -> str:
        return "\n".join(map(str, self.written))

    def format(self, name: str) -> str:
        """The full tables as "md", "csv", "latex" or "html"."""
        tables = (full_table(value["rows"], value["title"]) for value in self.machines)
        return "\n\n".join(table.format(name) for table in tables) + "\n"


def write_pages(
    folder: Path, readme: Path | None = None, measured: Path | None = None
) -> SpeedTable:
    """From every machine's file in `folder`: `speed.md`, the plots, and the short table.

    Args:
        folder: of the machines' JSON, and of the pages.
        readme: page between whose MARKS the short table is put.
        measured: the file that this machine has just written, which is listed first.

    Raises:
        UsageError: if no machine's file is there, or the page lacks the marks.
    """
    machines = read_machines(folder)
    if not machines:
        raise UsageError(f"no machine's table in {folder}: run `rtseg bench table` first")
    pages: dict[Path, bytes | None] = {folder / "speed.md": full_page(machines).encode()}
    if readme is not None:
        pages[readme] = put_between_marks(readme, short_page(machines)).encode()
    pages[folder / "accuracy.png"] = accuracy_plot(machines)
    pages[folder / "latency.png"] = latency_plot(machines)
    drawn = {path: content for path, content in pages.items() if content is not None}
    for path, content in drawn.items():
        write_atomically(path, content)
    return SpeedTable([*([measured] if measured else []), *drawn], machines)


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
    tables = []
    for value in machines:
        sizes = sorted({tuple(row["size"]) for row in value["rows"]})
        rows = [
            [f"`{model}`", *(_short_cell(value["rows"], model, size) for size in sizes)]
            for model in dict.fromkeys(row["model"] for row in value["rows"])
        ]
        header = ["network", *(f"{height}x{width}" for height, width in sizes)]
        tables.append(Table(header, rows, _heading(value)).markdown())
    return "\n\n".join(tables)


def _heading(value: Mapping[str, Any]) -> str:
    packages = value["machine"]["packages"]
    runners = [name for name in ("openvino", "onnxruntime", "torch") if name in packages]
    versions = ", ".join(f"{name} {packages[name]}" for name in runners)
    return f"{value['title']}: {versions}"


def _short_cell(rows: Sequence[Row], model: str, size: Sequence[int]) -> str:
    best = fastest_of_ours(rows, model, size)
    if best is None:
        return ""
    eager = _eager_of(best)
    times = f" ({format_figure(eager['frame_to_labels']['ratio'])}x)" if eager else ""
    return f"{format_figure(best['frame_to_labels']['fps'])} {best['precision']}{times}"


def full_page(machines: Sequence[Mapping[str, Any]]) -> str:
    """Every row of every machine, with its four protocols."""
    parts = ["# Speed, machine by machine", NOTE]
    for value in machines:
        parts += [f"## {value['title']}", _facts_of(value), full_table(value["rows"]).markdown()]
        if value["absent"]:
            lines = [f"- {title}: {reason}" for title, reason in value["absent"].items()]
            parts.append("Absent:\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


NOTE = """Written by `rtseg bench table`; [benchmarking.md](../benchmarking.md) says how it is measured.
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
    if busiest > BUSY:
        lines.append("**The machine was busy meanwhile: these figures are not to be quoted.**")
    return "\n".join(f"- {line}" for line in lines)


COLUMNS: dict[str, Column] = {
    "paper FPS": "papers.fps",
    "net": "network.p50_ms",
    "burst p50": "frame_to_labels.p50_ms",
    "burst p99": "frame_to_labels.p99_ms",
    "FPS": "frame_to_labels.fps",
    "camera": "camera.service.p50_ms",
    "due p99": "camera.from_due.p99_ms",
    "due p99.9": "camera.from_due.p99_9_ms",
    "missed %": ("camera.miss_ratio", 100),
    "share %": ("roofline.reached", 100),
    "x eager": lambda row: (_eager_of(row) or {}).get("frame_to_labels"),
}


def full_table(rows: Sequence[Row], title: str = "") -> Table:
    """Every row with its four protocols, as NOTE explains them."""
    by_size = sorted(rows, key=lambda row: tuple(row["size"]))
    return tabulate(title, by_size, COLUMNS)


def _eager_of(row: Row) -> Mapping[str, Any] | None:
    """The row's ratios to PyTorch eager."""
    return next((each for each in row["against"] if each["peer"].startswith("eager")), None)
