"""Network streams by PyAV: pictures that carry the time, over a wire that is held up."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from rtseg.data import camera, network_stream
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
    with pytest.raises(OSError, match="is its address right, and is it on") as told:
        next(iter(Camera("tcp://127.0.0.1:9")))
    assert str(told.value).count("tcp://127.0.0.1:9") == 1


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Ten pictures in H.264."""
    av = pytest.importorskip("av", reason='needs PyAV: pip install "rtseg[av]"')
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        video = file.add_stream("h264", rate=10)
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        video.gop_size = 1  # each stands for itself: the first packets of a file may be left out
        video.options = {"tune": "zerolatency"}  # else the decoder keeps pictures back
        for level in range(0, 200, 20):
            picture = np.full((240, 320, 3), level, np.uint8)
            file.mux(video.encode(av.VideoFrame.from_ndarray(picture, "bgr24")))
        file.mux(video.encode())
    return path


def read(source: network_stream.NetworkStream) -> tuple[list[Any], str]:
    """The frames up to the end, and how that is told."""
    found = []
    with pytest.raises(OSError, match=r"clip\.mp4") as told:  # noqa: PT012
        for frame in source:
            found.append(frame)
    return found, str(told.value)


def test_a_gpu_that_does_not_decode_is_done_without(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from av.codec.hwaccel import HWAccel

    plain, _ = read(network_stream.NetworkStream(str(clip)))
    assert len(plain) >= 9
    # CUDA has no driver here; DRM is known to this FFmpeg and does not decode this codec.
    for kind in ("cuda", "drm"):
        decoder = HWAccel(kind, allow_software_fallback=True)
        monkeypatch.setattr(network_stream, "find_decoder", lambda decoder=decoder: decoder)
        source = network_stream.NetworkStream(str(clip))
        found, _ = read(source)
        assert all(np.array_equal(a.image, b.image) for a, b in zip(plain, found, strict=True))
        assert not source.on_gpu


def test_a_gpu_that_fails_while_it_decodes_is_left_for_software(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import av

    class Packet:
        def __init__(self, packet: Any) -> None:
            self.pts = packet.pts

        def decode(self) -> list[Any]:
            raise av.error.ExternalError(542398533, "Generic error in an external library")

    stream_class, queue = network_stream.NetworkStream, network_stream._PacketQueue
    source = stream_class(str(clip))
    monkeypatch.setattr(stream_class, "_is_on_gpu", lambda self, video: self.on_gpu)
    monkeypatch.setattr(
        network_stream,
        "_PacketQueue",
        lambda container, video: Refusing(queue(container, video), source, Packet),
    )
    found, told = read(source)
    assert (len(found), told) == (2, f"{clip}: the GPU does not decode it")
    assert not source.on_gpu
    found, _ = read(source)
    assert len(found) >= 9


@pytest.mark.parametrize(("version", "decodes"), [("17.1.0", False), ("18.0.0", True)])
def test_a_pyav_that_loses_a_pictures_flags_gets_no_gpu(
    version: str, decodes: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a picture would pass for a whole one."""
    av = pytest.importorskip("av", reason='needs PyAV: pip install "rtseg[av]"')
    monkeypatch.setattr("av.codec.hwaccel.hwdevices_available", lambda: ["cuda"])
    monkeypatch.setattr(network_stream, "gpus", lambda: ["one"])
    monkeypatch.setattr(av, "__version__", version)
    network_stream.warn_of_pyav.cache_clear()  # which is said once, by whatever ran before
    assert (network_stream.find_decoder() is not None) == decodes
    assert ('pip install "av>=18"' in caplog.text) != decodes
    monkeypatch.setattr(network_stream, "gpus", list)
    monkeypatch.setattr(network_stream, "Path", lambda name: Path("/nowhere"))
    caplog.clear()
    assert network_stream.find_decoder() is None
    assert not caplog.text


class Refusing:
    """A queue whose packets no GPU decodes."""

    waiting = 0

    def __init__(self, queue: Any, source: Any, packet: Any) -> None:
        self.queue, self.source, self.packet, self.stop = queue, source, packet, queue.stop

    @property
    def ended(self) -> str:
        return str(self.queue.ended)

    def __iter__(self) -> Any:
        for packet, received in self.queue:
            yield (self.packet(packet) if self.source.on_gpu else packet), received


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
