"""What a drive can run on: a camera, a log, a video or images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .camera import Camera, is_camera
from .frames import Frame, Unreadable, open_source
from .mcap_log import McapLog
from .pace import CITYSCAPES_HZ, Paced


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
            raise ValueError("a camera has a rate of its own and no end: no --loop, no --rate 0")
        return Camera(where)
    if where.endswith(".mcap"):
        if not Path(where).is_file():
            raise ValueError(f"no log at {where}")
        return Paced(McapLog(Path(where), topic), rate_hz, loops)
    if topic is not None:
        raise ValueError("--topic goes with MCAP logs only")
    source = open_source(where)
    own_hz = source.fps or CITYSCAPES_HZ
    return Paced(source, own_hz if rate_hz is None else rate_hz, loops)
