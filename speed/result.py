"""Measured facts, and the ways to show them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .clock import Limits, Ratio, WarmUp
from .machine import Machine, Noise

STAGES = ("preprocess", "host_to_device", "compute", "device_to_host", "post")
FULL = ("mean", "p50", "p90", "p99", "max", "std")


@dataclass(frozen=True)
class Subject:
    """What was measured, and what ran it.

    weights: digest of the network's state; precision: that it computed in; device: "cpu" or the
    GPU's name; threads: None on a GPU; artifact: the file's name, "" for a network in PyTorch.
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

    @property
    def title(self) -> str:
        return f"{self.model} {self.size[0]}x{self.size[1]} {self.backend} {self.precision}"


@dataclass(frozen=True)
class Timing:
    """Single runs, batch 1. `fps`: frames a second one after another, from the mean."""

    runs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    std_ms: float
    fps: float

    @classmethod
    def of(cls, times: NDArray[np.float64]) -> Timing:
        """times (runs,) in ms."""
        p50, p90, p99 = np.percentile(times, [50, 90, 99])
        return cls(
            runs=len(times),
            mean_ms=round(float(times.mean()), 4),
            p50_ms=round(float(p50), 4),
            p90_ms=round(float(p90), 4),
            p99_ms=round(float(p99), 4),
            max_ms=round(float(times.max()), 4),
            std_ms=round(float(times.std()), 4),
            fps=round(1e3 / float(times.mean()), 3),
        )


@dataclass(frozen=True)
class Speedup:
    """How many times as fast as the eager row of the same run, on the same device."""

    frame_to_labels: Ratio
    network: Ratio


@dataclass(frozen=True)
class Result:
    """One row. stages: median ms by name of STAGES; host_mib, device_mib: peak memory."""

    subject: Subject
    frame_to_labels: Timing
    network: Timing
    stages: Mapping[str, float]
    host_mib: float | None
    device_mib: float | None
    warm_up: WarmUp
    against_eager: Speedup | None
    noise: Noise
    machine: Machine

    @property
    def macs_per_s(self) -> float:
        """Multiply-adds a second that the network reaches at its median time."""
        return self.subject.macs / self.network.p50_ms * 1e3

    def facts(self) -> dict[str, Any]:
        """All of it as JSON values; names as in docs/benchmarking.md."""
        subject = asdict(self.subject)
        subject["backend_version"] = subject.pop("version")
        return {
            **subject,
            "frame_to_labels": asdict(self.frame_to_labels),
            "network": asdict(self.network),
            "stages": {f"{name}_ms": round(ms, 4) for name, ms in self.stages.items()},
            "peak_memory": {"host_mib": self.host_mib, "device_mib": self.device_mib},
            "macs_per_s": round(self.macs_per_s),
            "against_eager": _rounded(self.against_eager),
            "warm_up": {
                "runs": self.warm_up.runs,
                "duration_ms": round(1e3 * self.warm_up.seconds, 1),
                "steady": self.warm_up.steady,
            },
            "noise": asdict(self.noise),
            "machine": asdict(self.machine),
        }


def _rounded(speedup: Speedup | None) -> dict[str, dict[str, float]] | None:
    if speedup is None:
        return None
    return {
        name: {
            "ratio": round(ratio["value"], 4),
            "low": round(ratio["low"], 4),
            "high": round(ratio["high"], 4),
        }
        for name, ratio in asdict(speedup).items()
    }


