"""The demo's window: on a display that is drawn in memory, and without one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.classes import CAMVID
from rtseg.demo.writers import ESCAPE, NO_KEY, Window

LIMIT_S = 60.0
SCREEN = 480, 640
SHOWN = 3  # the class that the player sees everywhere
PLAYER = f"""
import time
from types import SimpleNamespace
import numpy as np
from rtseg.data.classes import CAMVID
from rtseg.data.frames import Frame
from rtseg.demo.video import Look, demo

class Clip:
    count, fps = 0, 20.0
    def __iter__(self):
        for index in range(10**6):
            yield Frame(np.zeros((120, 160, 3), np.uint8), index, time.monotonic_ns())

def segment(frame):
    return np.full(frame.shape[:2], {SHOWN}, np.uint8)

segment.card = SimpleNamespace(model="fake", size=(120, 160), class_table=CAMVID)
segment.info = SimpleNamespace(precision="fp32", name="none")
segment.label_picture = segment
began = time.monotonic()
frames = demo(Clip(), [segment], None, Look(opacity=1.0)).frames
print(frames, time.monotonic() - began)
"""


@pytest.fixture
def display(tmp_path: Path) -> Iterator[str]:
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: apt-get install xvfb xdotool")
    height, width = SCREEN
    screen = ["-screen", "0", f"{width}x{height}x24", "-fbdir", str(tmp_path)]
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-nolisten", "tcp", *screen],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        yield ":" + server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait(10)


def screen_of(folder: Path) -> np.ndarray[Any, Any]:
    """(H, W, 3) BGR of what Xvfb shows: an XWD file, whose header says where the pixels begin."""
    content = (folder / "Xvfb_screen0").read_bytes()
    header = np.frombuffer(content, ">u4", 25)
    height, width = int(header[5]), int(header[4])
    start, line = int(header[0]) + 12 * int(header[19]), int(header[12])
    rows = np.frombuffer(content, np.uint8, height * line, start).reshape(height, line // 4, 4)
    return rows[:, :width, :3]


def test_it_plays_and_a_key_ends_it(display: str, tmp_path: Path) -> None:
    player = subprocess.Popen(
        [sys.executable, "-c", PLAYER],
        env=os.environ | {"DISPLAY": display},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        color, end = CAMVID.palette[SHOWN][::-1], time.monotonic() + LIMIT_S
        while np.mean((screen_of(tmp_path) == color).all(axis=2)) < 0.03:
            assert player.poll() is None, player.communicate()[1]
            assert time.monotonic() < end, "the picture never came"
            time.sleep(0.2)
        time.sleep(1)
        subprocess.run(["xdotool", "key", "q"], env={"DISPLAY": display}, check=True, timeout=30)
        stdout, stderr = player.communicate(timeout=LIMIT_S)
    finally:
        player.kill()
    frames, seconds = stdout.split()
    assert 2 <= int(frames) <= 21 * float(seconds) + 2  # no faster than the clip's 20 Hz
    assert stderr == ""


class Keys:
    """cv2's window functions with a hand on the keyboard."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *pressed: int):
        self.pressed, self.waited, self.open = list(pressed), 0, True
        for name in ("namedWindow", "resizeWindow", "imshow", "destroyAllWindows"):
            monkeypatch.setattr(cv2, name, lambda *arguments: None)
        monkeypatch.setattr(cv2, "waitKey", self.key)
        monkeypatch.setattr(cv2, "getWindowProperty", lambda *arguments: float(self.open))
        monkeypatch.setattr("rtseg.demo.writers.has_display", lambda: True)

    def key(self, limit_ms: int) -> int:
        assert limit_ms > 0  # 0 would wait for ever, window or not
        self.waited += 1
        return self.pressed.pop(0) if self.pressed else NO_KEY


PICTURE = np.zeros((4, 6, 3), np.uint8)


@pytest.mark.parametrize("key", [ord("q"), ESCAPE])
def test_q_and_escape_end_it(key: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Keys(monkeypatch, NO_KEY, key)
    window = Window(1000)
    assert window.add(PICTURE)
    assert not window.add(PICTURE)


def test_closing_it_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(monkeypatch)
    window = Window(1000)
    assert window.add(PICTURE)
    keys.open = False
    assert not window.add(PICTURE)


def test_space_halts_until_the_next_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(monkeypatch, ord(" "), NO_KEY, NO_KEY, ord(" "))
    window = Window(1000)
    assert window.add(PICTURE)
    assert keys.waited == 4


def test_a_single_picture_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(monkeypatch, NO_KEY, NO_KEY, NO_KEY, ord("x"))
    window = Window(1000)
    window.add(PICTURE)
    window.finish()
    assert keys.waited == 4
    window.add(PICTURE)
    window.finish()  # a clip's last picture does not
    assert keys.waited == 5
