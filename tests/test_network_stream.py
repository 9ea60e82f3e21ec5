"""Network streams by PyAV: pictures that carry the time, over a wire that is held up."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from rtseg.data import camera
from rtseg.data.camera import Camera, is_camera
from rtseg.data.frames import Frame
from rtseg.errors import MissingPackage

stream, rtsp = load_script("barcode_stream"), load_script("rtsp_stream")


@pytest.mark.parametrize("at_ms", [0, 1, 0x5A5A5A5A5A, (1 << 40) - 1])
def test_a_bar_code_can_be_read_again(at_ms: int) -> None:
    picture = np.full((*stream.SIZE, 3), 90, np.uint8)
    assert stream.read_time(picture) is None
    noise = np.random.default_rng(0).normal(0, 20, picture.shape)
    drawn = stream.draw_time(picture, at_ms) + noise
    assert stream.read_time(np.clip(drawn, 0, 255).astype(np.uint8)) == at_ms


def test_a_session_needs_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_camera("front.sdp")
    monkeypatch.setattr(camera, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"\[av\]"):
        iter(Camera("front.sdp"))


def test_a_stream_that_is_not_there_says_so() -> None:
    pytest.importorskip("av", reason='needs PyAV: pip install "rtseg[av]"')
    with pytest.raises(OSError, match="is its address right, and is it on"):
        next(iter(Camera("tcp://127.0.0.1:9")))


@pytest.mark.parametrize("transport", ["rtp", "rtsp"])
def test_the_age_is_what_the_clock_in_the_picture_says(tmp_path: Path, transport: str) -> None:
    """Over RTP, by itself and in an RTSP session: sender reports tell the sender's clock, on time
    and held up by 2 s. What is compared was taken at one moment, so that a busy machine makes
    frames late but no age wrong."""
    pytest.importorskip("av", reason='needs PyAV: pip install "rtseg[av]"')
    near, far = stream.free_ports(), stream.free_ports()
    held = [0.0]
    relays = [stream.Throttle(near + i, far + i, lambda: held[0]) for i in (0, 1)]
    session = tmp_path / "clock.sdp"
    session.write_text(stream.describe_session(far))
    server = rtsp.RtspServer(far, session.read_text()) if transport == "rtsp" else None
    stopped = threading.Event()
    arguments = f"rtp://127.0.0.1:{near}?pkt_size=1316", "rtp", stopped, 15.0
    threading.Thread(target=stream.send_stream, args=arguments, daemon=True).start()
    try:
        found = [_compare(frame) for frame in _some(server.address if server else session, held)]
    finally:
        stopped.set()
        for relay in relays:
            relay.close()
        if server is not None:
            server.close()
    ages = [(told, shown) for told, shown, source in found if source == "sender"]
    assert len(ages) > 0.8 * len(found)  # until the first report there is no sender's time
    assert max(shown for _, shown in ages) > 2000
    assert abs(np.median([told - shown for told, shown in ages])) < 20


def _some(session: Path | str, held: list[float]) -> list[Frame]:
    """Frames on time, and until they are late."""
    found: list[Frame] = []
    for _ in range(20):  # a session is opened until there is a sender
        try:
            for item in Camera(str(session)):
                if not isinstance(item, Frame):
                    continue
                found.append(item)
                held[0] = 0.0 if len(found) < 20 else min(2.1, held[0] + 0.1)
                if len(found) == 70:
                    return found
        except OSError:
            continue
    return found


def _compare(frame: Frame) -> tuple[float, float, str]:
    """The age in ms that is told and that the picture shows, when its data came; and the source."""
    shown: Any = stream.read_time(frame.image)
    assert shown is not None
    assert frame.received_ns is not None
    shown_ms = (frame.received_ns // 1_000_000 - shown) & stream.MASK
    return (frame.received_ns - frame.captured_ns) / 1e6, float(shown_ms), frame.age_source
