"""Network streams read packet by packet with PyAV, which tells the times that OpenCV hides."""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..gpu import gpus
from .frames import Frame, Unreadable
from .limits import check_limit
from .stamp_clock import Placed, StampClock

OPEN_LIMIT_S = 3.0
READ_LIMIT_S = 1.0
MOST_PACKETS = 300  # that may wait to be decoded; more are skipped up to the newest key frame
MOST_REFUSED = 3  # packets by a GPU's decoder that gave no picture yet
FIRST_WITH_FLAGS = 18  # PyAV's version
MOST_UNDER_WAY = 64  # packets whose pictures a decoder may still hold
OPTIONS = {
    "rtsp_transport": "tcp",
    "fflags": "nobuffer",
    "flags": "low_delay",
    "max_delay": "100000",  # microseconds that a lost packet of RTP holds up those behind it
    "protocol_whitelist": "file,udp,rtp,tcp,tls,http,https,httpproxy,crypto,rtmp,srt",
}
SENDER_TIME = struct.Struct("<q")  # AVProducerReferenceTime: microseconds since 1970, then flags


log = logging.getLogger("rtseg")


@dataclass(frozen=True)
class Received:
    """A packet's times: when it came, monotonic, and when its sender says that it was taken, since
    1970; None where the sender does not say."""

    at_ns: int
    sender_ns: int | None


class NetworkStream:
    """A stream by its address, as an iterable of Frames; each iteration opens it anew.

    A thread takes packets as they come, so that what waits is known, and each picture keeps the
    time at which its data came. Ages count from the sender's clock where the stream carries it (the
    sender reports of RTP), as long as that can be compared with this machine's, else from arrival
    with the lag by the stream's own times, see `StampClock`. A picture that the decoder calls
    damaged gives an Unreadable. A GPU decodes where `find_decoder` finds one, as long as it does.

    Args:
        where: its address.
        options: of FFmpeg, beside OPTIONS.

    Iterating raises OSError if it cannot be opened, ends, or gives nothing for a second.
    """

    def __init__(self, where: str, options: Mapping[str, str] | None = None):
        self.where, self.options = where, OPTIONS | dict(options or {})
        self.on_gpu = True

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        container = self._open()
        try:
            if not container.streams.video:
                raise OSError(f"{self.where} has no video")
            stream = container.streams.video[0]
            check_limit("video_pixels", stream.width * stream.height, f"a frame of {self.where}")
            stream.codec_context.flags |= 1 << 19  # AV_CODEC_FLAG_LOW_DELAY
            self.on_gpu = self._is_on_gpu(stream)
            yield from self._decode(_PacketQueue(container, stream), stream)
        finally:
            container.close()

    def _is_on_gpu(self, stream: Any) -> bool:
        """A codec that the GPU does not know is decoded in software."""
        return bool(stream.codec_context.is_hwaccel)

    def _open(self) -> Any:
        import av

        # A driver that is broken shows when the decoder is made, which is here.
        decoders = [find_decoder(), None] if self.on_gpu else [None]
        for decoder in decoders:
            try:
                limits = OPEN_LIMIT_S, READ_LIMIT_S
                return av.open(self.where, options=self.options, timeout=limits, hwaccel=decoder)
            except (av.FFmpegError, OSError) as error:
                if decoder is None:
                    why = error.strerror or error  # FFmpeg's whole text has the address again
                    raise OSError(
                        f"the camera {self.where} cannot be opened ({why}): is its address right, "
                        "and is it on?"
                    ) from error
        raise AssertionError(decoders)

    def _decode(self, packets: _PacketQueue, stream: Any) -> Iterator[Frame | Unreadable]:
        import av

        numbers, clocks = count(), (StampClock("wall", "sender"), StampClock("own", "sender"))
        under_way: OrderedDict[int | None, Received] = OrderedDict()
        refused = 0
        try:
            for packet, received in packets:
                under_way[packet.pts] = received
                while len(under_way) > MOST_UNDER_WAY:
                    under_way.popitem(last=False)
                try:
                    pictures = packet.decode()
                except av.FFmpegError as error:
                    refused += 1
                    if self.on_gpu and refused >= MOST_REFUSED:
                        self.on_gpu = False  # from the next opening on
                        log.warning("the GPU does not decode the stream: software does from now on")
                        raise OSError(f"{self.where}: the GPU does not decode it") from error
                    yield Unreadable(f"{next(numbers):08d}", f"{self.where} sent {error}")
                    continue
                refused = 0 if pictures else refused
                for picture in pictures:
                    times = under_way.pop(picture.pts, received)
                    number = next(numbers)
                    if picture.is_corrupt:
                        text = f"{self.where} sent a picture that is damaged"
                        yield Unreadable(f"{number:08d}", text)
                        continue
                    placed = _place(picture, times, *clocks)
                    yield _frame(picture, number, times, placed, packets.waiting)
        finally:
            packets.stop()
        raise OSError(f"the camera {self.where} gives no frames: {packets.ended}")