@dataclass(frozen=True)
class Report:
    """What one `bench` measured. started: UTC, ISO 8601; warnings: lines for the user."""

    rows: Sequence[Result]
    machine: Machine
    limits: Limits
    started: str
    warnings: Sequence[str]

    def to_json(self) -> str:
        """One JSON value; times end in `_ms`, sizes are [height, width]."""
        value = {
            "protocol": "latency",
            "started": self.started,
            "limits": asdict(self.limits),
            "machine": asdict(self.machine),
            "warnings": list(self.warnings),
            "rows": [row.facts() for row in self.rows],
        }
        return json.dumps(value, indent=2)

    def to_markdown(self) -> str:
        """The tables as Markdown, machine and versions below them."""
        parts = [_markdown(*table) for table in (self._latency(), self._parts())]
        notes = [f"- {line}" for line in (*self._notes(), *self.warnings)]
        return "\n\n".join([*parts, "\n".join(notes)]) + "\n"

    def table(self) -> RenderableType:
        """The tables for a terminal."""
        notes = [Text(line, style="dim") for line in self._notes()]
        warnings = [Text(line, style="yellow") for line in self.warnings]
        return Group(_rich(*self._latency()), _rich(*self._parts()), *notes, *warnings)

    def _latency(self) -> tuple[str, list[str], list[list[str]]]:
        """(title, header, rows)."""
        header = ["model", "size", "run by", *(f"{n} ms" for n in FULL), "FPS", "x eager", "95 %"]
        rows = []
        for row in self.rows:
            times = asdict(row.frame_to_labels)
            figures = [_figure(times[f"{name}_ms"]) for name in FULL]
            fps = _figure(row.frame_to_labels.fps)
            rows.append([*_names(row), *figures, fps, *_against_eager(row)])
        return "Frame in to labels out in ms, batch 1, host memory to host memory", header, rows

    def _parts(self) -> tuple[str, list[str], list[list[str]]]:
        """(title, header, rows)."""
        stages = ("prepare", "up", "compute", "down", "post")
        header = ["model", "size", "run by", *stages, "net p50", "net p99"]
        header += ["GMAC/s", "MiB"]
        rows = []
        for row in self.rows:
            split = [_figure(row.stages[name]) for name in STAGES]
            network = [_figure(row.network.p50_ms), _figure(row.network.p99_ms)]
            rates = [f"{row.macs_per_s / 1e9:.0f}", _memory(row)]
            rows.append([*_names(row), *split, *network, *rates])
        title = "Where the time goes, medians in ms; net: compute alone; MiB: peak memory"
        return title, header, rows

    def _notes(self) -> list[str]:
        packages = ", ".join(f"{name} {v}" for name, v in self.machine.packages.items())
        subjects = [row.subject for row in self.rows]
        digests = dict.fromkeys(
            f"{s.model} {s.weights[:12]} ({'trained' if s.trained else 'random'})" for s in subjects
        )
        threads = dict.fromkeys(str(s.threads) for s in subjects if s.threads)
        return [
            str(self.machine),
            f"{self.machine.system}, Python {self.machine.python}; {packages}",
            f"threads {', '.join(threads) or 'not set'}; weights {', '.join(digests)}; "
            f"{self.limits.runs} runs or {self.limits.seconds:g} s a row, in turns; {self.started}",
        ]


def _names(row: Result) -> list[str]:
    """What a table row is about, in three cells."""
    subject = row.subject
    device = "" if subject.device == "cpu" else f", {subject.device}"
    height, width = subject.size
    return [
        subject.model,
        f"{height}x{width}",
        f"{subject.backend} {subject.precision}{device}",
    ]


def _against_eager(row: Result) -> list[str]:
    if row.against_eager is None:
        return ["1" if row.subject.backend == "eager" else "", ""]
    ratio = row.against_eager.frame_to_labels
    return [_times(ratio), f"{ratio.low:.2f}-{ratio.high:.2f}"]


def _times(ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f}" if ratio else ""


def _memory(row: Result) -> str:
    host = "?" if row.host_mib is None else f"{row.host_mib:.0f}"
    return host if not row.device_mib else f"{host} + {row.device_mib:.0f} GPU"


def _figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _rich(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """For 80 columns: the three cells of a row's name share one, and units go without saying."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold", min_width=14)
    for name in header[3:]:
        table.add_column(name.removesuffix(" ms"), justify="right")
    for name, size, runner, *figures in rows:
        table.add_row(f"{name} {size} {runner}", *figures)
    return table


def _markdown(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---" if i < 3 else "---:" for i in range(len(header))]
    lines = [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]
    return "\n".join([f"**{title}**", "", *lines])
