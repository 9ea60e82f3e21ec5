"""The latest results in shared memory, for another process in any language.

The file (best on /dev/shm) is little-endian. It starts with a header of 64 bytes:

    offset  type    what
    0       8 bytes "RTSEGRNG"
    8       uint32  version of this layout, 1
    12      uint32  slots
    16      uint64  bytes of a slot, its header included
    24      uint64  number of the newest message; it is in slot (number - 1) % slots

Numbers begin at the machine's uptime in microseconds and rise by one, so they go on rising when the
writer is started again. Slots follow, each with a header of 128 bytes and then the labels, row by
row, uint8:

    0       uint64  sequence: odd while the slot is written; 2 x the message's number after
    8       uint32  kind: 0 result, 1 LATE, 2 STALE, 3 LOST
    12      uint32  CRC-32 (zlib) of the slot's bytes 16 to 128 + height x width
    16      uint64  frame id, 2^64 - 1 for a status without a frame
    24      uint64  captured, CLOCK_MONOTONIC ns; 0 where unknown
    32      uint64  captured, ns since 1970; 0 where unknown
    40      uint64  published, CLOCK_MONOTONIC ns
    48      uint64  do not use the mask after this CLOCK_MONOTONIC ns
    56      uint32  height, 0 for a status
    60      uint32  width
    64      48 bytes the level's name (result) or the cause (status), UTF-8, ended by zeros
    112     uint32  what the age counts from: 0 unknown, 1 exposure, 2 driver, 3 sender, 4 arrival,
                    5 playback
    116     uint32  maps behind the labels: 1 certified, 2 confidence, 3 both in this order
    120     uint32  CRC-32 of those maps
    124     4 bytes zeros

Each map has height x width bytes: 255 where a label is certified and 0 where not; confidence in
255ths.

A reader copies the slot, then checks that the sequence is the same even number before and after and
that the CRC is right; otherwise the writer has overtaken it, and it reads the newest slot again. If
the name leads to another inode than the mapped one, it reopens the file: a writer that was
restarted, or that needs more room, replaces the old file by a new one.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
import time
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...data.files import stage_file
from ...data.frames import AGE_SOURCES
from ...errors import UsageError
from ..drive.messages import Message, Result, StatusKind

MAGIC, VERSION = b"RTSEGRNG", 1
HEADER, SLOT_HEADER = 64, 128
FACTS = struct.Struct("<QQQQQII48sIII4x")  # from the slot's byte 16 on
SOURCES = ("", *AGE_SOURCES)  # by their number in a slot
KINDS = (None, StatusKind.LATE, StatusKind.STALE, StatusKind.LOST)
NO_FRAME = (1 << 64) - 1
MAPS = {"certified": 1, "confidence": 2}
MOST_READS = 8  # of a slot that the writer is at, or that is damaged


class Ring:
    """The writing side, a sink.

    Its file is made anew for a result that does not fit, so at the first one too.

    Args:
        path: of the file; its folder is made.
        slots: messages that stay readable, at least 2.

    Raises:
        UsageError: fewer than 2 slots.
        OSError: another process writes a ring there, or the folder cannot be made.
    """

    name = "shared-memory ring"

    def __init__(self, path: Path, slots: int = 4):
        if slots < 2:
            raise UsageError(f"a ring has at least 2 slots, not {slots}")
        self.path, self.slots = path, slots
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_second_writer(path)
        self._handle = -1
        self._map: mmap.mmap | None = None
        self._room = 0
        # Higher than any number of a writer before it, which made less than a message a
        # microsecond.
        self._number = time.monotonic_ns() // 1000

    def __call__(self, message: Message) -> None:
        labels = message.labels if isinstance(message, Result) else np.empty((0, 0), np.uint8)
        maps = message.maps() if isinstance(message, Result) else {}
        behind = b"".join(each.tobytes() for each in maps.values())
        if self._map is None or labels.size + len(behind) > self._room or not self._named():
            self._make(labels.size + len(behind))
        assert self._map is not None
        number = self._number + 1
        start = HEADER + (number - 1) % self.slots * (SLOT_HEADER + self._room)
        held = sum(MAPS[name] for name in maps)
        body = _facts(message, labels.shape, held, zlib.crc32(behind)) + labels.tobytes()
        # Odd while the slot is written: a seqlock.
        struct.pack_into("<Q", self._map, start, 2 * number - 1)
        self._map[start + 16 : start + 16 + len(body) + len(behind)] = body + behind
        kind = 0 if isinstance(message, Result) else KINDS.index(message.kind)
        struct.pack_into("<II", self._map, start + 8, kind, zlib.crc32(body))
        struct.pack_into("<Q", self._map, start, 2 * number)
        # The header last: it leads readers to a slot that is whole.
        self._number = number
        struct.pack_into("<Q", self._map, 24, number)

    def _named(self) -> bool:
        """Whether readers still find this file by its name; False once it was deleted."""
        return _inode(self.path) == os.fstat(self._handle).st_ino

    def _make(self, room: int) -> None:
        """A new file in the old one's place."""
        with ExitStack() as undo:
            with stage_file(self.path, mode=0o600) as temporary:
                handle = os.open(temporary, os.O_RDWR)
                undo.callback(os.close, handle)
                # Locked before it has its name, so that no other writer can take it in between.
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _reserve(handle, HEADER + self.slots * (SLOT_HEADER + room))
                fresh = mmap.mmap(handle, 0)
                layout = struct.pack("<IIQQ", VERSION, self.slots, SLOT_HEADER + room, self._number)
                fresh[:32] = MAGIC + layout
            undo.pop_all()
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._map, self._room = handle, fresh, room

    def close(self) -> None:
        """Delete the file, unless it is another writer's by now."""
        if self._handle < 0:
            return
        if self._named():
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
        self._handle, self._map = -1, None


