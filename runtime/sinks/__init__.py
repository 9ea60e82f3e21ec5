"""Sinks: where results go. Any callable is one; see `queue` for a sink's optional attributes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import UsageError
from .queue import Sink, SinkQueue

if TYPE_CHECKING:
    from ..artifact import Card
    from .label_files import Paint

__all__ = ["Sink", "SinkQueue", "open_sinks"]

AS_FAST_AS_DONE_HZ = 25.0  # of the video of a log that is not played in real time


def open_sinks(
    paths: Sequence[Path],
    card: Card,
    paint: Paint,
    rate_hz: float | None = None,
    ros_messages: bool = False,
) -> list[Sink]:
    """A sink for each path, by its ending: `.mp4`, `.mcap`, `.ring`; a folder gets label PNGs, and
    what begins with `ros2:` or `zenoh:` becomes topics.

    Args:
        paths: where the results go.
        card: of the artifact whose classes the results are in.
        paint: (image, labels, palette) -> overlay, for people to look at.
        rate_hz: of the source; 0: as fast as frames are done; None: its own.
        ros_messages: MCAP logs hold the results as ROS 2 messages too.

    Raises:
        UsageError: an ending that no sink has, or what is no name of a topic.
        MissingPackage: the package for MCAP, DDS or Zenoh is not installed.
        OSError: a folder cannot be written to, another process writes that ring, or the ROS domain
            cannot be joined.
    """
    from ...data.ros.links import is_ros_address, parse_address
    from .label_files import LabelPngs, OverlayVideo
    from .mcap_writer import McapRecorder
    from .ros_topics import RosTopics
    from .shared_memory import Ring

    sinks: list[Sink] = []
    for path in paths:
        if is_ros_address(str(path)):
            sinks.append(RosTopics(parse_address(str(path)), card))
        elif path.suffix == ".mp4":
            fps = AS_FAST_AS_DONE_HZ if rate_hz == 0 else rate_hz
            sinks.append(OverlayVideo(path, card.palette, paint, fps))
        elif path.suffix == ".mcap":
            sinks.append(McapRecorder(path, card.classes, card.palette, paint, ros_messages))
        elif path.suffix == ".ring":
            sinks.append(Ring(path))
        elif path.suffix:
            raise UsageError(
                f"--out is a folder, ends in .mp4, .mcap or .ring, or begins with ros2: or zenoh:, "
                f"not {path}"
            )
        else:
            sinks.append(LabelPngs(path))
    return sinks
