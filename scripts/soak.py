"""A drive under random attack in which every frame is accounted for.

python scripts/soak.py --model artifacts/csfcn_nano_64x128_fp32.onnx --minutes 20

Its camera breaks, its workers are killed and stopped, its disk is full, its ports are flooded, its
artifact is replaced by rubbish, at times and in an order set by the seed. At the end each
frame that the loop counted was published or dropped with a cause, once; each that was published
reached the ledger, a sink, once; and each sink's messages add up.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rtseg.data.frames import Frame, Unreadable
from rtseg.data.images import blend
from rtseg.data.scenes import scene
from rtseg.demo.live import LivePage
from rtseg.demo.web import Server
from rtseg.runtime import Drive, DriveLimits, Result, Status, read_card
from rtseg.runtime.drive.report import DriveReport
from rtseg.runtime.drive.worker import WorkerTask
from rtseg.runtime.sinks import open_sinks
from rtseg.runtime.sinks.shared_memory import RingReader

SIZE = 64, 128
HZ = 20.0
START_S = 180.0  # that the first mask may take
PAUSE_S = 0.5, 3.0  # between two attacks
TOLD_ONCE = ("replaced", "starting", "stopped")  # causes of which no sink is told
MOODS = (
    "cut", "stall", "corrupt", "nonsense", "shapes", "times", "frozen", "burst", "black", "half",
)  # fmt: skip
GROWTH_MB = 150.0  # of memory, from a third of the time to the end


class HostileCamera:
    """Frames at HZ, and what a camera may give instead. given: how many items it handed out."""

    def __init__(self, pictures: Sequence[Any] = ()) -> None:
        self.given = 0
        self.mood, self.until_s = "", 0.0
        self.over = False
        self._pictures = list(pictures) or [scene(SIZE, index) for index in range(8)]

    def be(self, mood: str, seconds: float) -> None:
        self.mood, self.until_s = mood, time.monotonic() + seconds

    def __iter__(self) -> Iterator[Any]:
        for index in range(1 << 40):
            if self.over:
                return
            mood = self.mood if time.monotonic() < self.until_s else ""
            if mood == "cut":
                time.sleep(0.05)
                raise OSError("the camera was cut off")
            if mood == "stall":
                time.sleep(max(0.0, self.until_s - time.monotonic()))
            if mood != "burst":
                time.sleep(1 / HZ)
            for item in self._items(mood, index):
                self.given += 1
                yield item

    def _items(self, mood: str, index: int) -> Iterator[Any]:
        now = time.monotonic_ns()
        picture = self._pictures[index % len(self._pictures)]
        if mood == "corrupt":
            yield Unreadable(f"{index}", "damaged")
        elif mood == "nonsense":
            yield [None, 7, "frame", object(), picture][index % 5]
        elif mood == "black":
            yield Frame(np.zeros_like(picture), index, now)
        elif mood == "half":
            half = picture.copy()
            half[len(half) // 2 :] = 128
            yield Frame(half, index, now)
        elif mood == "shapes":
            shapes = (0, 0, 3), (5,), (4, 4, 7), (1, 1, 3), (300, 500, 3)
            yield Frame(np.zeros(shapes[index % 5], np.uint8), index, now)
        elif mood == "times":
            times = [None, -1, now - 10**12, now + 10**12, 0.5, 1 << 80]
            yield Frame(picture, index, times[index % 6])  # type: ignore[arg-type]
        elif mood == "frozen":
            yield Frame(self._pictures[0], index, now)
        elif mood == "burst":
            time.sleep(0.3)
            for late in range(20):
                yield Frame(picture, index, time.monotonic_ns() - 10**6 * (20 - late), "burst")
        else:
            yield Frame(picture, index, now, f"{index}")


class Ledger:
    """A sink that books every frame's end."""

    name = "ledger"
    capacity = 1 << 20  # nothing is pushed out of its queue
    records = True

    def __init__(self) -> None:
        self.results: Counter[int] = Counter()
        self.statuses: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.messages = 0

    def __call__(self, message: Result | Status) -> None:
        self.messages += 1
        if isinstance(message, Result):
            self.results[message.frame_id] += 1
        else:
            self.kinds[f"{message.kind.value} {message.cause}"] += 1
            if message.frame_id is not None:
                self.statuses[message.frame_id] += 1


class UnsteadySink:
    """Blocks or raises as it is told."""

    name = "unsteady sink"

    def __init__(self) -> None:
        self.blocked_until_s = self.broken_until_s = 0.0

    def __call__(self, message: Result | Status) -> None:
        time.sleep(max(0.0, self.blocked_until_s - time.monotonic()))
        if time.monotonic() < self.broken_until_s:
            raise RuntimeError("the sink fails")


