"""Measured facts of each row, and the report of a run as tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from ..gpu import GpuState
from ..reporting import Table, format_figure, join
from ..system import SystemInfo
from ..usage import Noise
from .camera_rate import Pace
from .roofline import Share
from .timing import Histogram, Ratio, Timing, WarmUp

if TYPE_CHECKING:
    from rich.console import RenderableType

STAGES = ("preprocess", "host_to_device", "compute", "device_to_host", "post")
NAMES = ("model", "size", "run by")  # the columns that name a row


@dataclass(frozen=True)
class Subject:
    """A network, and what ran it.

    weights: digest of the network's state; precision: that it computed in; device: "cpu" or the
    GPU's name; threads: None on a GPU; artifact: the file's name, "" for what was not exported by
    rtseg; peer: whether it is there to be compared with; batch: frames that a call takes.
    """

    model: str
    weights: str
    trained: bool
    size: tuple[int, int]
    precision: str
    backend: str
    version: str
    device: str
    threads: int | None
    options: Mapping[str, str]
    macs: int
    artifact: str
    peer: bool = False
    batch: int = 1

    @property
    def title(self) -> str:
        return f"{self.model} {name_size(self.size, self.batch)} {self.runner}"

    @property
    def runner(self) -> str:
        """What ran it, and in which precision."""
        return f"{self.backend} {self.precision}"

    def facts(self) -> dict[str, object]:
        """JSON values; names as in docs/benchmarking.md."""
        value = asdict(self)
        value["backend_version"] = value.pop("version")
        return value


def name_size(size: Sequence[int], batch: int) -> str:
    """(height, width) as "512x1024", of a batch of 4 as "512x1024 b4"."""
    return f"{size[0]}x{size[1]}" + (f" b{batch}" if batch > 1 else "")


@dataclass(frozen=True)
class Absent:
    """A row that was wanted and could not be measured, and why."""

    model: str
    size: tuple[int, int]
    runner: str
    why: str
    batch: int = 1

    def names(self) -> list[str]:
        return [self.model, name_size(self.size, self.batch), self.runner]


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as a peer of the same run, on the same kind of device."""

    frame_to_labels: Ratio
    network: Ratio

    def facts(self) -> dict[str, dict[str, float]]:
        return {
            name: {
                "ratio": round(ratio["value"], 4),
                "low": round(ratio["low"], 4),
                "high": round(ratio["high"], 4),
            }
            for name, ratio in asdict(self).items()
        }


@dataclass(frozen=True)
class BenchResult:
    """One row.

    papers: from random pixels on the device to labels on it, calls queued one behind another, ms
    each; camera: at
    a camera's pace, None if that was not asked for; stages: median ms by name of STAGES; host_mib,
    device_mib: peak memory; against: by the peer's runner, such as "eager fp32"; gpu: its state
    under this load; share: of the machine's limit, None if that was not asked for; device_ms: of
    the network by the GPU's own clock, the median, None where that is not told; histograms: of
    frame to labels, "burst" and "camera".
    """

    subject: Subject
    frame_to_labels: Timing
    network: Timing
    stages: Mapping[str, float]
    host_mib: float | None
    device_mib: float | None
    warm_up: WarmUp
    against: Mapping[str, Speedup]
    noise: Noise
    machine: SystemInfo
    papers: Timing | None = None
    camera: Pace | None = None
    gpu: GpuState | None = None
    share: Share | None = None
    device_ms: float | None = None
    histograms: Mapping[str, Histogram] = field(default_factory=dict)

    @property
    def macs_per_s(self) -> float:
        """Multiply-adds a second that the network reaches at its median time."""
        # The median: macs are constant, and a slow run says nothing about the arithmetic.
        return self.subject.macs * self.subject.batch / self.network.p50_ms * 1e3

    @property
    def against_eager(self) -> Speedup | None:
        found = (ratio for peer, ratio in self.against.items() if peer.startswith("eager "))
        return next(found, None)

    def facts(self) -> dict[str, object]:
        """All of it as JSON values; names as in docs/benchmarking.md."""
        plain = (
            "frame_to_labels",
            "network",
            "device_ms",
            "papers",
            "camera",
            "noise",
            "gpu",
            "machine",
        )
        eager, everything = self.against_eager, asdict(self)
        return {
            **self.subject.facts(),
            "ms_a_batch": self.frame_to_labels.p50_ms,
            "ms_a_frame": round(self.frame_to_labels.p50_ms / self.subject.batch, 4),
            **{name: everything[name] for name in plain},
            "stages": {f"{name}_ms": round(ms, 4) for name, ms in self.stages.items()},
            "peak_memory": {"host_mib": self.host_mib, "device_mib": self.device_mib},
            "macs_per_s": round(self.macs_per_s),
            "against_eager": eager.facts() if eager else None,
            "against": [{"peer": peer, **ratio.facts()} for peer, ratio in self.against.items()],
            "roofline": everything["share"],
            "warm_up": {
                "runs": self.warm_up.runs,
                "duration_ms": round(1e3 * self.warm_up.seconds, 1),
                "steady": self.warm_up.steady,
            },
            "histograms": everything["histograms"],
        }

    def doubts(self, threads: int) -> list[str]:
        """What makes the figures less sure, a line each.

        Args:
            threads: that were asked for.
        """
        lines = []
        if not self.warm_up.steady:
            settled = f"did not settle in {self.warm_up.seconds:.0f} s of warm-up"
            lines.append(f"{self.subject.title} {settled}")
        if self.subject.peer and (self.subject.threads or threads) < threads:
            fewer = f"was faster on {self.subject.threads} thread and so measured on it"
            lines.append(f"{self.subject.title} {fewer}")
        held = self.gpu.warning(self.subject.title) if self.gpu else None
        return [*lines, *([held] if held else [])]


