"""Protocols beside latency: a camera's fixed rate, pipelined throughput, MLPerf's SingleStream."""

from __future__ import annotations

import importlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, MissingPackage, UsageError
from ..usage import NoiseWatch
from .bench import Setup
from .camera_rate import RATES_HZ, Pace
from .contestant import ArtifactContestant, Contestant, Frame
from .plan import Contest, Entry
from .result import Column, Report, Subject, tabulate
from .timing import MS, Now, Timing, warm_up

STREAMS = (1, 2)
SUMMARY = "mlperf_log_summary.txt"
FEWEST = 64  # queries, below which its early stopping calls a run invalid
PERCENTILES = ("50.00", "90.00", "99.00", "99.90")  # as the summary writes them


def fixed_rate(setup: Setup, rates: Sequence[float] | None = None) -> Report:
    """Every row at every rate, by default RATES_HZ, each in two halves in reversed order."""
    facts: list[dict[str, object]] = []
    host, config = setup.host, setup.host.config
    for contest in setup.single_frame_contests:
        with host.open_all(contest) as opened:
            for rate in rates or RATES_HZ:
                shots = host.play_all(opened, rate, contest.title)
                for each, taken in zip(opened, shots, strict=True):
                    pace = Pace.of(taken, rate, config.deadline_ms)
                    facts.append({**each.contestant.subject.facts(), **asdict(pace)})
    columns: dict[str, Column] = {
        "Hz": lambda fact: f"{fact['rate_hz']:g}",
        "p50": "from_due.p50_ms",
        "p99": "from_due.p99_ms",
        "p99.9": "from_due.p99_9_ms",
        "max": "from_due.max_ms",
        "missed %": ("miss_ratio", 100),
        "dropped %": lambda fact: 100 * fact["dropped"] / fact["frames"],
        "call p50": "service.p50_ms",
    }
    title = "At a camera's pace, ms from when a frame was due until labels as new as it lay ready"
    settings = {
        "rates_hz": list(rates or RATES_HZ),
        "seconds": config.seconds,
        "deadline_ms": config.deadline_ms,
        "stall_ms": config.stall_ms,
    }
    deadline = "one period of the camera"
    if config.deadline_ms is not None:
        deadline = f"{config.deadline_ms:g} ms"
    notes = [f"a frame is missed after {deadline}"]
    return setup.report("fixed-rate", [tabulate(title, facts, columns)], facts, settings, notes)


@dataclass(frozen=True)
class Flow:
    """Frames through `streams` copies of a contestant at once. latency: of a frame in its stream,
    queueing apart; fps: of all streams together; in_flight: frames of one stream on their way at
    once."""

    streams: int
    threads: int | None
    frames: int
    seconds: float
    fps: float
    latency: Timing
    in_flight: int = 1


def measure_pipelined(
    contestants: Sequence[Contestant], seconds: float, now: Now = time.perf_counter_ns
) -> Flow:
    """A thread a contestant, each with its own buffers, so that one frame is captured or uploaded
    while another is computed and a third downloaded. Ends after `seconds` and a frame each.

    Raises what a contestant raises.
    """
    times: list[list[float]] = [[] for _ in contestants]
    failed: list[BaseException] = []
    together = threading.Barrier(len(contestants))
    ended: list[int] = []

    def stream(contestant: Contestant, taken: list[float]) -> None:
        try:
            together.wait()
            end = now() + round(seconds * 1e9)
            while not taken or now() < end:
                began = now()
                contestant.frame_to_labels()
                taken.append((now() - began) * MS)
            ended.append(now())
        except BaseException as error:
            failed.append(error)

    workers = [
        threading.Thread(target=stream, args=pair) for pair in zip(contestants, times, strict=True)
    ]
    start = now()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failed:
        raise failed[0]
    taken = np.concatenate([np.asarray(each) for each in times])
    # Until the last stream ended: the frame in flight at the limit is counted, so is its time.
    took = max((max(ended) - start) / 1e9, 1e-9)
    threads = contestants[0].subject.threads
    return Flow(
        len(contestants), threads, len(taken), round(took, 3), round(len(taken) / took, 3),
        Timing.of(taken),
    )  # fmt: skip


def measure_overlapped(
    contestant: ArtifactContestant, seconds: float, now: Now = time.perf_counter_ns
) -> Flow:
    """One stream with several frames in flight: the next is copied while one is computed."""
    segmenter, frames, times = contestant.segmenter, contestant.frames, list[float]()
    in_flight = segmenter.prepare_stream()
    begun: deque[int] = deque()
    start = now()
    end = start + round(seconds * 1e9)

    def taken() -> Iterator[Frame]:
        while not times or now() < end:
            begun.append(now())
            yield next(frames)

    for _ in segmenter.stream(taken()):
        times.append((now() - begun.popleft()) * MS)
    took = max((now() - start) / 1e9, 1e-9)
    fps, threads = round(len(times) / took, 3), contestant.subject.threads
    latency = Timing.of(np.asarray(times))
    return Flow(1, threads, len(times), round(took, 3), fps, latency, in_flight)