@cache
def warn_of_pyav(version: str) -> None:
    """Once, however often the stream is opened."""
    log.warning(
        "software decodes the stream: PyAV %s does not tell which pictures of a GPU are damaged; "
        'pip install "av>=%d"', version, FIRST_WITH_FLAGS,
    )  # fmt: skip


def find_decoder() -> Any | None:
    """FFmpeg's decoder of a GPU here, of NVIDIA's or of one that VAAPI reaches, if this PyAV knows
    it; a codec that it does not know, software decodes. A PyAV that would not say which of a GPU's
    pictures are damaged is given none, and a warning says so."""
    import av
    from av.codec.hwaccel import HWAccel, hwdevices_available

    here = {"cuda": bool(gpus()), "vaapi": Path("/dev/dri/renderD128").exists()}
    known = hwdevices_available()
    kind = next((each for each, there in here.items() if there and each in known), None)
    if kind is None:
        return None
    # Earlier ones lose a picture's flags on its way from the GPU (PyAV-Org/PyAV#2321).
    if int(av.__version__.partition(".")[0]) < FIRST_WITH_FLAGS:
        warn_of_pyav(av.__version__)
        return None
    return HWAccel(kind, allow_software_fallback=True)


def _place(picture: Any, times: Received, of_sender: StampClock, own: StampClock) -> Placed:
    if times.sender_ns is not None:
        return of_sender.place(times.sender_ns, times.at_ns)
    if picture.pts is None:
        return Placed(times.at_ns, "arrival")
    return own.place(round(picture.pts * picture.time_base * 1_000_000_000), times.at_ns)


def _frame(picture: Any, number: int, times: Received, placed: Placed, waiting: int) -> Frame:
    return Frame(
        np.asarray(picture.to_ndarray(format="bgr24"), np.uint8),
        number,
        placed.captured_ns,
        f"{number:08d}",
        age_source=placed.age_source,
        received_ns=times.at_ns,
        notice=placed.notice,
        waiting=waiting,
    )


class _PacketQueue:
    """Packets as they come, taken by a thread, so that none waits where its time is not known."""

    def __init__(self, container: Any, stream: Any):
        self.ended = ""
        self._waiting: deque[tuple[Any, Received]] = deque()
        self._news = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(
            target=self._run, args=(container, stream), name="packets", daemon=True
        )
        self._thread.start()

    def _run(self, container: Any, stream: Any) -> None:
        why = "it ended"
        try:
            for packet in container.demux(stream):
                now = time.monotonic_ns()
                if self._stopped:
                    return
                if packet.size:
                    with self._news:
                        self._waiting.append((packet, Received(now, _sender_time(packet))))
                        self._news.notify()
        except Exception as error:  # of FFmpeg: a time limit, a connection that broke
            why = str(error)
        finally:
            with self._news:
                self.ended = why
                self._news.notify()

    def __iter__(self) -> Iterator[tuple[Any, Received]]:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self.ended)
                if not self._waiting:
                    return
                if len(self._waiting) > MOST_PACKETS:
                    self._skip()
                taken = self._waiting.popleft()
            yield taken

    @property
    def waiting(self) -> int:
        """Packets that have come and were not taken yet."""
        return len(self._waiting)

    def _skip(self) -> None:
        """Leave out what cannot be decoded in time: up to the newest picture that needs none."""
        places = [i for i, (packet, _) in enumerate(self._waiting) if packet.is_keyframe]
        for _ in range(places[-1] if places else 0):
            self._waiting.popleft()

    def stop(self) -> None:
        """Wait for the thread, which may be in a read for up to `READ_LIMIT_S`: the container must
        not be closed under it."""
        self._stopped = True
        self._thread.join(2 * READ_LIMIT_S)


def _sender_time(packet: Any) -> int | None:
    if not packet.has_sidedata("prft"):
        return None
    (microseconds,) = SENDER_TIME.unpack_from(bytes(packet.get_sidedata("prft")))
    return int(microseconds) * 1000
