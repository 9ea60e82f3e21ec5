"""A soak with everything on: `soak.py` with a proof that goes on, certified labels, picture checks,
a fallback and a black box, and faults of their own for each.

    python scripts/soak_all.py --model artifacts/csfcn_nano_184x240_int8.onnx \\
        --verify-with artifacts/csfcn_nano_184x240_fp32.onnx --frames camvid/val --minutes 30

Beside what `soak.py` demands: each worker whose memory was struck is found, unless it was killed
before; no alarm without a fault; the black box stays within its room; and what it kept replays bit
for bit, but for the masks of struck workers.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rtseg.data.files import write_atomically
from rtseg.data.frames import read_folder
from rtseg.reporting import Table
from rtseg.runtime import Details, Drive, DriveLimits, Segmenter, read_card
from rtseg.runtime.drive.continuous_proof import VerifyPace, open_proof
from rtseg.runtime.drive.picture_faults import PictureLimits
from rtseg.runtime.drive.report import DriveReport
from rtseg.runtime.drive.worker import WorkerTask
from rtseg.runtime.drive.worker_process import load_artifacts
from rtseg.runtime.incident import replay_incident
from rtseg.runtime.provenance import ServedArtifact
from rtseg.runtime.sinks.black_box import MOST_INCIDENTS, BlackBox
from rtseg.system import read_system
from soak import Soak  # type: ignore[import-not-found]

EVERY = 10  # frames, of which one is verified
BOX_S, BOX_MB = 5.0, 20.0
SPARE_MB = 10.0  # of a second's file and an incident that is just being written
FOUND_S = 20.0  # after which a struck worker must have been found
SPARED = 20  # frames that a reference verifies between two of its deaths, at least
REST_S = 75.0  # between two attacks that end an engine
STRIKE = "strike"  # a file: the next worker that sees it is struck


class Strikable(Segmenter):
    """A Segmenter that swaps two classes once somebody asks for it, as damaged memory might."""

    struck = False

    def __call__(self, frame: Any) -> NDArray[np.uint8]:
        return self._spoil(super().__call__(frame))

    def details(self, frame: NDArray[np.generic]) -> Details:
        found = super().details(frame)
        return Details(
            self._spoil(found.labels), found.certified, found.confidence, found.bound, found.why
        )

    def _spoil(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        asked = Path(os.environ["RTSEG_SOAK"]) / STRIKE
        if not self.struck and asked.exists():
            asked.replace(asked.with_name(f"struck-{os.getpid()}"))
            self.struck = True
        if not self.struck:
            return labels
        table = np.arange(256, dtype=np.uint8)
        table[[0, 1]] = 1, 0
        return table[labels]


def load_strikable(**arguments: Any) -> list[Segmenter]:
    """A worker's loader, see `WorkerTask`."""
    segmenters = load_artifacts(**arguments)
    for each in segmenters:
        each.__class__ = Strikable
    return segmenters


