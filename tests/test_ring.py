"""The ring of masks in shared memory: read by other processes, whatever happens to its writer."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest
from made_messages import result, status
from rtseg.errors import UsageError
from rtseg.runtime.drive.messages import StatusKind
from rtseg.runtime.sinks.shared_memory import Ring, RingReader
from simulated import SECOND


def test_the_ring_gives_the_newest_to_another_process(tmp_path: Path) -> None:
    path = tmp_path / "labels.ring"
    ring = Ring(path)
    for frame_id in range(6):
        ring(result(frame_id, 1000 + frame_id))
    code = """
import sys
from pathlib import Path
from rtseg.runtime.sinks.shared_memory import RingReader
entry = RingReader(Path(sys.argv[1])).latest()
print(entry.frame_id, entry.captured_ns, entry.text, entry.labels.shape,
      entry.labels[0, 0], entry.labels[5, 5])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "5 1005 nano 48x64 (48, 64) 6 5"


def test_the_ring_as_documented(tmp_path: Path) -> None:
    """Offsets by hand, as a reader in another language would take them."""
    path = tmp_path / "labels.ring"
    ring = Ring(path, slots=3)
    before = ring._number
    reader = RingReader(path)  # which may start first
    assert reader.latest() is None
    for frame_id in range(5):
        ring(result(frame_id, 1000 + frame_id))
        entry = reader.latest()
        assert entry is not None
        assert (entry.labels == result(frame_id).labels).all()
    newest = before + 5
    assert reader.latest(after=newest) is None
    content = path.read_bytes()
    magic, version, slots, slot, number = struct.unpack_from("<8sIIQQ", content)
    assert (magic, version, slots, slot, number) == (b"RTSEGRNG", 1, 3, 128 + 48 * 64, newest)
    start = 64 + (newest - 1) % 3 * slot
    assert struct.unpack_from("<QI", content, start) == (2 * newest, 0)
    wanted = 4, 1004, result(4).captured_wall_ns, 1004 + 6_500_000, 1004 + SECOND // 2, 48, 64
    assert struct.unpack_from("<QQQQQII", content, start + 16) == wanted
    assert content[start + 64 : start + 74] == b"nano 48x64"
    assert content[start + 128] == 5


def test_the_ring_tells_statuses_and_grows(tmp_path: Path) -> None:
    path = tmp_path / "labels.ring"
    ring = Ring(path)
    ring(status(StatusKind.LOST))
    reader = RingReader(path)
    entry = reader.latest()
    assert entry is not None
    assert (entry.kind, entry.frame_id, entry.text) == (StatusKind.LOST, None, "camera")
    ring(result(1))
    ring(result(2, size=(96, 128)))
    grown = reader.latest(after=entry.number)
    assert grown is not None
    assert grown.number == entry.number + 2
    assert (grown.labels.shape, grown.kind) == ((96, 128), None)
    ring.close()
    assert not path.exists()


def test_a_damaged_slot_is_not_believed_and_costs_no_time(tmp_path: Path) -> None:
    path = tmp_path / "labels.ring"
    ring = Ring(path)
    ring(result(1))
    reader = RingReader(path)
    assert reader.latest() is not None
    assert ring._map is not None
    slot = 64 + (ring._number - 1) % 4 * (128 + 48 * 64)
    for at in (slot + 128 + 7, slot + 8, slot + 1):  # a label, the kind, the sequence
        ring._map[at] ^= 3
        assert reader.latest() is None  # it spun for ever
        ring._map[at] ^= 3
    assert reader.latest() is not None
    for content in (bytes(64), b"RTSEGRNG", ring._map[:12] + bytes(52)):  # the last has no slots
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(UsageError, match="is no ring"):
            RingReader(tmp_path / "other")


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "labels.ring"
    first = Ring(path)
    for frame_id in range(9):
        first(result(frame_id))
    reader = RingReader(path)
    last = reader.latest()
    assert last is not None
    first.close()
    again = Ring(path)
    again(result(3))
    entry = reader.latest(after=last.number)  # a count from 1 was below it
    assert entry is not None
    assert entry.frame_id == 3
    again.close()


def test_a_ring_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "labels.ring"
    first = Ring(path)
    second = Ring(path)  # before there is a file to see
    first(result(1))
    with pytest.raises(OSError, match="another process writes this ring"):
        Ring(path)
    second(result(2))
    first.close()  # not the first one's file any more
    entry = RingReader(path).latest()
    assert entry is not None
    assert entry.frame_id == 2
    path.unlink()  # by whoever tidies up /dev/shm
    second(result(3))
    entry = RingReader(path).latest()
    assert entry is not None
    assert entry.frame_id == 3


def test_a_full_file_system_fails_the_ring_and_nothing_else(small_disk: Path) -> None:
    """Writing to the mapping of a sparse file there ended the process with SIGBUS."""
    code = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from made_messages import result
from rtseg.runtime.sinks.shared_memory import Ring
ring = Ring(Path(sys.argv[2]) / "labels.ring")
ring(result(0))
try:
    ring(result(1, size=(1024, 2048)))
except OSError as error:
    print(error)
ring(result(2))
print(sorted(path.name for path in Path(sys.argv[2]).iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(small_disk)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    error, left = done.stdout.splitlines()
    assert error.startswith(f"cannot write {small_disk}/labels.ring: the disk is full")
    assert left == "['labels.ring']"
