"""Live cameras: V4L2, network streams, GStreamer pipelines."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import MissingPackage, UsageError
from .camera_formats import CameraFormat, Size, check_format, frame_shape
from .frames import Frame, Unreadable, check_capture
from .network_stream import NetworkStream
from .ros.links import is_ros_address
from .stamp_clock import Placed, StampClock

STREAMS = ("rtsp://", "rtsps://", "rtmp://", "http://", "https://", "udp://", "srt://", "tcp://")
SESSION = ".sdp"  # a file that describes an RTP stream
OPEN_LIMIT_MS = 3000  # of a network stream; OpenCV's own limits are half a minute
READ_LIMIT_MS = 1000
LONGEST_MS = 1e15  # of a stamp
V4L2_CODES: dict[CameraFormat, str] = {
    "nv12": "NV12", "nv21": "NV21", "yuyv": "YUYV", "uyvy": "UYVY",
    "bayer_rggb": "RGGB", "bayer_bggr": "BA81", "bayer_gbrg": "GBRG", "bayer_grbg": "GRBG",
}  # fmt: skip


TO_BGR = {"mjpeg": "MJPG"} | {name: V4L2_CODES[name] for name in ("yuyv", "uyvy", "nv12")}


@dataclass(frozen=True)
class DriverWish:
    """What a V4L2 driver is asked for, whose pictures OpenCV brings to BGR: size (height, width) in
    pixels, code of four letters, Hz; None for what the driver likes."""

    size: Size | None = None
    code: str | None = None
    rate: float | None = None

    @classmethod
    def parse(cls, text: str) -> DriverWish:
        """Of "size=1080x1920&format=mjpeg&rate=30".

        Raises:
            UsageError: it asks for something else.
        """
        told = dict(each.partition("=")[::2] for each in filter(None, text.split("&")))
        size = code = rate = None
        try:
            if "size" in told:
                height, width = map(int, told.pop("size").split("x"))
                size = height, width
            if "format" in told:
                code = TO_BGR[told.pop("format")]
            if "rate" in told:
                rate = float(told.pop("rate"))
                if not 0 < rate < 1000:
                    raise ValueError
        except (KeyError, ValueError):
            told = {text: ""}
        if told:
            raise UsageError(
                f"a camera is asked for size=HxW, rate=HZ and format={'|'.join(TO_BGR)}, joined by "
                f"&, not for {text!r}"
            )
        return cls(size, code, rate)

    def ask(self, capture: cv2.VideoCapture, where: str) -> None:
        """Ask the driver of `capture`.

        Raises:
            OSError: it has another size or format.
        """
        if self.code:
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*self.code))
        if self.size:
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[0])
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[1])
        if self.rate:
            capture.set(cv2.CAP_PROP_FPS, self.rate)
        sides = (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)
        height, width = (int(capture.get(side)) for side in sides)
        code = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1")
        if (self.size or (height, width), self.code or code) != ((height, width), code):
            raise OSError(
                f"the camera {where} gives {height}x{width} in {code}: "
                f"`v4l2-ctl -d {where.partition('?')[0]} --list-formats-ext` lists what it has"
            )


class Camera:
    """A camera as an iterable of Frames; each iteration opens it anew.

    where: a V4L2 index ("0") or device ("/dev/video0", or a link to it, which is followed each
    time), either followed by a `DriverWish` ("0?size=1080x1920&format=mjpeg"), the address of a
    stream, a file `.sdp` that describes one, or a GStreamer pipeline that ends in `appsink`.
    format: of its frames, as they come from the driver or the pipeline; streams are decoded to BGR.
    size: (height, width) to ask a driver for, needed where the format is not BGR. Iterating raises
    OSError if it cannot be opened, and as soon as it gives no frame, or one of another format or
    size. Ages count from the driver's stamps with V4L2; streams are read by `NetworkStream` where
    PyAV is installed; else theirs, and those of pipelines, count from arrival, with what each frame
    took longer than the fastest.

    Raises:
        UsageError: a stream, or no size, for another format than BGR.
    """

    def __init__(self, where: str, format: CameraFormat = "bgr", size: Size | None = None):
        self.where, self.format, self.size = where, format, size
        # Out of an encoder, which gives the same picture again where nothing moves.
        self.decoded = where.startswith(STREAMS) or where.endswith(SESSION)
        wishes = where.partition("?")[2] if _is_device(where) else ""
        self.wish = DriverWish.parse(wishes)
        if format == "bgr":
            return
        if self.wish.size or self.wish.code:
            raise UsageError(f"the model takes {format} of its own size: leave {wishes} out")
        if where.startswith(STREAMS) or where.endswith(SESSION):
            raise UsageError(f"{where} is decoded to BGR, not to {format}: export with --input bgr")
        if size is None:
            raise UsageError(f"frames in {format} say nothing of their size: name the camera's")
        check_format(format, size)

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        if self.decoded and find_spec("av") is not None:
            return iter(NetworkStream(self.where))
        if self.where.endswith(SESSION):
            raise MissingPackage(f'{self.where} needs PyAV: pip install "rtseg[av]"')
        return self._from_opencv()

    def _from_opencv(self) -> Iterator[Frame]:
        capture = self._open()
        try:
            clock = _stamp_clock(capture)
            for index in count():
                received = capture.grab()
                received_ns = time.monotonic_ns()
                more, image = capture.retrieve() if received else (False, None)
                if not more:
                    # Raised, not ended: a camera has no end, and the caller opens it again.
                    raise OSError(f"the camera {self.where} gives no frames")
                placed = _place(capture, clock, received_ns)
                yield Frame(
                    self._shape(np.asarray(image, np.uint8)),
                    index,
                    placed.captured_ns,
                    f"{index:08d}",
                    age_source=placed.age_source,
                    received_ns=received_ns,
                    notice=placed.notice,
                    format=self.format,
                )
        finally:
            capture.release()

    def _shape(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Drivers hand raw bytes over as one row, or in the shape of the format."""
        if self.format == "bgr" or self.size is None:
            return image
        shape = frame_shape(self.format, self.size)
        if image.size != int(np.prod(shape)):
            height, width = self.size
            raise OSError(
                f"the camera {self.where} gives {image.size} bytes of shape {image.shape}, which "
                f"are no {height}x{width} in {self.format}"
            )
        return image.reshape(shape)

    def _ask_driver(self, capture: cv2.VideoCapture) -> None:
        """For the format and size; what it gives is checked frame by frame."""
        if self.format == "bgr" or self.size is None:
            if self.wish != DriverWish():
                self.wish.ask(capture, self.where)
            return
        capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*V4L2_CODES[self.format]))
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self.size[0])
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, self.size[1])
        if self.wish.rate:
            capture.set(cv2.CAP_PROP_FPS, self.wish.rate)
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)  # else OpenCV makes BGR of it

    def _open(self) -> cv2.VideoCapture:
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            OPEN_LIMIT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            READ_LIMIT_MS,
        ]
        if "!" in self.where:
            capture = cv2.VideoCapture(self.where, cv2.CAP_GSTREAMER)
        elif self.where.startswith(STREAMS):
            capture = cv2.VideoCapture(self.where, cv2.CAP_FFMPEG, limits)
        else:
            number = device_number(self.where.partition("?")[0])
            if number is None:
                raise OSError(f"the camera {self.where} cannot be opened{self._hint()}")
            # Bytes as they are come from V4L2 alone; another layer in between would convert them.
            layer = cv2.CAP_ANY if self.format == "bgr" else cv2.CAP_V4L2
            capture = cv2.VideoCapture(number, layer)
            # Frames that wait in the driver are old ones.
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if not capture.isOpened():
            raise OSError(f"the camera {self.where} cannot be opened{self._hint()}")
        if "!" not in self.where and not self.where.startswith(STREAMS):
            self._ask_driver(capture)
        check_capture(capture, self.where)
        return capture

    def _hint(self) -> str:
        if "!" in self.where:
            return ": is this OpenCV built with GStreamer? The one from PyPI is not"
        if self.where.startswith(STREAMS):
            return ": is its address right, and is it on?"
        device = self.where.partition("?")[0]
        device = f"/dev/video{device}" if device.isdecimal() else device
        if not os.path.exists(device):
            return f": there is no {device}"
        return f": may this user read {device}, and does nothing else hold it?"