class AlarmLog(logging.Handler):
    """Keeps when an engine was found to be wrong: (seconds, words)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("the engine disagrees") or "known frame" in text:
            self.found.append((time.monotonic(), text))


@dataclass
class FullSoak(Soak):  # type: ignore[misc]
    """As `Soak`, with all that a drive can have switched on.

    Args:
        reference: an artifact of the same weights and size, which is the fallback too.
        frames: a folder of pictures that the camera shows.
    """

    reference: Path = Path()
    frames: Path = Path()
    struck: list[tuple[float, int]] = field(default_factory=list)
    rest_until_s: float = 0.0
    found_s: list[float] = field(default_factory=list)
    spared: int = 1  # frames verified, before which the reference is let alone
    lost: int = 0  # struck workers that another attack ended before they were found
    box_mb: float = 0.0
    replays: list[str] = field(default_factory=list)
    certify, pause_s = True, (1.0, 5.0)

    def __post_init__(self) -> None:
        self.other = self.folder / "reference" / self.reference.name
        self.other.parent.mkdir()
        shutil.copy(self.reference, self.other)
        self.alarms = AlarmLog()
        logging.getLogger("rtseg").addHandler(self.alarms)
        super().__post_init__()

    def read_pictures(self) -> Sequence[Any]:
        height, width = read_card(self.artifact).size
        return [
            cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
            for _, picture in read_folder(self.frames)
        ]

    def open_drive(self, sinks: Sequence[Any]) -> Drive:
        here = Path(__file__).parent
        paths = [str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
        bounds = read_card(self.artifact).proof.bounds  # type: ignore[union-attr]
        # Labels are certified in the arithmetic of the proof alone.
        backend = bounds[0].arithmetic.partition(" ")[0]
        task = WorkerTask(
            (self.artifact.name,),
            {"paths": [str(self.artifact)], "backend": backend, "device": "cpu", "certify": True},
            loader=f"{Path(__file__).stem}:load_strikable",
            environment={
                "OMP_NUM_THREADS": "1", "RTSEG_SOAK": str(self.folder),
                "PYTHONPATH": os.pathsep.join(paths),
            },
            recheck=EVERY,
        )  # fmt: skip
        evidence = self.folder / "evidence"
        self.proof = open_proof(self.other, [self.artifact], VerifyPace(EVERY), evidence)
        served = (
            ServedArtifact(self.artifact, backend, "cpu"),
            ServedArtifact(self.other, None, "cpu"),
        )
        self.box = BlackBox(self.folder / "box", BOX_S, BOX_MB, served)
        return Drive(
            self.camera,
            task,
            sinks,
            fallback=self.other,
            limits=DriveLimits(stuck_ms=6000.0),
            health=self.folder / "health.json",
            pictures=PictureLimits(),
            proof=self.proof,
            certify=True,
            black_box=self.box,
        )

    def _rested(self) -> bool:
        """Whether engines may be ended again: an engine that fails often stays down for minutes."""
        now = time.monotonic()
        if now < self.rest_until_s:
            return False
        self.rest_until_s = now + REST_S
        return True

    def _do_kill(self) -> None:
        if self._rested():
            super()._do_kill()

    def _do_stop(self) -> None:
        if self._rested():
            super()._do_stop()

    def _do_swap(self) -> None:
        if time.monotonic() >= self.rest_until_s:
            super()._do_swap()

    def _do_memory(self) -> None:
        """The worker's memory is damaged. Only that of one that serves: the known frame of one that
        starts may not be on record yet."""
        engine = self.drive.loop.supervisor.primary.engine
        if engine is None or not engine.ready or not self._rested():
            return
        asked = self.folder / STRIKE
        asked.touch()
        end = time.monotonic() + 5
        while asked.exists() and time.monotonic() < end and not self._over.wait(0.02):
            pass
        asked.unlink(missing_ok=True)
        for mark in self.folder.glob("struck-*"):
            self.struck.append((time.monotonic(), int(mark.name.partition("-")[2])))
            mark.unlink()
            self._await_found(*self.struck[-1])

    def _await_found(self, at_s: float, process: int) -> None:
        while time.monotonic() < at_s + FOUND_S and not self._over.wait(0.02):
            if found := [each for each, _ in self.alarms.found if each > at_s]:
                self.found_s.append(found[0] - at_s)
                return
            if process not in self.drive.loop.supervisor.processes():
                self.lost += 1  # it broke of something else: what was asked of others comes late
                return

    def _do_reference(self) -> None:
        verified = self.proof.counts().verified
        if verified < self.spared:  # it is slow to start: not again before it did some work
            return
        self.spared = verified + SPARED
        for process in self.proof.engines.processes():
            os.kill(process, signal.SIGKILL)

    def _do_incident(self) -> None:
        self.box.keep("the soak asks for it")

    def _watch(self, seconds: float, tell: Callable[[str], None]) -> None:
        def tell_more(line: str) -> None:
            files = [each for each in (self.folder / "box").rglob("*") if each.is_file()]
            self.box_mb = max(self.box_mb, sum(each.stat().st_size for each in files) / 1e6)
            tell(f"{line}; black box {self.box_mb:.0f} MB; {self.proof.counts()}")

        super()._watch(seconds, tell_more)

    def find_faults(self, report: DriveReport) -> list[str]:
        """Beside what `Soak` looks for, what was promised of proof, pictures and black box."""
        faults: list[str] = super().find_faults(report)
        missed = len(self.struck) - len(self.found_s) - self.lost
        false = [
            text for at_s, text in self.alarms.found
            if not any(0 <= at_s - struck_s <= FOUND_S for struck_s, _ in self.struck)
        ]  # fmt: skip
        if missed:
            faults.append(f"{missed} of {len(self.struck)} struck workers were not found")
        faults += [f"a false alarm: {text}" for text in false]
        room_mb = (MOST_INCIDENTS + 1) * BOX_MB + SPARE_MB
        if self.box_mb > room_mb:
            faults.append(f"the black box took {self.box_mb:.0f} MB, {room_mb:.0f} at most")
        verified = report.proof.verified if report.proof else 0
        if not verified:
            faults.append("no frame was verified")
        if not (report.certified and report.certified.frames):
            faults.append("no label was certified")
        for path in sorted((self.folder / "box").glob("incident_*.mcap")):
            done = replay_incident(path, [self.artifact, self.other])
            self.replays.append(
                f"{done.reason[:100]}: {done.exact} of {done.frames} masks bit for bit"
                + "".join(f"; {each}" for each in done.differences)
            )
            struck = [text for _, text in self.alarms.found]
            if done.differing and not struck:
                faults.append(f"{path.name}: {done.failure()}")
        return faults

    def write_page(self, path: Path, faults: Sequence[str], minutes: float) -> None:
        """The report, for people."""
        report = self.report
        proof, frames, shares = report.proof, report.frames, report.certified
        found = sorted(self.found_s)
        facts: list[tuple[object, ...]] = [
            ("machine", read_system()),
            ("artifact, reference", f"{self.artifact.name}, {self.other.name}"),
            ("frames", f"{frames.captured} captured, {frames.published} published"),
            ("dropped", ", ".join(f"{n} {cause}" for cause, n in sorted(frames.dropped.items()))),
            ("age at publication", report.age_ms),
            ("attacks", ", ".join(f"{n} {name}" for name, n in sorted(self.tried.items()))),
            ("engines that failed, cameras opened again",
             f"{len(report.engine_failures)}, {report.reopened_source}"),
            ("proof", proof),
            ("workers with damaged memory",
             f"{len(self.struck)}, of which {len(found)} found and {self.lost} ended by something "
             "else before"),
            ("found after", f"{found[len(found) // 2]:.2f} s as a rule, {found[-1]:.2f} s at most"
             if found else "-"),
            ("certified", f"{shares.share:.2%} of the pixels of {shares.frames} masks"
             if shares and shares.share is not None else "-"),
            ("black box", f"{len(self.box.incidents)} incidents, {self.box_mb:.0f} MB at most"),
            ("memory", f"{self.memory_mb[len(self.memory_mb) // 3]:.0f} MB after a third, "
             f"{self.memory_mb[-1]:.0f} MB at the end"),
        ]  # fmt: skip
        kinds = sorted(self.ledger.kinds.items())
        sinks = [(s.name, s.delivered, s.dropped, s.failed) for s in report.sinks]
        tables = [
            Table(("", ""), facts, words=("",)),
            Table(("status", "times"), kinds, "Statuses", words=("status",)),
            Table(("sink", "delivered", "dropped", "failed"), sinks, "Sinks", words=("sink",)),
            Table(("incident",), [(each,) for each in self.replays], "Replayed"),
        ]
        verdict = "; ".join(faults) or "Every frame is accounted for, and every promise held."
        parts = [f"# A soak of {minutes:g} minutes with everything on", verdict]
        for table in tables:
            parts += [f"## {table.title}"] if table.title else []
            parts.append(replace(table, title="").markdown())
        write_atomically(path, ("\n\n".join(parts) + "\n").encode())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an artifact with bounds")
    parser.add_argument("--verify-with", type=Path, required=True, help="the reference")
    parser.add_argument("--frames", type=Path, required=True, help="a folder of pictures")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, help="file for the page, in Markdown")
    given = parser.parse_args(arguments)

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="rtseg-soak-") as folder:
        soak = FullSoak(
            given.model, Path(folder), given.seed, reference=given.verify_with, frames=given.frames
        )
        faults = soak.run(60 * given.minutes, tell)
        if given.report:
            soak.write_page(given.report, faults, given.minutes)
        tell(json.dumps({"attacks": dict(sorted(soak.tried.items()))}))
        tell(json.dumps({"frames": asdict(soak.report.frames)}))
        tell(json.dumps({"alarms": [text for _, text in soak.alarms.found]}))
        tell(json.dumps({"found_s": soak.found_s, "lost": soak.lost}))
    tell("\n".join(faults) if faults else "every frame is accounted for, and every promise held")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
