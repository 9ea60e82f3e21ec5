"""Protocols beside latency: a camera's fixed rate, pipelined throughput, MLPerf's SingleStream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError, MissingPackage
from ..system import NoiseWatch
from .camera_rate import RATES_HZ, Pace, Shot, play
from .contestant import Contestant
from .host import Opened
from .loadgen import single_stream
from .plan import Contest, Entry
from .preparation import Setup
from .sheet import Figures, Sheet, figure, percent
from .timing import MS, Now, Timing, warm_up

NAMES = ("latency", "fixed-rate", "throughput", "mlperf")
STREAMS = (1, 2)


def fixed_rate(setup: Setup, rates: Sequence[float] = RATES_HZ) -> Sheet:
    """Every row at every rate, each in two halves in reversed order, `limits.seconds` in all."""
    facts: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for contest in setup.contests:
        with setup.opened(contest) as opened:
            for rate in rates:
                for each, pace in zip(opened, _paces(setup, opened, rate), strict=True):
                    subject = each.contestant.subject
                    facts.append({**subject.facts(), **asdict(pace)})
                    rows.append([*subject.names(), *_pace_cells(pace)])
    header = ["Hz", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "missed", "dropped", "call p50 ms"]
    title = "At a camera's pace, ms from when a frame was due until labels as new as it lay ready"
    host = setup.host
    settings = {
        "rates_hz": list(rates),
        "seconds": host.limits.seconds,
        "deadline_ms": host.deadline_ms,
        "stall_ms": host.stall_ms,
    }
    notes = ["a frame is missed after " + _deadline(host.deadline_ms)]
    return setup.sheet("fixed-rate", [Figures(title, header, rows)], facts, settings, notes)


def _deadline(deadline_ms: float | None) -> str:
    return "one period of the camera" if deadline_ms is None else f"{deadline_ms:g} ms"


def _paces(setup: Setup, opened: Sequence[Opened], rate: float) -> list[Pace]:
    host = setup.host
    count = max(2, round(rate * host.limits.seconds / 2))
    shots: dict[int, list[Shot]] = {id(each): [] for each in opened}
    for each in [*opened, *reversed(opened)]:
        host.progress(f"{each.contestant.subject.title} at {rate:g} Hz", 0.0)
        each.contestant.frame_to_labels()
        shots[id(each)] += play(host.at_pace(each.contestant), count, rate)
    return [Pace.of(shots[id(each)], rate, host.deadline_ms) for each in opened]


def _pace_cells(pace: Pace) -> list[str]:
    due = pace.from_due
    times = [figure(ms) for ms in (due.p50_ms, due.p99_ms, due.p99_9_ms, due.max_ms)]
    dropped = pace.dropped / pace.frames
    shares = [percent(pace.miss_ratio), percent(dropped)]
    return [f"{pace.rate_hz:g}", *times, *shares, figure(pace.service.p50_ms)]


@dataclass(frozen=True)
class Flow:
    """Frames through `streams` copies of a contestant at once. latency: of a frame in its stream,
    queueing apart; fps: of all streams together."""

    streams: int
    threads: int | None
    frames: int
    seconds: float
    fps: float
    latency: Timing


def pipelined(
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
    took = max((max(ended) - start) / 1e9, 1e-9)
    threads = contestants[0].subject.threads
    return Flow(
        len(contestants), threads, len(taken), round(took, 3), round(len(taken) / took, 3),
        Timing.of(taken),
    )  # fmt: skip


def throughput(setup: Setup, streams: Sequence[int] = STREAMS) -> Sheet:
    """Every row with each number of streams, which share the CPU's threads; peers have one."""
    facts: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for contest in setup.contests:
        with setup.opened(contest) as opened:
            alone = {}
            for each in opened:
                subject = each.contestant.subject
                setup.host.progress(f"{subject.title}: one stream", 0.0)
                flow = pipelined([each.contestant], setup.host.limits.seconds)
                alone[subject.title] = flow.fps
                facts.append({**subject.facts(), **asdict(flow)})
                rows.append([*subject.names(), *_flow_cells(flow, flow.fps)])
        for count in streams:
            if count > 1:
                _several(setup, contest, count, alone, facts, rows)
    header = ["streams", "threads each", "FPS", "x one stream", "p50 ms", "p99 ms"]
    title = "Throughput: frames a second with several streams at once, and a frame's own latency"
    settings = {"streams": list(streams), "seconds": setup.host.limits.seconds}
    return setup.sheet("throughput", [Figures(title, header, rows)], facts, settings)


def _several(
    setup: Setup,
    contest: Contest,
    count: int,
    alone: dict[str, float],
    facts: list[dict[str, Any]],
    rows: list[list[str]],
) -> None:
    """Adds a row for each entry of the contest, opened `count` times."""
    watch = NoiseWatch()
    for entry in contest.entries:
        with ExitStack() as stack:
            try:
                copies = _copies(setup, contest, entry, count, stack)
            except (ArtifactError, MissingPackage) as error:
                setup.warnings.append(f"{entry.title}: no {count} streams: {error}")
                continue
            subject = copies[0].subject
            setup.host.progress(f"{subject.title}: {count} streams", 0.0)
            flow = pipelined(copies, setup.host.limits.seconds)
        facts.append({**subject.facts(), **asdict(flow)})
        base = alone.get(subject.title, flow.fps)
        rows.append([*subject.names(), *_flow_cells(flow, base)])
    setup.noises.append(watch.noise())


def _copies(
    setup: Setup, contest: Contest, entry: Entry, count: int, stack: ExitStack
) -> list[Contestant]:
    threads = max(1, setup.host.threads // count)
    copies = []
    for _ in range(count):
        contestant = entry.open(setup.frames_of(contest), threads, setup.host.device)
        stack.callback(contestant.close)
        warm_up(contestant.frame_to_labels, patience_s=2)
        copies.append(contestant)
    return copies


def _flow_cells(flow: Flow, base_fps: float) -> list[str]:
    threads = "" if flow.threads is None else str(flow.threads)
    ratio = figure(flow.fps / base_fps)
    times = [figure(flow.latency.p50_ms), figure(flow.latency.p99_ms)]
    return [str(flow.streams), threads, figure(flow.fps), ratio, *times]


def mlperf(setup: Setup, folder: Path) -> Sheet:
    """MLPerf LoadGen's SingleStream for every row; its logs are kept in a folder a row.

    Raises MissingPackage without `mlcommons-loadgen`.
    """
    facts: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    limits = setup.host.limits
    for contest in setup.contests:
        with setup.opened(contest) as opened:
            for each in opened:
                subject = each.contestant.subject
                setup.host.progress(f"{subject.title}: LoadGen", 0.0)
                logs = folder / subject.title.replace(" ", "_")
                frames = setup.frames_of(contest)
                found = single_stream(
                    _by_index(each.contestant, frames), len(frames), logs, limits.seconds,
                    limits.runs, each.warm_up.last_ms,
                )  # fmt: skip
                facts.append({**subject.facts(), **asdict(found), "logs": str(logs)})
                cells = [found.result, str(found.queries), *map(figure, found.times)]
                rows.append([*subject.names(), *cells])
    header = ["result", "queries", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"]
    title = "MLPerf LoadGen, SingleStream: one query after another"
    settings = {"seconds": limits.seconds, "queries": limits.runs}
    notes = [f"LoadGen's own logs: {folder}; a submission needs --seconds 600"]
    return setup.sheet("mlperf", [Figures(title, header, rows)], facts, settings, notes)


def _by_index(contestant: Contestant, frames: Sequence[Any]) -> Callable[[int], object]:
    return lambda index: contestant.label(frames[index])
