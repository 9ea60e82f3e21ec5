"""Age of a drive's results beside the bench's latency of the same artifact, in turns.

python scripts/age_beside_bench.py camvid/val --model artifacts/csfcn_nano_360x480_fp32.onnx \\
    --rate 15 --duration 30 --turns 4
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rtseg.data.files import write_atomically
from rtseg.data.frames import Frame
from rtseg.data.playback import open_drive_source
from rtseg.errors import BackendError, DataError
from rtseg.runtime import Drive, Result, Status
from rtseg.runtime.backends.backend import choose
from rtseg.runtime.drive.drive import build_artifact_task
from rtseg.runtime.drive.report import DriveReport
from rtseg.speed.contestant import ArtifactContestant
from rtseg.speed.timing import MS, Call, warm_up
from rtseg.system import read_system

LIMIT = 1.5  # times the bench's p95 that the age's p95 may be
FRAMES = 16  # of the source, that the bench takes in turn
START_LIMIT_S = 60.0  # for the first result to come
KEEPS_UP = 0.99  # share of frames that must be answered for that to count


class Ages:
    """A sink that keeps every result's times, in ms."""

    name = "ages"
    capacity = 1000
    records = True

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.began = threading.Event()

    def __call__(self, message: Result | Status) -> None:
        if isinstance(message, Result):
            self.began.set()
            self.rows.append({"age": message.age_ms, **message.stages_ms})


@dataclass(frozen=True)
class Turn:
    """p95 in ms of the bench just before and just after a drive, together, and of the drive's ages
    and their parts. answered: share of the frames that came once masks came."""

    bench_ms: float
    age_ms: float
    waiting_ms: float
    inference_ms: float
    publishing_ms: float
    answered: float

    @property
    def ratio(self) -> float:
        return self.age_ms / self.bench_ms


@dataclass(frozen=True)
class Comparison:
    """turns: one a drive; the others: over all of them."""

    turns: Sequence[Turn]
    bench_p95_ms: float
    age_p95_ms: float

    @property
    def ratio(self) -> float:
        return self.age_p95_ms / self.bench_p95_ms

    @property
    def keeps_up(self) -> bool:
        return all(turn.answered >= KEEPS_UP for turn in self.turns)

    @property
    def passed(self) -> bool:
        return self.keeps_up and self.ratio <= LIMIT

    def facts(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "keeps_up": self.keeps_up,
            "ratio": round(self.ratio, 3),
            "limit": LIMIT,
            "bench_p95_ms": round(self.bench_p95_ms, 3),
            "age_p95_ms": round(self.age_p95_ms, 3),
            "turns": [
                {name: round(value, 3) for name, value in asdict(turn).items()}
                | {"ratio": round(turn.ratio, 3)}
                for turn in self.turns
            ],
        }


def compare(
    frame_to_labels: Call,
    drive: Callable[[Ages], Drive],
    turns: int,
    drive_s: float,
    bench_s: float = 5.0,
    progress: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Bench, drive, bench, drive, ..., bench: both meet the same machine, and never each other.

    frame_to_labels: one run of the bench's protocol. drive: a new drive that tells the sink, which
    lasts `drive_s` from its first result. Raises BackendError if there is none.
    """
    warm_up(frame_to_labels)
    progress("bench")
    benches = [_bench(frame_to_labels, bench_s)]
    rows: list[dict[str, float]] = []
    told: list[Turn] = []
    for number in range(turns):
        progress(f"drive {number + 1} of {turns}")
        ages = Ages()
        report = drive_for(drive(ages), ages, drive_s)
        progress("bench")
        benches.append(_bench(frame_to_labels, bench_s))
        told.append(_turn(benches[-2] + benches[-1], ages.rows, report))
        rows += ages.rows
    everything = [ms for bench in benches for ms in bench]
    return Comparison(told, p95(everything), p95([row["age"] for row in rows]))


def drive_for(drive: Drive, ages: Ages, seconds: float) -> DriveReport:
    """Its report, after that long from the first result."""

    def end() -> None:
        if ages.began.wait(START_LIMIT_S):
            time.sleep(seconds)
        drive.stop()

    threading.Thread(target=end, daemon=True).start()
    return drive.run(START_LIMIT_S + seconds)


def _turn(bench: Sequence[float], rows: Sequence[dict[str, float]], report: DriveReport) -> Turn:
    if not rows:
        raise BackendError(f"the drive answered no frame: {'; '.join(report.reasons)}")
    frames = report.frames
    # Before inference is ready, and after the end was asked for, frames are dropped by design.
    by_design = sum(frames.dropped.get(cause, 0) for cause in ("starting", "stopped"))
    parts = {f"{name}_ms": p95([row[name] for row in rows]) for name in rows[0]}
    came = frames.captured - by_design
    return Turn(bench_ms=p95(bench), answered=frames.published / came, **parts)


def _bench(call: Call, seconds: float) -> list[float]:
    """Times in ms of single runs, one behind another."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - began) * MS)
    return times


def p95(times: Sequence[float]) -> float:
    return float(np.percentile(times, 95))


def main(arguments: list[str] | None = None) -> None:
    """Exit code 1 where results are too old, or the machine does not keep up with the camera."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="what `rtseg drive` takes; a recording is repeated")
    parser.add_argument("--model", type=Path, required=True, help="artifact")
    parser.add_argument("--rate", type=float, help="Hz of a recording")
    parser.add_argument("--duration", type=float, default=30.0, help="seconds of each drive")
    parser.add_argument("--turns", type=int, default=4, help="drives, each after a bench")
    parser.add_argument("--backend", help="by default the fastest here")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--report", type=Path, help="file for the JSON, which is printed too")
    given = parser.parse_args(arguments)
    frames = open_drive_source(given.source, given.rate, True, None)
    images = [each.image for each in islice(frames, FRAMES) if isinstance(each, Frame)]
    if not images:
        raise DataError(f"{given.source} gives no frame to measure on")
    backend = choose(given.model, given.backend, given.device)
    task = build_artifact_task([given.model], given.backend, given.device, None)
    contestant = ArtifactContestant.open(given.model, backend, images, device=given.device)
    try:
        found = compare(
            contestant.frame_to_labels,
            lambda ages: Drive(frames, task, [ages]),
            given.turns,
            given.duration,
        )
    finally:
        contestant.close()
    where = Path(given.source)
    facts = {
        # Folders above a recording's own say nothing to another machine.
        "source": "/".join(where.absolute().parts[-2:]) if where.exists() else given.source,
        "artifacts": [given.model.name],
        "machine": str(read_system()),
        "backend": backend,
        **found.facts(),
    }
    text = json.dumps(facts, indent=2) + "\n"
    sys.stdout.write(text)
    if given.report:
        write_atomically(given.report, text.encode())
    sys.exit(0 if found.passed else 1)


if __name__ == "__main__":
    main()
