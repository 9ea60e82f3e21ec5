"""Camera frames from ROS 2 bags: folders of sqlite3 or MCAP files beside a metadata.yaml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import DataError, MissingPackage, UsageError
from ..frames import Frame, Unreadable
from ..stamp_clock import place_recorded
from .pixels import IMAGE_TYPES, choose_topic, read_picture

INSTALL = 'ROS 2 bags need rosbags: pip install "rtseg[ros2]"'


class RosBag:
    """The images of one topic of a ROS 2 bag, raw or compressed, in the order of recording.

    A message that cannot be read gives an Unreadable, and so do those that are missing at the end.

    Args:
        path: the bag's folder, or its .db3 file in that folder.
        topic: None takes the only one that has images.

    Attributes:
        count: number of its images.
        fps: of them, on average; 0 for a single one.

    Raises:
        UsageError: there is no bag or it is damaged, which may also come to light while it is
            iterated, it has no such topic, or several and none is named.
        MissingPackage: rosbags is not installed.
    """

    def __init__(self, path: Path, topic: str | None = None):
        self.path = path if path.is_dir() else path.parent
        if not (self.path / "metadata.yaml").is_file():
            raise UsageError(
                f"{path} has no metadata.yaml beside it: `ros2 bag reindex {self.path}` writes one"
            )
        with _damage_told(self.path), _reader(self.path) as reader:
            counts = {
                each.topic: each.msgcount
                for each in sorted(reader.connections, key=lambda each: str(each.topic))
                if each.msgtype in IMAGE_TYPES
            }
            seconds = reader.duration / 1e9
        self.topic = choose_topic(path, counts, topic, IMAGE_TYPES)
        self.count: int = counts[self.topic]
        self.fps = (self.count - 1) / seconds if seconds > 0 else 0.0

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        stem, there = self.path.resolve().name, 0
        for index, (kind, at_ns, message) in enumerate(self._messages()):
            name, there = f"{stem}_{index:06d}", index + 1
            try:
                header, image = read_picture(kind, message, name)
            except DataError as error:
                yield Unreadable(name, str(error))
                continue
            now, stamped_ns = place_recorded(at_ns, header.stamp_ns)
            assert now is not None
            yield Frame(
                image,
                index,
                stamped_ns or now,
                name,
                at_ns,
                header.frame_id,
                age_source="playback",
                received_ns=now,
            )
        if there < self.count:  # rosbags passes over messages whose type's digest was damaged, say
            yield Unreadable(
                f"{stem}_{there:06d}",
                f"{self.path} holds {there} of the {self.count} images that its metadata.yaml says",
            )

    def _messages(self) -> Iterator[tuple[str, int, bytes]]:
        with _damage_told(self.path), _reader(self.path) as reader:
            wanted = [each for each in reader.connections if each.topic == self.topic]
            for connection, at_ns, message in reader.messages(wanted):
                yield connection.msgtype, at_ns, message


def is_ros_bag(where: str) -> bool:
    """Whether `where` is a bag's folder or a .db3 file."""
    path = Path(where)
    return (path / "metadata.yaml").is_file() or (path.suffix == ".db3" and path.is_file())


def _reader(path: Path) -> Any:
    try:
        from rosbags.rosbag2 import Reader
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    return Reader(path)


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """One clear error in place of whatever a damaged bag makes its readers raise."""
    try:
        yield
    except MissingPackage:
        raise
    except Exception as error:  # of rosbags, YAML, sqlite3 and the decompressors
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{path} is damaged or no ROS 2 bag: {why}") from error
