"""Replay beside another environment's interpreter: its side takes its turns in its own process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..data.frames import Unreadable
from ..data.playback import open_recording
from ..errors import BackendError, UsageError
from ..resolve import resolve_artifact
from ..runtime.artifact import read_card
from .replay import (
    Advance,
    ReplayConfig,
    ReplayResult,
    judge,
    record,
    start_masks,
    until_decided,
)
from .replay_bars import ReplayBars
from .replay_side import RecordedSide, ReplaySide, digest_frame, read_recorded


class OtherInterpreter:
    """An `rtseg replay --record --in-turns` of another environment.

    It waits for a line before each block of frames and answers with one, the times of that block,
    so that neither side works during the other's turn.

    Args:
        python: the interpreter.
        log, model: as of `record`.
        folder: that it records into.
        config: how it is played.

    Attributes:
        rounds: ms of each timed frame, by turn.

    Raises:
        UsageError: there is no such interpreter.
    """

    def __init__(self, python: str, log: str, model: str, folder: Path, config: ReplayConfig):
        self.python, self.folder = python, folder
        self.rounds: list[list[float]] = []
        command = [python, "-m", "rtseg", "replay", log, "--model", model]
        command += ["--record", str(folder), "--in-turns"]
        chosen = {"--topic": config.topic, "--backend": config.backend, "--device": config.device}
        command += [word for name, value in chosen.items() if value for word in (name, value)]
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  a pipe could fill up
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                command, text=True, stdin=pipe, stdout=pipe, stderr=self._stderr
            )
        except OSError as error:
            raise UsageError(f"no interpreter runs as {python}: {error.strerror}") from error
        self._answers: IO[str] = self._process.stdout  # type: ignore[assignment]

    def take_turn(self, side: ReplaySide | None = None) -> bool:
        """Have it play its next block; True.

        Raises:
            BackendError: it ended, with its last line.
        """
        self._say("turn")
        answer = self._answers.readline()
        if not answer.startswith("["):
            raise self._failure()
        self.rounds.append(json.loads(answer))
        return True

    def finish(self) -> RecordedSide:
        """What it recorded.

        Raises:
            BackendError: it failed, with its last line.
        """
        self._say("end")
        self._answers.read()
        if self._process.wait():
            raise self._failure()
        return read_recorded(self.folder)

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._stderr.close()

    def _say(self, word: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # its end is told by its answer
            assert self._process.stdin is not None
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()

    def _failure(self) -> BackendError:
        self._process.wait()
        self._stderr.seek(0)
        last = (self._stderr.read().strip().splitlines() or ["it said nothing"])[-1]
        old = ": install this version of rtseg there" if "--in-turns" in last else ""
        return BackendError(f"{self.python} -m rtseg replay failed: {last}{old}")


@contextlib.contextmanager
def start_elsewhere(
    python: str, log: str, model: str, folder: Path, config: ReplayConfig
) -> Iterator[OtherInterpreter]:
    """An `OtherInterpreter` that ends with the block."""
    other = OtherInterpreter(python, log, model, folder, config)
    try:
        yield other
    finally:
        other.close()


def replay_elsewhere(
    python: str,
    log: str,
    model: str,
    against: str,
    config: ReplayConfig | None = None,
    bars: ReplayBars | None = None,
    advance: Advance = lambda: None,
) -> ReplayResult:
    """Play a log through an artifact here and an old one in another environment, block by block in
    turns.

    Args:
        python: the other environment's interpreter.
        log: what `open_recording` takes.
        model: the update: an artifact, or what `resolve_artifact` takes.
        against: likewise, of the other environment.
        config: how it is played.
        bars: that the update is held to.
        advance: called at each frame of the first pass.

    Raises:
        UsageError: classes or frames are others, or there is no such interpreter.
        BackendError: the other side failed.
    """
    config, bars = config or ReplayConfig(), bars or ReplayBars()
    path = resolve_artifact(model, backend=config.backend, device=config.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with start_elsewhere(python, log, against, folder / "old", config) as other:
            more = until_decided(config.runs, bars.latency_ratio, other.rounds)
            record(log, str(path), folder / "new", config, advance, other.take_turn, more)
            old = other.finish()
        done = _compare(log, config, old, read_recorded(folder / "new"))
    done.old.rounds = done.old.rounds[: len(done.new.rounds)]  # it may have had one more
    done.palette = read_card(path).palette
    done.checks = judge(done, bars)
    return done


def _compare(log: str, config: ReplayConfig, old: RecordedSide, new: RecordedSide) -> ReplayResult:
    masks, skipped, number = start_masks(old.side, new.side), 0, 0
    for frame in open_recording(log, config.topic):
        if isinstance(frame, Unreadable):
            skipped += 1
            continue
        title = frame.name or str(number)
        if old.frames[number]["pixels"] != digest_frame(frame.image):
            masks.other_pixels.append(title)
        masks.add(title, frame.image, old.labels(number), new.labels(number))
        number += 1
    return ReplayResult(log, old.side, new.side, True, masks, skipped, ())
