"""A process without file descriptors goes on: its drive, its ports and its reports."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rtseg.data.descriptors import DescriptorReserve
from rtseg.data.files import write_atomically
from rtseg.errors import WriteError

DRIVE = """
import os, resource, sys, threading
from pathlib import Path
import numpy as np
from rtseg.data.frames import Frame
from rtseg.data.classes import CAMVID
from rtseg.demo.live import LivePage
from rtseg.demo.web import Server
from rtseg.runtime import Drive, Result
from rtseg.runtime.drive.health_server import HealthPoint
from rtseg.runtime.drive.report import write_report
from rtseg.runtime.sinks.label_files import LabelPngs
import time

out = Path(sys.argv[1])

def frames():
    index = 0
    while True:
        time.sleep(0.01)
        yield Frame(np.zeros((8, 16, 3), np.uint8), index, time.monotonic_ns())
        index += 1

page, seen = LivePage(CAMVID, "none"), []
health = HealthPoint(0)
drive = Drive(frames(), lambda image: image[:, :, 0], [page, seen.append], health=health)

def watch():
    while len(seen) < 5:
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
    try:
        while True:
            os.open(os.devnull, os.O_RDONLY)  # something leaks
    except OSError:
        print(health.port, server.port, len(seen), flush=True)
    sys.stdin.readline()
    print(len(seen), flush=True)
    drive.stop()

threading.Thread(target=watch, daemon=True).start()
with Server(page, port=0) as server:
    done = drive.run(60)
    write_report(out / "report.json", done)
print("written", flush=True)
"""


def ask(port: int, path: str) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as line:
        line.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while more := line.recv(1 << 16):
                answer += more
        return answer


def test_a_drive_without_descriptors_answers_and_reports(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    words = [sys.executable, "-c", DRIVE, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, text=True, **pipes) as process:  # type: ignore[call-overload]
        health, page, before = map(int, process.stdout.readline().split())
        # Connections that say nothing keep nobody out, and what is in reserve is used again.
        idle = [socket.create_connection(("127.0.0.1", health), 5) for _ in range(12)]
        for _ in range(12):
            assert b" 200 " in ask(health, "/health").splitlines()[0]
        assert b" 503 " in ask(page, "/status").splitlines()[0]  # at once, and not never
        for each in idle:
            each.close()
        said, errors = process.communicate("stop\n", 30)
    assert said.split()[1:] == ["written"], errors
    assert int(said.split()[0]) > before  # it went on
    assert json.loads((tmp_path / "report.json").read_text())["ended"] == "stop()"


@pytest.fixture
def none_left() -> Iterator[DescriptorReserve]:
    """A reserve in a process that has no descriptor besides."""
    reserve = DescriptorReserve()
    reserve.hold()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    taken = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield reserve
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def count_open() -> int:
    """How many descriptors could be opened."""
    taken: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for each in taken:
        os.close(each)
    return len(taken)


def test_two_descriptors_are_lent_and_taken_back(none_left: DescriptorReserve) -> None:
    assert count_open() == 0
    with none_left.lend():
        assert count_open() == 2
        with none_left.lend():  # within another, it does not take back what that was lent
            assert count_open() == 2
    assert count_open() == 0


def test_a_reserve_fills_up_when_there_are_descriptors(none_left: DescriptorReserve) -> None:
    with none_left.lend():
        kept = os.open(os.devnull, os.O_RDONLY)
    with none_left.lend():
        assert count_open() == 2
    os.close(kept)
    assert count_open() == 1
    none_left.hold()
    assert count_open() == 0


def test_without_any_in_reserve_a_file_is_one_line(
    none_left: DescriptorReserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rtseg.data.files.RESERVE", DescriptorReserve())
    with pytest.raises(WriteError, match="no file descriptors left"):
        write_atomically(tmp_path / "report.json", b"{}")
    monkeypatch.setattr("rtseg.data.files.RESERVE", none_left)
    write_atomically(tmp_path / "report.json", b"{}")
    with none_left.lend():
        assert (tmp_path / "report.json").read_bytes() == b"{}"