def _reserve(handle: int, size: int) -> None:
    """A sparse file on a full file system would end this process with SIGBUS at the first write to
    its mapping; reserved space makes that an OSError here."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        os.ftruncate(handle, size)
        return
    os.posix_fallocate(handle, 0, size)


def _refuse_second_writer(path: Path) -> None:
    """A writer holds a lock on its file, which the kernel frees when the process is gone."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return
    except BlockingIOError as error:
        text = "another process writes this ring: give each drive one of its own"
        raise OSError(errno.EBUSY, text, str(path)) from error


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _facts(message: Message, shape: tuple[int, ...], *maps: int) -> bytes:
    height, width = shape
    if isinstance(message, Result):
        times = message.captured_ns, message.captured_wall_ns, message.published_ns
        frame_id, expires_ns, text = message.frame_id, message.expires_ns, message.level
    else:
        times = message.captured_ns or 0, 0, message.at_ns
        frame_id = NO_FRAME if message.frame_id is None else message.frame_id
        expires_ns, text = 0, message.cause
    source = SOURCES.index(message.age_source) if isinstance(message, Result) else 0
    # At most 47 bytes of text, so that a zero ends it.
    name = text.encode()[:47]
    return FACTS.pack(frame_id, *times, expires_ns, height, width, name, source, *maps)


@dataclass(frozen=True)
class RingEntry:
    """A message as a reader sees it: kind None for a result, whose labels (H, W)
    uint8 are the reader's own; text: the level, or a status' cause; age_source: what the age counts
    from, "" of a status; certified (bool) and confidence (uint8): (H, W), None where the drive did
    not certify. Times in monotonic ns."""

    number: int
    kind: StatusKind | None
    frame_id: int | None
    captured_ns: int
    captured_wall_ns: int
    published_ns: int
    expires_ns: int
    labels: NDArray[np.uint8]
    text: str
    age_source: str = ""
    certified: NDArray[np.bool_] | None = None
    confidence: NDArray[np.uint8] | None = None


class RingReader:
    """The reading side, in another process; it may start before the writer.

    Args:
        path: of the ring, which need not exist yet.

    Raises:
        UsageError: the file is no ring.
    """

    def __init__(self, path: Path):
        self.path = path
        self._inode: int | None = None
        self._map: mmap.mmap | None = None
        self._follow()

    def _follow(self) -> None:
        """Open the file that the name leads to, if it is another one than before."""
        inode = _inode(self.path)
        if inode is None or inode == self._inode:
            return
        with self.path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < HEADER:
                raise UsageError(f"{self.path} is no ring of layout {VERSION}")
            fresh = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            inode = os.fstat(file.fileno()).st_ino
        magic, version, slots, slot_bytes = struct.unpack_from("<8sIIQ", fresh)
        fits = slots and slot_bytes >= SLOT_HEADER and HEADER + slots * slot_bytes <= len(fresh)
        if magic != MAGIC or version != VERSION or not fits:
            raise UsageError(f"{self.path} is no ring of layout {VERSION}")
        self._inode, self._map, self.slots, self.slot_bytes = inode, fresh, slots, slot_bytes

    def latest(self, after: int = 0) -> RingEntry | None:
        """The newest message, if its number is above `after`; None also where there is no ring yet,
        or its newest slot is damaged."""
        self._follow()
        if self._map is None:
            return None
        for _ in range(MOST_READS):
            (number,) = struct.unpack_from("<Q", self._map, 24)
            if number <= after:
                return None
            if (entry := self._read(self._map, number)) is not None:
                return entry
        return None

    def _read(self, memory: mmap.mmap, number: int) -> RingEntry | None:
        """None if the slot is damaged or changed while it was read."""
        start = HEADER + (number - 1) % self.slots * self.slot_bytes
        before, kind, checksum = struct.unpack_from("<QII", memory, start)
        # A copy: everything below is judged on bytes that no longer change.
        slot = memory[start + 16 : start + self.slot_bytes]
        (after,) = struct.unpack_from("<Q", memory, start)
        if not before == after == 2 * number:
            return None
        *numbers, height, width, text, source, held, maps_crc = FACTS.unpack_from(slot)
        frame_id, captured, wall, published, expires = numbers
        body = slot[: FACTS.size + height * width]
        # The CRC leaves out the kind, so it is held against the labels' size.
        if zlib.crc32(body) != checksum or kind >= len(KINDS) or (kind == 0) != (height > 0):
            return None
        labels = np.frombuffer(body, np.uint8, height * width, FACTS.size).reshape(height, width)
        known = None if frame_id == NO_FRAME else frame_id
        name = text.rstrip(b"\0").decode(errors="replace")
        age_source = SOURCES[source] if source < len(SOURCES) else ""
        names = [each for each, bit in MAPS.items() if held & bit]
        behind = slot[len(body) : len(body) + len(names) * labels.size]
        if zlib.crc32(behind) != maps_crc or len(behind) != len(names) * labels.size:
            return None
        planes = np.frombuffer(behind, np.uint8).reshape(-1, height, width) if names else ()
        maps = dict(zip(names, planes, strict=True))
        return RingEntry(
            number, KINDS[kind], known, captured, wall, published, expires, labels, name,
            age_source, maps["certified"] == 255 if "certified" in maps else None,
            maps.get("confidence"),
        )  # fmt: skip

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
