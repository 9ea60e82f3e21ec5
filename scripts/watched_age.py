"""Age of a drive's masks with a proof that goes on, certified labels and a black box, and without.

Drives with and without take turns, in an order that changes from pair to pair:

    python scripts/watched_age.py camvid/val --model artifacts/csfcn_nano_360x480_int8.onnx \\
        --verify-with artifacts/csfcn_nano_360x480_fp32.onnx --rate 15 --duration 20 --pairs 6
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from age_beside_bench import Ages, drive_for  # type: ignore[import-not-found]
from rtseg.data.files import write_atomically
from rtseg.data.playback import open_drive_source
from rtseg.errors import BackendError
from rtseg.runtime import Drive, Result, Status
from rtseg.runtime.drive.continuous_proof import VerifyPace, open_proof
from rtseg.runtime.provenance import ServedArtifact
from rtseg.runtime.sinks.black_box import BlackBox
from rtseg.system import read_system

QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
RESAMPLES = 2000
Rows = Sequence[Sequence[float]]  # ages in ms, drive by drive


class SettledAges(Ages):  # type: ignore[misc]
    """Ages from the moment on at which a drive, its reference included, has run for a while."""

    def __init__(self, settle_s: float) -> None:
        super().__init__()
        self.settle_s, self._first_s = settle_s, 0.0

    def __call__(self, message: Result | Status) -> None:
        now = time.monotonic()
        self._first_s = self._first_s or now
        if now - self._first_s >= self.settle_s:
            super().__call__(message)


def compare_ages(plain: Rows, watched: Rows, seed: int = 0) -> dict[str, dict[str, float]]:
    """The ratio of each quantile, with over without, and the interval that holds it with 95 %
    confidence, by a bootstrap over whole pairs."""
    rng, count = np.random.default_rng(seed), len(plain)

    def of(rows: Rows, pick: Sequence[int], share: float) -> float:
        return float(np.quantile(np.concatenate([rows[i] for i in pick]), share))

    found = {}
    everything = range(count)
    for name, share in QUANTILES.items():
        ratios = []
        for _ in range(RESAMPLES):
            pick = rng.integers(0, count, count).tolist()
            ratios.append(of(watched, pick, share) / of(plain, pick, share))
        without, with_it = of(plain, everything, share), of(watched, everything, share)
        low, high = np.quantile(ratios, [0.025, 0.975])
        found[name] = {
            "without_ms": round(without, 2), "with_ms": round(with_it, 2),
            "ratio": round(with_it / without, 3),
            "low": round(float(low), 3), "high": round(float(high), 3),
        }  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a recording, which is repeated")
    parser.add_argument("--model", type=Path, required=True, help="artifact")
    parser.add_argument("--verify-with", type=Path, required=True, help="its reference")
    parser.add_argument("--every", type=int, default=30, help="frames, of which one is verified")
    parser.add_argument("--rate", type=float, default=15.0, help="Hz of the recording")
    parser.add_argument("--duration", type=float, default=20.0, help="seconds of each drive")
    parser.add_argument("--settle", type=float, default=20.0, help="seconds before, left out")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--certify", action="store_true", help="in both, too")
    parser.add_argument("--report", type=Path, help="file for the JSON, which is printed too")
    given = parser.parse_args(arguments)
    frames = open_drive_source(given.source, given.rate, True, None)
    reports = []

    def drive(watched: bool) -> list[float]:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            proof = box = None
            if watched:
                proof = open_proof(
                    given.verify_with, [given.model], VerifyPace(given.every), Path(folder)
                )
                box = BlackBox(Path(folder) / "box", artifacts=[ServedArtifact(given.model)])
            ages = SettledAges(given.settle)
            job = Drive(
                frames, given.model, [ages], proof=proof, black_box=box, certify=given.certify
            )
            report = drive_for(job, ages, given.duration)
        if not ages.rows:
            raise BackendError(f"the drive answered no frame: {'; '.join(report.reasons)}")
        if report.proof is not None:
            reports.append(report.proof)
        return [row["age"] for row in ages.rows]

    plain, watched = take_turns(drive, given.pairs)
    facts = {
        "artifacts": [given.model.name, given.verify_with.name],
        "machine": str(read_system()),
        "drives": 2 * given.pairs,
        "seconds_each": given.duration,
        "masks": sum(map(len, [*plain, *watched])),
        "verified": sum(each.verified for each in reports),
        "rechecks": sum(each.rechecks for each in reports),
        "alarms": sum(each.alarms for each in reports),
        "age": compare_ages(plain, watched),
    }
    text = json.dumps(facts, indent=2) + "\n"
    sys.stdout.write(text)
    if given.report:
        write_atomically(given.report, text.encode())


def take_turns(drive: Callable[[bool], list[float]], pairs: int) -> tuple[Rows, Rows]:
    """Ages without and with, a list a drive; each second pair begins with the latter."""
    plain: list[list[float]] = []
    watched: list[list[float]] = []
    for pair in range(pairs):
        for with_it in (False, True) if pair % 2 == 0 else (True, False):
            (watched if with_it else plain).append(drive(with_it))
            sys.stderr.write(f"pair {pair + 1} of {pairs}: {'with' if with_it else 'without'}\n")
    return plain, watched


if __name__ == "__main__":
    main()