@dataclass(frozen=True)
class Report:
    """One run of one protocol.

    tables: the same rows in each, named by NAMES; facts: JSON values by row; started: UTC, ISO
    8601; settings: what was asked for; absent: rows that could not be measured; warnings and notes:
    lines for the user; answer: the line that sums it up, "" where there is none; rows: the
    results of the latency protocol.
    """

    protocol: str
    tables: Sequence[Table]
    facts: Sequence[Mapping[str, object]]
    machine: SystemInfo
    started: str
    settings: Mapping[str, object]
    absent: Sequence[Absent] = ()
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    answer: str = ""
    rows: Sequence[BenchResult] = ()

    def to_json(self) -> str:
        """One JSON value; times end in `_ms`, sizes are [height, width]."""
        value = {
            "protocol": self.protocol,
            "started": self.started,
            "settings": dict(self.settings),
            "machine": asdict(self.machine),
            "warnings": list(self.warnings),
            "absent": [asdict(each) for each in self.absent],
            "rows": [dict(row) for row in self.facts],
        }
        return json.dumps(value, indent=2)

    def to_markdown(self) -> str:
        """The tables as Markdown, machine and versions below them."""
        answer = [self.answer] if self.answer else []
        lines = [f"- {line}" for line in (*answer, *self._lines(), *self.warnings)]
        tables = [table.markdown() for table in self._tables()]
        return "\n\n".join([*tables, "\n".join(lines)]) + "\n"

    def format(self, name: str) -> str:
        """The figures as text for a paper or a spreadsheet.

        Args:
            name: "md", "latex", "html": each table; "csv": all columns in one.

        Raises:
            UsageError: if no format is called that.
        """
        if name == "md":
            return self.to_markdown()
        if name == "csv" and self.tables:
            return join(self._tables()).csv()
        return "\n\n".join(table.format(name) for table in self._tables()) + "\n"

    def table(self) -> RenderableType:
        """The tables for a terminal."""
        from rich.console import Group
        from rich.text import Text

        return Group(
            *self._tables(),
            *([Text(self.answer, style="bold")] if self.answer else []),
            *(Text(line, style="dim") for line in self._lines()),
            *(Text(line, style="yellow") for line in self.warnings),
        )

    def _tables(self) -> list[Table]:
        """With a table of absent rows, so that none is missing silently."""
        if not self.absent:
            return list(self.tables)
        rows = [[*each.names(), each.why] for each in self.absent]
        why = Table([*NAMES, "why"], rows, "Not measured", len(NAMES), words=["why"])
        return [*self.tables, why]

    def _lines(self) -> list[str]:
        return [*self.notes, *self.machine.lines()]


# A column: where its figure stands in a row's JSON, that and a factor, or what reads it.
Column = str | tuple[str, float] | Callable[[Mapping[str, Any]], Any]
FULL = ("mean", "p50", "p90", "p99", "max", "std")
LATENCY: dict[str, Column] = {
    # Of artifacts that take several frames at once, whose other times are of a whole batch.
    "ms a batch": lambda fact: fact["ms_a_batch"] if fact["batch"] > 1 else None,
    "ms a frame": lambda fact: fact["ms_a_frame"] if fact["batch"] > 1 else None,
    **{name: f"frame_to_labels.{name}_ms" for name in FULL},
    "FPS": "frame_to_labels.fps",
    "x eager": "against_eager.frame_to_labels",
}
PROTOCOLS: dict[str, Column] = {
    "paper": "papers.p50_ms",
    "net": "network.p50_ms",
    "burst": "frame_to_labels.p50_ms",
    "camera": "camera.service.p50_ms",
    "due p50": "camera.from_due.p50_ms",
    "due p99": "camera.from_due.p99_ms",
    "due p99.9": "camera.from_due.p99_9_ms",
    "missed %": ("camera.miss_ratio", 100),
}
PARTS: dict[str, Column] = {
    "prepare": "stages.preprocess_ms",
    "up": "stages.host_to_device_ms",
    "compute": "stages.compute_ms",
    "down": "stages.device_to_host_ms",
    "post": "stages.post_ms",
    "net p50": "network.p50_ms",
    "net p99": "network.p99_ms",
    "GMAC/s": ("macs_per_s", 1e-9),
    "MiB": "peak_memory.host_mib",
    "GPU MiB": "peak_memory.device_mib",
}
ROOFLINE: dict[str, Column] = {
    "GMAC": ("roofline.macs", 1e-9),
    "MiB": ("roofline.minimal_bytes", 2**-20),
    "ceiling": "roofline.ceiling",
    "limit ms": "roofline.limit_ms",
    "net ms": "network.p50_ms",
    "share %": ("roofline.reached", 100),
    "layers ms": "roofline.layers_ms",
    "of layers %": ("roofline.layers_reached", 100),
}