@dataclass
class Soak:
    """A drive and those who attack it.

    Args:
        model: an artifact of any size, which is copied.
        folder: for all that is written.
        seed: of the attacks.
        kinds: the attacks that are tried; all of them by default.
    """

    model: Path
    folder: Path
    seed: int = 0
    kinds: Sequence[str] = ()
    certify, pause_s = False, PAUSE_S
    tried: Counter[str] = field(default_factory=Counter)
    memory_mb: list[float] = field(default_factory=list)
    attacks: int = 0
    reader_errors: int = 0
    expired: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self._others = {each.pid for each in psutil.Process().children()}  # not of this drive
        self.artifact = self.folder / self.model.name
        shutil.copy(self.model, self.artifact)
        self.sound = self.artifact.read_bytes()
        self.camera, self.ledger = HostileCamera(self.read_pictures()), Ledger()
        self.unsteady = UnsteadySink()
        card = read_card(self.artifact)
        self.page = LivePage(card.class_table, card.model)
        self.ring = self.folder / "soak.ring"
        paths = [self.ring, self.folder / "log.mcap", self.folder / "video.mp4"]
        sinks = open_sinks(paths, card, blend, HZ, certify=self.certify)
        self.drive = self.open_drive([self.ledger, self.unsteady, self.page, *sinks])
        self.page.watch = self.drive.snapshot
        self._over = threading.Event()

    def read_pictures(self) -> Sequence[Any]:
        """What the camera shows; none: drawn scenes."""
        return ()

    def open_drive(self, sinks: Sequence[Any]) -> Drive:
        """The drive that is attacked."""
        task = WorkerTask(
            (self.artifact.name,),
            {"paths": [str(self.artifact)], "backend": None, "device": "cpu"},
            environment={"OMP_NUM_THREADS": "1"},
        )
        limits = DriveLimits(stuck_ms=1500.0)
        return Drive(self.camera, task, sinks, limits=limits, health=self.folder / "health.json")

    def run(self, seconds: float, tell: Callable[[str], None] = lambda line: None) -> list[str]:
        """Drive for a while under attack.

        Args:
            seconds: how long, from the first mask on.
            tell: called with a line each minute.

        Returns:
            What does not add up; nothing, if all does.
        """
        threads = [
            threading.Thread(target=work, args=(seconds, tell), daemon=True)
            for work in (self._attack, self._read_ring, self._watch)
        ]
        with Server(self.page, port=0) as server:
            self.port = server.port
            for thread in threads:
                thread.start()
            self.report = self.drive.run(seconds + START_S)
            self._over.set()
            for thread in threads:
                thread.join(10)
        return [*self.find_faults(self.report), *self._find_left()]

    def _attack(self, seconds: float, tell: Callable[[str], None]) -> None:
        ways = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }
        names = list(self.kinds or ways)
        while not self.ledger.results and not self._over.wait(0.1):
            pass  # what never began shows nothing
        end = time.monotonic() + seconds
        # The last seconds are quiet, in which all has to come back.
        calm_s = min(12.0, seconds / 3)
        while not self._over.wait(float(self.rng.uniform(*self.pause_s))):
            if time.monotonic() > end - calm_s:
                self._over.wait(end - time.monotonic())
                self.camera.over = True
                return
            name = names[int(self.rng.integers(len(names)))]
            self.tried[name] += 1
            self.attacks += 1
            ways[name]()

    def _do_camera(self) -> None:
        mood = MOODS[int(self.rng.integers(len(MOODS)))]
        self.tried[f"camera {mood}"] += 1
        self.camera.be(mood, float(self.rng.uniform(0.3, 2.5)))

    def _do_kill(self) -> None:
        for process in self.drive.loop.supervisor.processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _do_stop(self) -> None:
        for process in self.drive.loop.supervisor.processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGSTOP)
        self._over.wait(float(self.rng.uniform(0.1, 3)))
        for process in self.drive.loop.supervisor.processes():
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGCONT)

    def _do_fill(self) -> None:
        """Every write beyond a few bytes fails in this process for a while."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(self.rng.integers(0, 5000)), hard))
        self._over.wait(float(self.rng.uniform(0.2, 2)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def _do_flood(self) -> None:
        """Connections that say nothing, and some that say rubbish."""
        lines = []
        for _ in range(150):
            with contextlib.suppress(OSError):
                lines.append(socket.create_connection(("127.0.0.1", self.port), 1))
        for line in lines[::3]:
            with contextlib.suppress(OSError):
                line.sendall(self.rng.bytes(int(self.rng.integers(1, 3000))))
        self._over.wait(float(self.rng.uniform(0.2, 2)))
        for line in lines:
            line.close()

    def _do_swap(self) -> None:
        """The artifact is rubbish for a while, and whoever starts meanwhile must not serve it."""
        spoiled = bytearray(self.sound)
        for at in self.rng.integers(0, len(spoiled), 50):
            spoiled[at] ^= 255
        for content in (bytes(spoiled), self.sound):
            beside = self.artifact.with_suffix(".new")
            beside.write_bytes(content)
            beside.replace(self.artifact)
            if content is not self.sound:
                self._do_kill()
                self._over.wait(float(self.rng.uniform(0.5, 4)))

    def _do_sink(self) -> None:
        until = time.monotonic() + float(self.rng.uniform(0.5, 3))
        if self.rng.integers(2):
            self.unsteady.blocked_until_s = until
        else:
            self.unsteady.broken_until_s = until

    def _do_ring(self) -> None:
        """Somebody deletes the ring, or writes over it."""
        with contextlib.suppress(OSError):
            if self.rng.integers(2):
                self.ring.unlink()
            else:
                beside = self.ring.with_suffix(".rubbish")
                beside.write_bytes(self.rng.bytes(int(self.rng.integers(0, 4000))))
                beside.replace(self.ring)

    def _do_crowd(self) -> None:
        """Others want the processor."""
        end = time.monotonic() + float(self.rng.uniform(0.2, 1.5))
        while time.monotonic() < end and not self._over.is_set():
            sum(range(20_000))

    def _read_ring(self, seconds: float, tell: Callable[[str], None]) -> None:
        """A consumer that never takes an expired or damaged mask for a good one."""
        reader, number = None, 0
        while not self._over.wait(0.02):
            try:
                reader = reader or RingReader(self.ring)
                entry = reader.latest(number)
            except (OSError, ValueError):  # rubbish lies there for a moment
                self.reader_errors += 1
                continue
            if entry is not None:
                number = entry.number
                late = entry.kind is None and entry.published_ns > entry.expires_ns
                self.expired += late
        if reader is not None:
            reader.close()

    def _watch(self, seconds: float, tell: Callable[[str], None]) -> None:
        own, minute = psutil.Process(), 0
        began = time.monotonic()
        while not self._over.wait(1.0):
            self.memory_mb.append(own.memory_info().rss / 2**20)
            if time.monotonic() - began >= 60 * (minute + 1):
                minute += 1
                now = self.drive.snapshot()
                tell(
                    f"{minute} min: {now.state}, captured {now.frames.captured}, published "
                    f"{now.frames.published}, dropped {sum(now.frames.dropped.values())}, open "
                    f"{now.frames.open}, {self.attacks} "
                    f"attacks, {self.memory_mb[-1]:.0f} MB, {own.num_fds()} descriptors, "
                    f"{own.num_threads()} threads"
                )

    def find_faults(self, report: DriveReport) -> list[str]:
        """What does not add up in the counters, the ledger and the sinks."""
        frames, book = report.frames, self.ledger
        dropped = sum(frames.dropped.values())
        told = sum(n for cause, n in frames.dropped.items() if cause not in TOLD_ONCE)
        checks = {
            "nothing was published": frames.published > 0,
            f"{frames.open} frames are open": frames.open == 0,
            f"{frames.captured} captured, {frames.published} published, {dropped} dropped": (
                frames.captured == frames.published + dropped
            ),
            f"{self.camera.given} given, {frames.captured} captured": (
                0 <= self.camera.given - frames.captured <= report.reopened_source + 1
            ),
            f"{len(book.results)} results in the ledger of {frames.published}": (
                len(book.results) == frames.published
            ),
            "a frame was published twice": max(book.results.values(), default=1) == 1,
            "a frame was told of twice": max(book.statuses.values(), default=1) == 1,
            "a frame was both published and told lost": not book.results.keys()
            & book.statuses.keys(),
            f"{len(book.statuses)} frames told of, {told} dropped with a status": (
                len(book.statuses) == told
            ),
            "ids beyond those captured": all(
                0 <= each < frames.captured for each in (*book.results, *book.statuses)
            ),
            f"{self.expired} expired masks were in the ring": not self.expired,
        }
        faults = [text for text, holds in checks.items() if not holds]
        for sink in report.sinks:
            got = sink.delivered + sink.dropped + sink.failed + sink.unflushed
            # A sink's close, which may fail too, is no message.
            if not 0 <= got - book.messages <= 1:
                faults.append(f"{sink.name}: {got} of {book.messages} messages")
        third = len(self.memory_mb) // 3
        if third > 60:
            growth = np.mean(self.memory_mb[-30:]) - np.mean(self.memory_mb[third : third + 30])
            if growth > GROWTH_MB:
                faults.append(f"memory grew by {growth:.0f} MB")
        return faults

    def _find_left(self) -> list[str]:
        """Temporary files, processes."""
        left = [p.name for p in self.folder.iterdir() if p.name.startswith(".")]
        ours = [p for p in psutil.Process().children() if p.pid not in self._others]
        children = [p.name() for p in ours if p.status() != "zombie"]
        return [f"left: {', '.join(each)}" for each in (left, children) if each]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="an artifact")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    def tell(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    with tempfile.TemporaryDirectory(prefix="rtseg-soak-") as folder:
        soak = Soak(options.model, Path(folder), options.seed)
        faults = soak.run(60 * options.minutes, tell)
        report = soak.report
        tell(json.dumps({"attacks": dict(sorted(soak.tried.items()))}))
        tell(json.dumps({"frames": asdict(report.frames)}))
        tell(json.dumps({"statuses": dict(sorted(soak.ledger.kinds.items()))}))
        for sink in report.sinks:
            tell(f"sink {sink}")
        tell(
            f"{len(report.engine_failures)} engines failed, {report.reopened_source} cameras opened"
        )
    tell("\n".join(faults) if faults else "every frame is accounted for")
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
