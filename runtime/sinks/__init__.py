"""Sinks: where results go. Any callable is one; see `queue` for a sink's optional attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    cameras: Sequence[str] = (),
    certify: bool = False,
) -> list[Sink]:
    """A sink for each path, by its ending: `.mp4`, `.mcap`, `.ring`; a folder gets label PNGs, and
    what begins with `ros2:` or `zenoh:` becomes topics. Of several cameras, each has a folder, a
    file (`X_CAMERA.mp4`) or topics of its own in it; one MCAP log holds all.

    Args:
        paths: where the results go.
        card: of the artifact whose classes the results are in.
        paint: (image, labels, palette) -> overlay, for people to look at.
        rate_hz: of the source; 0: as fast as frames are done; None: its own.
        ros_messages: MCAP logs hold the results as ROS 2 messages too.
        cameras: their names, in a drive of several.
        certify: results will say which pixels are certified.

    Raises:
        UsageError: an ending that no sink has, or what is no name of a topic.
        MissingPackage: the package for MCAP, DDS or Zenoh is not installed.
        OSError: a folder cannot be written to, another process writes that ring, or the ROS domain
            cannot be joined.
    """
    from .mcap_writer import McapRecorder

    sinks: list[Sink] = []
    for path in paths:
        if path.suffix == ".mcap" and ":" not in str(path):
            sinks.append(
                McapRecorder(path, card.classes, card.palette, paint, ros_messages, cameras)
            )
            continue
        for camera in cameras or ("",):
            sink = _open_sink(path, camera, card, paint, rate_hz, certify)
            if camera:
                sink.camera, sink.name = camera, f"{sink.name}, {camera}"
            sinks.append(sink)
    return sinks


def _open_sink(
    path: Path, camera: str, card: Card, paint: Paint, rate_hz: float | None, certify: bool
) -> Any:
    """One that takes the results of one camera, or of the only one."""
    from ...data.ros.links import is_ros_address, parse_address
    from .label_files import LabelPngs, OverlayVideo
    from .ros_topics import RosTopics
    from .shared_memory import Ring

    if is_ros_address(str(path)):
        address = parse_address(str(path))
        topic = "/".join(filter(None, (address.topic, camera)))
        return RosTopics(replace(address, topic=topic), card, certify)
    own = path.with_stem(f"{path.stem}_{camera}") if camera else path
    if path.suffix == ".mp4":
        fps = AS_FAST_AS_DONE_HZ if rate_hz == 0 else rate_hz
        return OverlayVideo(own, card.palette, paint, fps)
    if path.suffix == ".ring":
        return Ring(own)
    if path.suffix:
        raise UsageError(
            f"--out is a folder, ends in .mp4, .mcap or .ring, or begins with ros2: or zenoh:, "
            f"not {path}"
        )
    return LabelPngs(path / camera)
