"""What one latency run found, as tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import RenderableType

from ..system import SystemInfo
from .result import STAGES, Result
from .roofline import Ceilings
from .sheet import Figures, figure, page, percent
from .timing import Limits, Ratio

FULL = ("mean", "p50", "p90", "p99", "max", "std")


@dataclass(frozen=True)
class Report:
    """started: UTC, ISO 8601; warnings: lines for the user; ceilings: None if they were not asked
    for; settings: further facts of how it was measured."""

    rows: Sequence[Result]
    machine: SystemInfo
    limits: Limits
    started: str
    warnings: Sequence[str]
    ceilings: Ceilings | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON value; times end in `_ms`, sizes are [height, width]."""
        value = {
            "protocol": "latency",
            "started": self.started,
            "limits": asdict(self.limits),
            "settings": dict(self.settings),
            "machine": asdict(self.machine),
            "ceilings": asdict(self.ceilings) if self.ceilings else None,
            "warnings": list(self.warnings),
            "rows": [row.facts() for row in self.rows],
        }
        return json.dumps(value, indent=2)

    def to_markdown(self) -> str:
        """The tables as Markdown, machine and versions below them."""
        parts = [table.markdown() for table in self.tables()]
        notes = [f"- {line}" for line in (*self._notes(), *self.warnings)]
        return "\n\n".join([*parts, "\n".join(notes)]) + "\n"

    def table(self) -> RenderableType:
        """The tables for a terminal."""
        return page(self.tables(), self._notes(), self.warnings)

    def tables(self) -> list[Figures]:
        tables = [self._latency(), self._protocols(), self._parts()]
        if any(set(row.against) - {"eager fp32"} for row in self.rows):
            tables.append(self._peers())
        if self.ceilings:
            tables.append(self._roofline())
        return tables

    def _latency(self) -> Figures:
        rows = []
        for row in self.rows:
            times = asdict(row.frame_to_labels)
            figures = [figure(times[f"{name}_ms"]) for name in FULL]
            fps = figure(row.frame_to_labels.fps)
            rows.append([*row.subject.names(), *figures, fps, *_against_eager(row)])
        title = "Frame in to labels out in ms, batch 1, host memory to host memory"
        return Figures(title, [*(f"{n} ms" for n in FULL), "FPS", "x eager", "95 %"], rows)

    def _protocols(self) -> Figures:
        header = ["paper", "net", "burst", "camera", "due p50", "due p99", "due p99.9", "missed"]
        rows = []
        for row in self.rows:
            camera = row.camera
            due = camera.from_due if camera else None
            times = [
                row.papers.p50_ms if row.papers else None,
                row.network.p50_ms,
                row.frame_to_labels.p50_ms,
                camera.service.p50_ms if camera else None,
                *((due.p50_ms, due.p99_ms, due.p99_9_ms) if due else (None,) * 3),
            ]
            missed = percent(camera.miss_ratio if camera else None)
            rows.append([*row.subject.names(), *map(figure, times), missed])
        rates = {row.camera.rate_hz for row in self.rows if row.camera}
        at = f" at {min(rates):g} Hz" if rates else ""
        title = (
            "Four protocols, medians in ms: the papers' (random input, network only, queued), the "
            f"network, frames in a burst, frames from a camera{at}; due: from when a frame was due"
        )
        return Figures(title, [*(f"{name} ms" for name in header[:-1]), header[-1]], rows)

    def _parts(self) -> Figures:
        header = ["prepare", "up", "compute", "down", "post", "net p50", "net p99"]
        header += ["GMAC/s", "MiB"]
        rows = []
        for row in self.rows:
            split = [figure(row.stages[name]) for name in STAGES]
            network = [figure(row.network.p50_ms), figure(row.network.p99_ms)]
            rates = [f"{row.macs_per_s / 1e9:.0f}", _memory(row)]
            rows.append([*row.subject.names(), *split, *network, *rates])
        title = "Where the time goes, medians in ms; net: compute alone; MiB: peak memory"
        return Figures(title, header, rows)

    def _peers(self) -> Figures:
        peers = list(dict.fromkeys(peer for row in self.rows for peer in row.against))
        rows = [
            [*row.subject.names(), *(_with_interval(row, peer) for peer in peers)]
            for row in self.rows
            if row.against
        ]
        title = "Times as fast as each peer, frame in to labels out, with the 95 % interval"
        return Figures(title, peers, rows)

    def _roofline(self) -> Figures:
        header = ["GMAC", "MiB", "limit ms", "net ms", "share", "layers ms", "share of layers"]
        rows = []
        for row in self.rows:
            share = row.share
            if share is None:
                continue
            cells = [
                figure(share.macs / 1e9),
                figure(share.minimal_bytes / 2**20),
                figure(share.limit_ms),
                figure(row.network.p50_ms),
                percent(share.reached),
                figure(share.layers_ms),
                percent(share.layers_reached),
            ]
            rows.append([*row.subject.names(), *cells])
        title = "Roofline: the least time that this machine's own ceilings allow the network"
        return Figures(title, header, rows)

    def _notes(self) -> list[str]:
        subjects = [row.subject for row in self.rows]
        digests = dict.fromkeys(
            f"{s.model} {s.weights[:12]} ({'trained' if s.trained else 'random'})" for s in subjects
        )
        threads = dict.fromkeys(str(s.threads) for s in subjects if s.threads)
        gpu = dict.fromkeys(str(row.gpu) for row in self.rows if row.gpu)
        return [
            *self.machine.lines(),
            *([str(self.ceilings)] if self.ceilings else []),
            *gpu,
            f"threads {', '.join(threads) or 'not set'}; weights {', '.join(digests)}; "
            f"{self.limits.runs} runs or {self.limits.seconds:g} s a row, in turns; {self.started}",
        ]


def _against_eager(row: Result) -> list[str]:
    if row.against_eager is None:
        return ["1" if row.subject.backend == "eager" else "", ""]
    ratio = row.against_eager.frame_to_labels
    return [f"{ratio.value:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}"]


def _with_interval(row: Result, peer: str) -> str:
    if peer not in row.against:
        return ""
    ratio: Ratio = row.against[peer].frame_to_labels
    return f"{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _memory(row: Result) -> str:
    host = "?" if row.host_mib is None else f"{row.host_mib:.0f}"
    return host if not row.device_mib else f"{host} + {row.device_mib:.0f} GPU"
