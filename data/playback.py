"""Recordings played in real time, as from a camera, and the sources that a drive can run on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

from ..errors import UsageError
from .camera import Camera, is_camera
from .camera_formats import CameraFormat, Size
from .frames import Frame, Recording, Unreadable, open_source
from .mcap_reader import McapLog
from .ros.links import is_ros_address
from .ros.ros_bag import RosBag, is_ros_bag
from .ros.ros_camera import RosCamera

CITYSCAPES_HZ = 17.0


class Paced:
    """Plays recorded frames in real time; `captured_ns` is the moment at which each one is due.

    Args:
        frames: A recording.
        rate_hz: Frames a second; None: by the capture times in the log (`wall_ns`), 0: as fast as
            they are taken.
        loops: From the beginning again at the end, for ever; frames are counted on.
        where: What was opened, for the log.
    """

    recorded = True  # a drive waits for inference before it plays it

    def __init__(
        self,
        frames: Iterable[Frame | Unreadable],
        rate_hz: float | None,
        loops: bool = False,
        where: str = "recording",
    ):
        if rate_hz is not None and not 0 <= rate_hz <= 1000:
            raise UsageError(f"a rate is 0 (as fast as possible) to 1000 Hz, not {rate_hz}")
        self.frames, self.rate_hz, self.loops, self.where = frames, rate_hz, loops, where

    @property
    def restarts(self) -> bool:
        """Whether to play it again where it broke; played once, no frame comes twice."""
        return self.loops

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        indices = count()
        while True:
            yield from self._once(indices)
            if not self.loops:
                return

    def _once(self, indices: Iterator[int]) -> Iterator[Frame | Unreadable]:
        began, first_wall_ns, place = time.monotonic_ns(), None, -1
        for place, item in enumerate(self._just_in_time(began)):
            if self.rate_hz:
                _sleep_until(began + int(place * 1e9 / self.rate_hz))
            elif self.rate_hz is None and isinstance(item, Frame) and item.wall_ns is not None:
                first_wall_ns = item.wall_ns if first_wall_ns is None else first_wall_ns
                _sleep_until(began + item.wall_ns - first_wall_ns)
            index = next(indices)
            if isinstance(item, Frame):
                item = _shown_now(item, index)
            yield item
        if place < 0:
            # Else a loop over it would never sleep and never end.
            raise OSError("the recording gives no frame at all")
        if self.rate_hz and self.loops:
            _sleep_until(began + int((place + 1) * 1e9 / self.rate_hz))

    def _just_in_time(self, began: int) -> Iterator[Frame | Unreadable]:
        """The frames, each read shortly before it is due."""
        # Decoding one at once after the other would take the processor from the labels of the
        # last, which no camera does.
        frames, reading_ns = iter(self.frames), 0
        for place in count():
            if self.rate_hz:
                _sleep_until(began + int(place * 1e9 / self.rate_hz) - 2 * reading_ns)
            asked = time.monotonic_ns()
            item = next(frames, None)
            if item is None:
                return
            # The longest of late, which fades.
            reading_ns = max(time.monotonic_ns() - asked, reading_ns * 9 // 10)
            yield item


def _shown_now(frame: Frame, index: int) -> Frame:
    """A frame as if it came now: as old as it was when it was recorded, where the log says so."""
    now = time.monotonic_ns()
    # A recording's own stamps are long past; what counts for age is when it is shown.
    shift_ns = now - (frame.captured_ns if frame.received_ns is None else frame.received_ns)
    captured_ns = frame.captured_ns + shift_ns
    wall_ns = None if frame.wall_ns is None else frame.wall_ns - (now - captured_ns)
    sent_ns = None if frame.sent_ns is None else frame.sent_ns + shift_ns
    return replace(
        frame,
        index=index,
        captured_ns=captured_ns,
        wall_ns=wall_ns,
        age_source="playback",
        sent_ns=sent_ns,
        received_ns=None if frame.received_ns is None else now,
    )


def _sleep_until(moment_ns: int) -> None:
    left_ns = moment_ns - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / 1e9)


ONLY_LOGS = "--topic goes with MCAP logs and ROS 2 bags only"


def open_drive_source(
    where: str, rate_hz: float | None = None, loops: bool = False, topic: str | None = None
) -> Iterable[Frame | Unreadable]:
    """The frames of a camera as they come, or of a recording in real time.

    Args:
        where: What `Camera` or `RosCamera` takes, an MCAP log, a ROS 2 bag, or what `open_source`
            takes.
        rate_hz: Of a recording; None: a log's own times, a video's own rate, 17 Hz for images (that
            of Cityscapes' sequences); 0: as fast as frames are taken.
        loops: Play a recording for ever.
        topic: Of a log.

    Raises:
        UsageError: if the source is not there, or an option does not go with it.
    """
    if is_camera(where):
        if loops or rate_hz == 0:
            raise UsageError("a camera has a rate of its own and no end: no --loop, no --rate 0")
        if topic is not None:
            raise UsageError(ONLY_LOGS)
        return RosCamera(where) if is_ros_address(where) else Camera(where)
    recording = open_recording(where, topic)
    own_hz = None if isinstance(recording, (McapLog, RosBag)) else recording.fps or CITYSCAPES_HZ
    return Paced(recording, own_hz if rate_hz is None else rate_hz, loops, where)


def request_format(
    source: Iterable[Frame | Unreadable], kind: CameraFormat, size: Size
) -> Iterable[Frame | Unreadable]:
    """The source with frames in the format of an artifact, which only a camera has.

    Args:
        source: What `open_drive_source` gave.
        kind: The format.
        size: (height, width) of the picture in pixels.

    Raises:
        UsageError: if the source gives BGR, and the artifact takes another format.
    """
    if kind == "bgr":
        return source
    if isinstance(source, Camera):
        return Camera(source.where, kind, size)
    raise UsageError(
        f"{getattr(source, 'where', 'this source')} gives pictures in BGR, and the model takes "
        f"{kind}: export it with --input bgr "
        "(rtseg predict converts pictures)"
    )


def open_recording(where: str, topic: str | None = None) -> Recording:
    """The frames of an MCAP log, a ROS 2 bag, or what `open_source` takes. topic: of a log or bag.

    Raises:
        UsageError: if nothing is there, or it cannot be read.
    """
    if where.endswith(".mcap"):
        if not Path(where).is_file():
            raise UsageError(f"no log at {where}")
        return McapLog(Path(where), topic)
    if is_ros_bag(where):
        return RosBag(Path(where), topic)
    if topic is not None:
        raise UsageError(ONLY_LOGS)
    return open_source(where)