def throughput(setup: Setup, streams: Sequence[int] = STREAMS) -> Report:
    """Every row with each number of streams, which share the CPU's threads; peers have one. Where a
    backend can have two frames in flight, one stream with them too."""
    facts: list[dict[str, object]] = []
    alone: dict[str, float] = {}
    host = setup.host

    def add(copies: Sequence[Contestant]) -> None:
        subject = copies[0].subject
        host.progress(f"{subject.title}: {len(copies)} at once", 0.0)
        keep(subject, measure_pipelined(copies, host.config.seconds))

    def keep(subject: Subject, flow: Flow) -> None:
        # The first number of streams is one.
        gain = flow.fps / alone.setdefault(subject.title, flow.fps)
        facts.append({**subject.facts(), **asdict(flow), "gain": round(gain, 4)})

    for contest in setup.single_frame_contests:
        with host.open_all(contest) as opened:
            for each in opened:
                one = each.contestant
                add([one])
                if isinstance(one, ArtifactContestant) and one.segmenter.prepare_stream() > 1:
                    host.progress(f"{one.subject.title}: frames in flight", 0.0)
                    keep(one.subject, measure_overlapped(one, host.config.seconds))
        watch = NoiseWatch()
        for count in (count for count in streams if count > 1):
            for entry in contest.entries:
                with ExitStack() as stack:
                    try:
                        copies = _copies(setup, contest, entry, count, stack)
                    except (ArtifactError, MissingPackage) as error:
                        host.note_absent(contest, f"{entry.runner}, {count} streams", str(error))
                        continue
                    add(copies)
        host.noises.append(watch.noise())
    columns: dict[str, Column] = {
        "streams": "streams",
        "in flight": "in_flight",
        "threads each": "threads",
        "FPS": "fps",
        "x one stream": "gain",
        "p50 ms": "latency.p50_ms",
        "p99 ms": "latency.p99_ms",
    }
    title = "Throughput: frames a second with several streams at once, and a frame's own latency"
    settings = {"streams": list(streams), "seconds": host.config.seconds}
    return setup.report("throughput", [tabulate(title, facts, columns)], facts, settings)


def _copies(
    setup: Setup, contest: Contest, entry: Entry, count: int, stack: ExitStack
) -> list[Contestant]:
    host, copies = setup.host, []
    for _ in range(count):
        # Shared out: streams with all threads each would wait for each other's cores.
        threads = max(1, host.threads // count)
        contestant = entry.open(host.frames_of(contest), threads, host.config.device)
        stack.callback(contestant.close)
        warm_up(contestant.frame_to_labels, patience_s=2)
        copies.append(contestant)
    return copies


def mlperf(setup: Setup, folder: Path) -> Report:
    """MLPerf LoadGen's SingleStream for every row; its logs are kept in a folder a row.

    Raises MissingPackage without `mlcommons-loadgen`.
    """
    facts: list[dict[str, object]] = []
    host, config = setup.host, setup.host.config
    for contest in setup.single_frame_contests:
        with host.open_all(contest) as opened:
            frames = host.frames_of(contest)
            for each in opened:
                subject, label = each.contestant.subject, each.contestant.label
                host.progress(f"{subject.title}: LoadGen", 0.0)
                logs = folder / subject.title.replace(" ", "_")
                found = single_stream(
                    lambda index, label=label, frames=frames: label(frames[index]),  # type: ignore[misc]
                    len(frames),
                    logs,
                    config.seconds,
                    config.runs,
                    each.warm_up.last_ms,
                )
                facts.append({**subject.facts(), **asdict(found), "logs": str(logs)})
    names = ("result", "queries", "p50_ms", "p90_ms", "p99_ms", "p99_9_ms")
    columns: dict[str, Column] = {name.replace("_ms", " ms"): name for name in names}
    title = "MLPerf LoadGen, SingleStream: one query after another"
    settings = {"seconds": config.seconds, "queries": config.runs}
    notes = [f"LoadGen's own logs: {folder}; a submission needs --seconds 600"]
    return setup.report("mlperf", [tabulate(title, facts, columns)], facts, settings, notes)


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


def single_stream(
    label: Callable[[int], object],
    frames: int,
    folder: Path,
    seconds: float,
    queries: int,
    expected_ms: float,
) -> SingleStream:
    """Run SingleStream for `seconds` and `queries` queries at least; its logs stay in `folder`.

    label: labels the frame of an index in 0..`frames` - 1, which is in memory already.
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
            except Exception as error:  # LoadGen's thread would end the process silently
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


def _nothing(*samples: object) -> None:
    """Frames lie in memory before the run, and nothing is left in flight after it."""


def _settings(loadgen: Any, seconds: float, queries: int, expected_ms: float) -> object:
    settings = loadgen.TestSettings()
    settings.scenario = loadgen.TestScenario.SingleStream
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(seconds * 1e3))
    settings.min_query_count = max(queries, FEWEST)
    settings.single_stream_expected_latency_ns = max(1, round(expected_ms * 1e6))
    return settings


def _logs(loadgen: Any, folder: Path) -> object:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = loadgen.LogSettings()
    logs.log_output = output
    # A trace of every query is written during the run.
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
