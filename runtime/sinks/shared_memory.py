"""The latest results in shared memory, for another process in any language.

The file (best on /dev/shm) is little-endian. It starts with a header of 64 bytes:

    offset  type    what
    0       8 bytes "RTSEGRNG"
    8       uint32  version of this layout, 1
    12      uint32  slots
    16      uint64  bytes of a slot, its header included
    24      uint64  messages written so far; the newest is in slot (count - 1) % slots

Slots follow, each with a header of 128 bytes and then the labels, row by row, uint8:

    0       uint64  sequence: odd while the slot is written; 2 x the message's number, from 1, after
    8       uint32  kind: 0 result, 1 LATE, 2 STALE, 3 LOST
    12      uint32  CRC-32 (zlib) of the slot's bytes 16 to 128 + height x width
    16      uint64  frame id, 2^64 - 1 for a status without a frame
    24      uint64  captured, CLOCK_MONOTONIC ns; 0 where unknown
    32      uint64  captured, ns since 1970; 0 where unknown
    40      uint64  published, CLOCK_MONOTONIC ns
    48      uint64  do not use the mask after this CLOCK_MONOTONIC ns
    56      uint32  height, 0 for a status
    60      uint32  width
    64      64 bytes the level's name (result) or the cause (status), UTF-8, ended by zeros

A reader copies the slot, then checks that the sequence is the same even number before and after and
that the CRC is right; else the writer came round meanwhile, and it reads the newest slot again.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError
from ..drive.messages import Message, Result, StatusKind

MAGIC, VERSION = b"RTSEGRNG", 1
HEADER, SLOT_HEADER = 64, 128
FACTS = struct.Struct("<QQQQQII64s")  # from the slot's byte 16 on
KINDS = (None, StatusKind.LATE, StatusKind.STALE, StatusKind.LOST)
NO_FRAME = (1 << 64) - 1


class Ring:
    """The writing side, a sink. The file is made anew for a result that does not fit, so at the
    first one too; messages are counted on, and readers open it again by its name."""

    name = "shared-memory ring"

    def __init__(self, path: Path, slots: int = 4):
        if slots < 2:
            raise UsageError(f"a ring has at least 2 slots, not {slots}")
        self.path, self.slots = path, slots
        self._map: mmap.mmap | None = None
        self._room = 0
        self._count = 0

    def __call__(self, message: Message) -> None:
        labels = message.labels if isinstance(message, Result) else np.empty((0, 0), np.uint8)
        if self._map is None or labels.size > self._room:
            self._make(labels.size)
        assert self._map is not None
        start = HEADER + self._count % self.slots * (SLOT_HEADER + self._room)
        body = _facts(message, labels.shape) + labels.tobytes()
        number = self._count + 1
        struct.pack_into("<Q", self._map, start, 2 * number - 1)
        self._map[start + 16 : start + 16 + len(body)] = body
        kind = 0 if isinstance(message, Result) else KINDS.index(message.kind)
        struct.pack_into("<II", self._map, start + 8, kind, zlib.crc32(body))
        struct.pack_into("<Q", self._map, start, 2 * number)
        self._count = number
        struct.pack_into("<Q", self._map, 24, number)

    def _make(self, room: int) -> None:
        """A new file in the old one's place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            os.ftruncate(handle, HEADER + self.slots * (SLOT_HEADER + room))
            self._map, self._room = mmap.mmap(handle, 0), room
            layout = struct.pack("<IIQQ", VERSION, self.slots, SLOT_HEADER + room, self._count)
            self._map[:32] = MAGIC + layout
            os.replace(temporary, self.path)
        finally:
            os.close(handle)

    def close(self) -> None:
        self.path.unlink(missing_ok=True)


def _facts(message: Message, shape: tuple[int, ...]) -> bytes:
    height, width = shape
    if isinstance(message, Result):
        times = message.captured_ns, message.captured_wall_ns, message.published_ns
        frame_id, expires_ns, text = message.frame_id, message.expires_ns, message.level
    else:
        times = message.captured_ns or 0, 0, message.at_ns
        frame_id = NO_FRAME if message.frame_id is None else message.frame_id
        expires_ns, text = 0, message.cause
    return FACTS.pack(frame_id, *times, expires_ns, height, width, text.encode()[:63])


@dataclass(frozen=True)
class RingEntry:
    """A message as a reader sees it: number from 1; kind None for a result, whose labels (H, W)
    uint8 are the reader's own; text: the level, or a status' cause. Times in monotonic ns."""

    number: int
    kind: StatusKind | None
    frame_id: int | None
    captured_ns: int
    captured_wall_ns: int
    published_ns: int
    expires_ns: int
    labels: NDArray[np.uint8]
    text: str


class RingReader:
    """The reading side, in another process. Raises ValueError if the file is no ring, OSError if
    there is none."""

    def __init__(self, path: Path):
        self.path = path
        self._open()

    def _open(self) -> None:
        path = self.path
        with path.open("rb") as file:
            self._file = os.fstat(file.fileno()).st_ino
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, self.slots, self.slot_bytes = struct.unpack_from("<8sIIQ", self._map)
        if magic != MAGIC or version != VERSION:
            raise UsageError(f"{path} is no ring of layout {VERSION}")

    def latest(self, after: int = 0) -> RingEntry | None:
        """The newest message, if its number is above `after`."""
        if self.path.exists() and self.path.stat().st_ino != self._file:
            self._open()
        while True:
            (count,) = struct.unpack_from("<Q", self._map, 24)
            if count <= after or self._blank(count):
                return None
            start = HEADER + (count - 1) % self.slots * self.slot_bytes
            entry = self._read(start, count)
            if entry is not None:
                return entry

    def _blank(self, count: int) -> bool:
        """Whether the newest message was written into the file that this one replaced."""
        start = HEADER + (count - 1) % self.slots * self.slot_bytes
        return bool(struct.unpack_from("<Q", self._map, start)[0] == 0)

    def _read(self, start: int, number: int) -> RingEntry | None:
        """None if the slot changed while it was read."""
        before, kind, checksum = struct.unpack_from("<QII", self._map, start)
        slot = self._map[start + 16 : start + self.slot_bytes]
        (after,) = struct.unpack_from("<Q", self._map, start)
        if not before == after == 2 * number:
            return None
        frame_id, captured, wall, published, expires, height, width, text = FACTS.unpack_from(slot)
        body = slot[: FACTS.size + height * width]
        if zlib.crc32(body) != checksum:
            return None
        labels = np.frombuffer(body, np.uint8, height * width, FACTS.size).reshape(height, width)
        known = None if frame_id == NO_FRAME else frame_id
        name = text.rstrip(b"\0").decode(errors="replace")
        return RingEntry(
            number, KINDS[kind], known, captured, wall, published, expires, labels, name
        )

    def close(self) -> None:
        self._map.close()