def _stamp_clock(capture: cv2.VideoCapture) -> StampClock:
    """What places the stamps that OpenCV gives as a position in ms: of V4L2 the driver's stamp of
    the buffer, of streams and pipelines the presentation time."""
    if capture.getBackendName() == "V4L2":
        return StampClock("monotonic", "driver")
    return StampClock("own", "sender")


def _place(capture: cv2.VideoCapture, clock: StampClock, received_ns: int) -> Placed:
    stamp_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
    # Zero and less, or no number, where a backend has none; the first picture of a stream too.
    if not 0 < stamp_ms < LONGEST_MS:
        return Placed(received_ns, "arrival")
    return clock.place(round(stamp_ms * 1e6), received_ns)


def is_camera(where: str) -> bool:
    """Whether `where` names a live camera, or a ROS 2 topic, rather than a file."""
    known = _is_device(where) or where.startswith(STREAMS) or "!" in where
    return known or where.endswith(SESSION) or is_ros_address(where)


def device_number(where: str) -> int | None:
    """The N of the /dev/videoN that `where` means: a number, that path, or a link to it as udev
    makes it (/dev/v4l/by-id/...); None for all else."""
    path = os.path.realpath(where) if where.startswith("/dev/") else where
    number = path.removeprefix("/dev/video")
    return int(number) if number.isdecimal() else None


def _is_device(where: str) -> bool:
    """Whether a camera of V4L2 is meant: also a link of udev's whose camera is not plugged in, but
    no file under /dev/shm, which is a recording."""
    device = where.partition("?")[0]
    absent = device.startswith("/dev/") and not os.path.exists(device)
    return device_number(device) is not None or (absent and not device.startswith("/dev/shm/"))
