"""Sources of a drive: a camera, a log, a video or images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..errors import UsageError
from .camera import Camera, is_camera
from .frames import Frame, Recording, Unreadable, open_source
from .mcap_reader import McapLog
from .playback import CITYSCAPES_HZ, Paced

ONLY_LOGS = "--topic goes with MCAP logs only"


def open_drive_source(
    where: str, rate_hz: float | None = None, loops: bool = False, topic: str | None = None
) -> Iterable[Frame | Unreadable]:
    """The frames of a camera as they come, or of a recording in real time.

    where: what `Camera` takes, an MCAP log, or what `open_source` takes. rate_hz: of a recording;
    None: a log's own times, a video's own rate, 17 Hz for images (that of Cityscapes' sequences);
    0: as fast as frames are taken. loops, topic: of a recording, of a log.

    Raises ValueError for a source that is not there or an option that does not go with it.
    """
    if is_camera(where):
        if loops or rate_hz == 0:
            raise UsageError("a camera has a rate of its own and no end: no --loop, no --rate 0")
        if topic is not None:
            raise UsageError(ONLY_LOGS)
        return Camera(where)
    recording = open_recording(where, topic)
    own_hz = None if isinstance(recording, McapLog) else recording.fps or CITYSCAPES_HZ
    return Paced(recording, own_hz if rate_hz is None else rate_hz, loops)


def open_recording(where: str, topic: str | None = None) -> Recording:
    """The frames of an MCAP log, or of what `open_source` takes. topic: of a log.

    Raises ValueError if nothing is there, or it cannot be read.
    """
    if where.endswith(".mcap"):
        if not Path(where).is_file():
            raise UsageError(f"no log at {where}")
        return McapLog(Path(where), topic)
    if topic is not None:
        raise UsageError(ONLY_LOGS)
    return open_source(where)