def latency_tables(facts: Sequence[Mapping[str, Any]], rate_hz: float | None) -> list[Table]:
    """The tables of the latency protocol; those on peers and the roofline where they were asked
    for.

    Args:
        facts: `BenchResult.facts` of each row.
        rate_hz: of the camera, None for none.
    """
    camera = f", frames from a camera at {rate_hz or 0:g} Hz; due: from when a frame was due"
    batches = " and ".join(map(str, sorted({fact["batch"] for fact in facts}))) or "1"
    tables = [
        tabulate(
            f"Frame in to labels out, batch {batches}, host memory to host memory, ms",
            facts,
            LATENCY,
        ),
        tabulate(
            "Protocols, medians in ms: the papers' (random pixels to labels, queued), the "
            f"network, frames in a burst{camera if rate_hz else ''}",
            facts,
            PROTOCOLS,
        ),
        tabulate("Where the time goes, medians in ms; net: compute alone; MiB: peak", facts, PARTS),
    ]
    peers = dict.fromkeys(each["peer"] for fact in facts for each in fact["against"])
    if any(not peer.startswith("eager ") for peer in peers):
        title = "Times as fast as each peer, frame in to labels out, with the 95 % interval"
        ours = [fact for fact in facts if fact["against"]]
        tables.append(tabulate(title, ours, {peer: partial(_against, peer=peer) for peer in peers}))
    if any(fact["roofline"] for fact in facts):
        title = "Roofline: the least time that this machine's own ceilings allow the network"
        tables.append(tabulate(title, [fact for fact in facts if fact["roofline"]], ROOFLINE))
    return tables


def _against(fact: Mapping[str, Any], peer: str) -> object:
    return next((a["frame_to_labels"] for a in fact["against"] if a["peer"] == peer), None)


def tabulate(
    title: str, facts: Sequence[Mapping[str, object]], columns: Mapping[str, Column]
) -> Table:
    """A table whose rows begin with what was measured; a column without any figure is left out."""
    rows = [[_cell(fact, column) for column in columns.values()] for fact in facts]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    header = [*NAMES, *(list(columns)[i] for i in kept)]
    cells = [
        [*_names(fact), *(row[i] for i in kept)] for fact, row in zip(facts, rows, strict=True)
    ]
    return Table(header, cells, title, len(NAMES))


def _names(fact: Mapping[str, Any]) -> list[str]:
    """A table row's first cells, in the order of NAMES."""
    device = "" if fact["device"] == "cpu" else f", {fact['device']}"
    runner = f"{fact['backend']} {fact['precision']}{device}"
    return [fact["model"], name_size(fact["size"], fact.get("batch", 1)), runner]


def _cell(fact: Mapping[str, object], column: Column) -> str:
    """A figure with three digits that count; "" where there is none."""
    if callable(column):
        value = column(fact)
    else:
        path, factor = (column, None) if isinstance(column, str) else column
        value = fact
        for name in path.split("."):
            value = None if value is None else value.get(name)
        if factor is not None and value is not None:
            value = float(value * factor)
    if isinstance(value, Mapping):  # a ratio
        return f"{value['ratio']:.2f} ({value['low']:.2f}-{value['high']:.2f})"
    return format_figure(value) if isinstance(value, float) else "" if value is None else str(value)


def fastest_of_ours(
    rows: Sequence[Mapping[str, Any]], model: str, size: Sequence[int]
) -> Mapping[str, Any] | None:
    """The row of a model at a size (height, width) with the lowest median, peers left out."""
    ours = [
        row
        for row in rows
        if row["model"] == model and tuple(row["size"]) == tuple(size) and not row["peer"]
    ]
    return min(ours, key=lambda row: row["frame_to_labels"]["p50_ms"], default=None)
