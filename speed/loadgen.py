"""MLPerf's own load generator, through the `mlcommons-loadgen` package."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingPackage, UsageError
from .timing import MS

SUMMARY = "mlperf_log_summary.txt"
FEWEST = 64  # queries, below which its early stopping calls a run invalid
PERCENTILES = ("50.00", "90.00", "99.00", "99.90")  # as the summary writes them


@dataclass(frozen=True)
class SingleStream:
    """LoadGen's verdict, "VALID" or "INVALID" (too few queries or too short a run), and figures."""

    result: str
    queries: int
    qps: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float

    @property
    def times(self) -> tuple[float, float, float, float]:
        return self.p50_ms, self.p90_ms, self.p99_ms, self.p99_9_ms


def single_stream(
    label: Callable[[int], object],
    frames: int,
    folder: Path,
    seconds: float,
    queries: int,
    expected_ms: float,
) -> SingleStream:
    """Run SingleStream for `seconds` and `queries` queries at least; its logs stay in `folder`.

    label: labels the frame of an index in 0..`frames` - 1, which lies in memory already.
    expected_ms: a guess of one query's time, which LoadGen plans with.

    Raises MissingPackage without the package, and what `label` raises.
    """
    loadgen = _package()
    folder.mkdir(parents=True, exist_ok=True)
    failed: list[Exception] = []
    issued: list[int] = []

    def issue(samples: Any) -> None:
        for sample in samples:
            issued.append(sample.index)
            try:
                if not failed:
                    label(sample.index)
            except Exception as error:  # LoadGen's thread would end the process without a word
                failed.append(error)
            answer = loadgen.QuerySampleResponse(sample.id, 0, 0)
            loadgen.QuerySamplesComplete([answer])

    system = loadgen.ConstructSUT(issue, _nothing)
    library = loadgen.ConstructQSL(frames, frames, _nothing, _nothing)
    try:
        loadgen.StartTestWithLogSettings(
            system,
            library,
            _settings(loadgen, seconds, queries, expected_ms),
            _logs(loadgen, folder),
        )
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(system)
    if failed:
        raise failed[0]
    return read_summary((folder / SUMMARY).read_text(), len(issued))


def _package() -> Any:
    try:
        return importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        raise MissingPackage(
            'the mlperf protocol needs mlcommons-loadgen: pip install "rtseg[mlperf]"'
        ) from error


def _nothing(*samples: Any) -> None:
    """Frames lie in memory before the run, and nothing is left in flight after it."""


def _settings(loadgen: Any, seconds: float, queries: int, expected_ms: float) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(seconds * 1e3))
    settings.min_query_count = max(queries, FEWEST)
    settings.single_stream_expected_latency_ns = max(1, round(expected_ms * 1e6))
    return settings


def _logs(loadgen: Any, folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs


def read_summary(text: str, queries: int) -> SingleStream:
    """The figures of LoadGen's summary file of a run of `queries`.

    Raises ValueError where one is missing.
    """
    times = [_number(text, rf"{re.escape(p)} percentile latency \(ns\)") * MS for p in PERCENTILES]
    verdict = re.search(r"Result is\s*:\s*(\w+)", text)
    if verdict is None:
        raise UsageError("LoadGen's summary has no result: see its mlperf_log_detail.txt")
    rounded = [round(ms, 4) for ms in times]
    qps = _number(text, r"QPS w/o loadgen overhead")
    return SingleStream(verdict[1], queries, round(qps, 3), *rounded)


def _number(text: str, name: str) -> float:
    found = re.search(rf"{name}\s*[:=]\s*([\d.]+)", text)
    if found is None:
        raise UsageError(f"LoadGen's summary has no {name}: see its mlperf_log_detail.txt")
    return float(found[1])
