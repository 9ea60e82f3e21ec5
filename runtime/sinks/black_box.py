"""The black box: a drive's last seconds in a bounded ring on disk, kept when something happens.

The ring is a folder of files of a second each. Everything is written when it comes, so that what
was written outlives this process, whatever ends it; the next drive, or `rtseg incident`, makes a
file of what it finds.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import psutil

from ...data.files import RecordingFile, explain_failure, hold_folder, keep_newest
from ...data.ros.ros_messages import CompressedImage, Header
from ...errors import UsageError
from ..drive.messages import Message, Result
from ..drive.realtime import lower_priority
from ..provenance import ServedArtifact, describe_provenance
from .incident_file import (
    FRAME,
    HEALTH,
    LABELS,
    MACHINE,
    RESULT,
    STATUS,
    IncidentRecord,
    IncidentWriter,
    write_incident,
)
from .label_files import encode_picture

if TYPE_CHECKING:
    from ..drive.report import DriveSnapshot

log = logging.getLogger("rtseg")
PART_S = 1.0  # of the ring's files
AFTER_S = 2.0  # that are recorded after what happened, and kept too
LOOK_S = 0.5  # between two looks at the state
BEHIND = 10  # nice: behind the engine, but not starved when the machine is too busy
MOST_INCIDENTS = 10  # files; the oldest goes first
AGAIN_S = 60.0, 3600.0  # from a reason's incident to its next one: at first, and doubled up to
PATTERN = "incident_*.mcap"


@dataclass
class _Part:
    """A second of the ring."""

    path: Path
    began_s: float
    bytes: int = 0


class BlackBox:
    """A sink that keeps the last seconds of a drive, see `incident_file` for what is in a file.

    An incident is kept `AFTER_S` after the state became another or got a new reason, or after
    `keep` was called. A reason that comes again is one anew after a minute, two, ..., an hour.

    Args:
        folder: for the ring and the incidents; only one drive at a time may have it.
        seconds: that the ring holds.
        megabytes: of the ring at most; an incident is as large, and MOST_INCIDENTS of them stay.
        artifacts: of the drive, to name in the incidents.

    Attributes:
        watch: the drive's `snapshot`, and engine_facts: what its engines said of themselves, by
            role; the drive sets both.
        incidents: files written so far.

    Raises:
        MissingPackage: the mcap package is not installed.
        UsageError: no time or room, or another drive's box is there.
        OSError: the folder cannot be written to.
    """

    name = "black box"
    capacity = 8
    records = True

    def __init__(
        self,
        folder: Path,
        seconds: float = 10.0,
        megabytes: float = 200.0,
        artifacts: Sequence[ServedArtifact] = (),
    ):
        if not (0 < seconds <= 3600 and 1 <= megabytes <= 1e6):
            raise UsageError("a black box holds up to 3600 seconds, in 1 megabyte or more")
        self.folder, self.seconds, self.bytes = folder, seconds, int(megabytes * 1e6)
        self.watch: Callable[[], DriveSnapshot] | None = None
        self.engine_facts: Callable[[], Mapping[str, Any]] = dict
        self.incidents: list[Path] = []
        self._held = contextlib.ExitStack()
        try:
            self._held.enter_context(hold_folder(folder))
        except BlockingIOError as error:
            raise UsageError(f"{folder} is another drive's black box: name another") from error
        self.recover()
        self._ran = describe_provenance(artifacts)
        self._parts: deque[_Part] = deque()
        self._count = 0
        self._file: BinaryIO | None = None
        self._writer: IncidentWriter | None = None
        self._asked: str | None = None
        self._keep: tuple[float, str] | None = None  # when, and why
        self._looked_s = self._free_s = 0.0
        self._told: tuple[str, str] = ("", "")
        self._again: dict[str, tuple[float, float]] = {}  # by reason: when, and after how long
        self._lowered = False
        self._saving: threading.Thread | None = None

    def recover(self) -> Path | None:
        """Make an incident of what a drive that was killed left, if it left anything."""
        left = sorted(self.folder.glob("ring/*.partial"))
        if not left:
            return None
        kept = self._save(left, "the drive was cut off")
        log.warning("a drive was cut off here: its last seconds are in %s", kept)
        return kept

    def keep(self, reason: str) -> None:
        """Keep the last seconds, and those that follow; from any thread, and from a signal."""
        self._asked = reason

    def __call__(self, message: Message) -> None:
        if not self._lowered and threading.current_thread() is not threading.main_thread():
            self._lowered = True
            lower_priority(BEHIND)
        with explain_failure(self.folder):
            self._write(message)
        now = time.monotonic()
        if now >= self._looked_s + LOOK_S:
            self._looked_s = now
            self._look()
        if self._asked is not None and self._keep is None:
            # Not before the ring holds other seconds than the incident before.
            self._keep = max(now + AFTER_S, self._free_s), self._asked
            self._asked = None
        if self._keep is not None and now >= self._keep[0]:
            self._begin_save()

    def _write(self, message: Message) -> None:
        if not isinstance(message, Result):
            text = json.dumps(message.facts()).encode()
            self._add(STATUS, message.at_wall_ns, text, message.frame_id or 0)
            return
        at_ns, frame_id = message.captured_wall_ns, message.frame_id
        header = Header(at_ns, message.coordinate_frame or "camera")
        for topic, picture in ((FRAME, message.image), (LABELS, message.labels)):
            png = CompressedImage(header, "png", encode_picture(".png", picture))
            self._add(topic, at_ns, png.encode(), frame_id)
        self._add(RESULT, at_ns, json.dumps(message.facts()).encode(), frame_id)

    def _look(self) -> None:
        """Note the state of drive and machine; what is new in it is kept."""
        now_ns = time.time_ns()
        self._add(MACHINE, now_ns, json.dumps(_read_machine()).encode())
        if self.watch is None:
            return
        snapshot = self.watch()
        self._add(HEALTH, now_ns, json.dumps(snapshot.to_dict()).encode())
        # Of its own trouble, which a busy machine makes, it keeps nothing: that would add to it.
        why = "; ".join(each for each in snapshot.reasons if self.name not in each)
        # "silent for 3 s" and "silent for 4 s" are one reason.
        told = snapshot.state, re.sub(r"[\d.]+", "", why)
        before, self._told = self._told, told
        # A loop that has ended stands still while the box takes what is left.
        goes_on = not snapshot.ended and snapshot.state not in ("starting", "running")
        if told != before and why and goes_on and self._is_due(told):
            self.keep(f"{snapshot.state}: {why}")

    def _is_due(self, told: tuple[str, str]) -> bool:
        """Whether one of the reasons has no incident yet, or none for long: what comes and goes
        would push all others out."""
        state, reasons = told
        now, due = time.monotonic(), False
        for reason in reasons.split("; "):
            at_s, wait_s = self._again.get(f"{state}: {reason}", (0.0, AGAIN_S[0] / 2))
            if now >= at_s:
                wait_s = min(2 * wait_s, AGAIN_S[1])
                self._again[f"{state}: {reason}"] = now + wait_s, wait_s
                due = True
        return due

    def _add(self, topic: str, at_ns: int, data: bytes, frame_id: int = 0) -> None:
        now = time.monotonic()
        part = self._parts[-1] if self._parts and self._writer else None
        if part is None or now >= part.began_s + PART_S or part.bytes > self.bytes // 8:
            part = self._begin_part(now)
        assert self._writer is not None
        self._writer.add(IncidentRecord(topic, at_ns, data, frame_id))
        part.bytes += len(data) + 64

    def _begin_part(self, now: float) -> _Part:
        self._end_part()
        self._prune(now)
        self._count += 1
        recording = RecordingFile(self.folder / "ring" / f"{self._count:08d}.mcap", replaces=True)
        self._file = recording.open()
        self._writer = IncidentWriter(self._file, {**self._ran, "engines": self.engine_facts()})
        self._parts.append(_Part(recording.partial, now))
        return self._parts[-1]

    def _end_part(self) -> None:
        file, self._file, self._writer = self._file, None, None
        if file is not None:
            file.close()

    def _prune(self, now: float) -> None:
        """What is too old, or too much beside a part that is about to begin."""
        room = self.bytes - self.bytes // 8
        while self._parts:
            oldest = self._parts[0]
            used = sum(part.bytes for part in self._parts)
            if self._is_saving() and used < 2 * self.bytes:  # a disk may take long, not for ever
                return
            if used <= room and now < oldest.began_s + PART_S + self.seconds:
                return
            oldest.path.unlink(missing_ok=True)
            self._parts.popleft()

    def _is_saving(self) -> bool:
        return self._saving is not None and self._saving.is_alive()

    def _begin_save(self) -> None:
        """In a thread of its own, since it takes as long as the disk does."""
        if self._keep is None or self._is_saving():
            return
        reason, self._keep = self._keep[1], None
        self._free_s = time.monotonic() + self.seconds
        self._end_part()
        parts = [part.path for part in self._parts]

        def save() -> None:
            lower_priority(BEHIND)
            try:
                self._save(parts, reason, remove=False)
            except OSError as error:
                log.warning("an incident could not be kept: %s", error)

        self._saving = threading.Thread(target=save, name="incident", daemon=True)
        self._saving.start()

    def _save(self, parts: Sequence[Path], reason: str, remove: bool = True) -> Path:
        at = datetime.now(timezone.utc)
        slug = re.sub(r"[^a-z0-9]+", "-", reason.lower()).strip("-")[:40] or "asked"
        name = self.folder / f"incident_{at:%Y%m%dT%H%M%SZ}_{slug}.mcap"
        written = write_incident(name, {"reason": reason, "kept_at": at.isoformat()}, parts)
        self.incidents.append(written)
        if remove:
            for part in parts:
                part.unlink(missing_ok=True)
        keep_newest(self.folder, PATTERN, MOST_INCIDENTS)
        log.info("the last seconds are in %s", written, extra={"cause": reason})
        return written

    def close(self) -> None:
        """Keep what is to be kept, and remove the ring."""
        if self._saving is not None:
            self._saving.join()
        if self._asked is not None and self._keep is None:
            self._keep = 0.0, self._asked
        self._end_part()
        if self._keep is not None and self._parts:
            self._save([part.path for part in self._parts], self._keep[1])
        for part in self._parts:
            part.path.unlink(missing_ok=True)
        self._held.close()


def find_incidents(folder: Path) -> list[Path]:
    """The incidents in a black box, the newest last, one of them made of what a drive that was
    killed left there, if it left something.

    Raises:
        UsageError: there is none, or a drive is still writing.
        OSError: the folder cannot be written to.
    """
    if list(folder.glob("ring/*.partial")):
        BlackBox(folder).close()
    found = keep_newest(folder, PATTERN, MOST_INCIDENTS)
    if not found:
        raise UsageError(
            f"{folder} holds no incident: a drive that ends well leaves none; SIGUSR1 makes one"
        )
    return found


def _read_machine() -> dict[str, object]:
    memory = psutil.virtual_memory()
    return {
        "processors": psutil.cpu_percent(percpu=True),
        "load": psutil.getloadavg(),
        "memory_used_mib": round((memory.total - memory.available) / 2**20),
        "memory_mib": round(memory.total / 2**20),
        "temperatures": _read_temperatures(),
    }


def _read_temperatures() -> dict[str, float]:
    read = getattr(psutil, "sensors_temperatures", dict)  # not on every system
    found: dict[str, list[Any]] = read()
    return {name: max(each.current for each in sensors) for name, sensors in found.items()}
