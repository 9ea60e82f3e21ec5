"""A stream whose pictures carry the time as a bar code, over a wire that can be throttled."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

BITS = 40  # of milliseconds
BLOCK = 16  # pixels of a bit's side
ACROSS = 20  # bits of a row
SIZE = 240, 320
MASK = (1 << BITS) - 1


def draw_time(picture: Any, at_ms: int) -> Any:
    """The picture with the time as two rows of bits, each beside its opposite below."""
    for bit in range(BITS):
        on = at_ms >> bit & 1
        row, column = divmod(bit, ACROSS)
        for half, value in ((0, on), (1, 1 - on)):
            top, left = BLOCK * (2 * row + half), BLOCK * column
            picture[top : top + BLOCK, left : left + BLOCK] = 235 * value + 10
    return picture


def read_time(picture: Any) -> int | None:
    """The time in ms; None if a bit and its opposite look alike."""
    found = 0
    for bit in range(BITS):
        row, column = divmod(bit, ACROSS)
        levels = []
        for half in (0, 1):
            top, left = BLOCK * (2 * row + half) + 4, BLOCK * column + 4
            levels.append(float(picture[top : top + 8, left : left + 8].mean()))
        if abs(levels[0] - levels[1]) < 60:
            return None
        found |= int(levels[0] > levels[1]) << bit
    return found


class Throttle:
    """Passes datagrams on from one local port to another, `hold_s` seconds after they came."""

    def __init__(self, from_port: int, to_port: int, hold_s: Callable[[], float]):
        self.hold_s, self.to = hold_s, ("127.0.0.1", to_port)
        self.near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.near.bind(("127.0.0.1", from_port))
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._news = threading.Condition()
        for work in (self._read, self._pass_on):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b" "
        while data:
            try:
                data = self.near.recv(65536)
            except OSError:
                data = b""
            with self._news:
                self._waiting.append((time.monotonic(), data))
                self._news.notify()

    def _pass_on(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._waiting)
                    came, data = self._waiting.popleft()
                if not data:
                    return
                while (left := came + self.hold_s() - time.monotonic()) > 0:
                    time.sleep(min(left, 0.005))
                far.sendto(data, self.to)

    def close(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
            far.sendto(b"", self.near.getsockname())


def send_stream(address: str, kind: str, stopped: threading.Event, rate_hz: float) -> None:
    """Encode pictures that carry the time at which they are made, until stopped.

    kind: FFmpeg's name of the container, "rtp" or "mpegts".
    """
    import av

    container: Any = av.open(address, "w", format=kind)
    try:
        stream = container.add_stream("libx264", rate=round(rate_hz))
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        stream.options = {"preset": "ultrafast", "tune": "zerolatency", "g": "25"}
        stream.codec_context.time_base = Fraction(1, 90_000)
        ground = np.full((*SIZE, 3), 90, np.uint8)
        ground[SIZE[0] // 2 :] = np.random.default_rng(1).integers(0, 255, (120, 320, 3))
        container.start_encoding()
        began = time.monotonic_ns()
        number = 0
        while not stopped.is_set():
            taken = time.monotonic_ns()
            picture = draw_time(np.roll(ground, number, 1), taken // 1_000_000 & MASK)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = (taken - began) * 9 // 100_000, Fraction(1, 90_000)
            for packet in stream.encode(frame):
                container.mux(packet)
            number += 1
            due = began + int(number * 1e9 / rate_hz)
            time.sleep(max(0.0, (due - time.monotonic_ns()) / 1e9))
    except (OSError, av.FFmpegError):
        return  # the receiver is gone
    finally:
        with contextlib.suppress(OSError, av.FFmpegError):
            container.close()


def free_ports() -> int:
    """The first of two free UDP ports, for RTP and its reports."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
        if port % 2 == 0:
            return port


def describe_session(port: int) -> str:
    """An RTP stream to that port, as SDP."""
    return (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=clock\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 packetization-mode=1\n"
    )
