"""Camera frames from MCAP logs, as ROS 2 and Foxglove write them."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import DataError, MissingPackage, UsageError
from .frames import Frame, Unreadable
from .images import decode_image
from .limits import check_limit
from .ros.pixels import IMAGE_TYPES, Picture, choose_topic, read_picture
from .ros.ros_messages import Header
from .stamp_clock import place_recorded

SCHEMAS = (
    *IMAGE_TYPES,
    "foxglove.CompressedImage",
    "foxglove_msgs/msg/CompressedImage",
)
MAGIC = b"\x89MCAP0\r\n"
SHORTEST = 2 * len(MAGIC) + 29  # the two ends and a footer
INSTALL = 'MCAP logs need the mcap packages: pip install "rtseg[drive]"'
Decoder = Callable[[bytes, str], tuple[Header, Picture]]  # message, its name for errors


class McapLog:
    """The images of one topic of an MCAP file, in the log's order: compressed ones, and ROS' raw.

    A picture that cannot be decoded gives an Unreadable. Chunks are held against their CRCs.

    Args:
        path: The log.
        topic: None takes the only one that has such images.

    Attributes:
        count: Number of its images.
        fps: Of them, on average; 0 for a single one.

    Raises:
        UsageError: if the file is no MCAP log or damaged, which may also come to light while it is
            iterated, has no such topic, or several and none is named.
        MissingPackage: if the mcap packages are not installed.
    """

    def __init__(self, path: Path, topic: str | None = None):
        self.path = path
        topics = self._topics()
        self.topic = choose_topic(path, topics, topic, SCHEMAS)
        self.count = topics[self.topic]
        self.fps = self._rate()

    def _topics(self) -> dict[str, int]:
        """Messages by topic, of those with images."""
        make_reader = _mcap()
        with self.path.open("rb") as file, _damage_told(self.path):
            _check_ends(file)
            summary = make_reader(file, validate_crcs=True).get_summary()
            if summary is None:
                raise ValueError("it was not closed")
            most = max((c.uncompressed_size for c in summary.chunk_indexes), default=0)
            check_limit("chunk_bytes", most, "a chunk of it")
            counts = summary.statistics.channel_message_counts if summary.statistics else {}
            return {
                channel.topic: counts.get(channel.id, 0)
                for channel in sorted(summary.channels.values(), key=lambda each: str(each.topic))
                if channel.schema_id and summary.schemas[channel.schema_id].name in SCHEMAS
            }

    def _rate(self) -> float:
        with self.path.open("rb") as file, _damage_told(self.path):
            reader = _mcap()(file)
            ends = [
                next(iter(reader.iter_messages(topics=[self.topic], reverse=back)), None)
                for back in (False, True)
            ]
            # The first and last message, not the summary's times, which are of all topics.
            first, last = (each[2].log_time if each else 0 for each in ends)
            return (self.count - 1) * 1e9 / (last - first) if last > first else 0.0

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        decoders: dict[int, Decoder] = {}
        read = 0
        with self.path.open("rb") as file:
            for index, (schema, channel, message) in enumerate(self._messages(file)):
                if channel.id not in decoders:
                    decoders[channel.id] = self._decoder(channel.message_encoding, schema)
                name = f"{self.path.stem}_{index:06d}"
                yield _frame(decoders[channel.id], message, index, name)
                read += 1
        if read < self.count:
            ended = f"{self.path} ends after {read} of {self.count} images: damaged, or cut off"
            yield Unreadable(self.path.name, ended)

    def _decoder(self, encoding: str, schema: object) -> Decoder:
        with _damage_told(self.path):
            decoder = _decoder(encoding, schema)
        if decoder is None:
            raise UsageError(
                f"{self.path} has images in the encoding {encoding!r}, which cannot be read: "
                "ROS 2, protobuf and JSON can"
            )
        return decoder

    def _messages(self, file: BinaryIO) -> Iterator[Any]:
        with _damage_told(self.path):
            yield from _mcap()(file, validate_crcs=True).iter_messages(topics=[self.topic])


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """One clear error in place of whatever a damaged file makes its reader raise."""
    try:
        yield
    except MissingPackage:
        raise
    except Exception as error:  # of mcap, its decompressors and its message decoders
        why = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{path} is damaged or not an MCAP log ({why}): `mcap recover` may repair it"
        ) from error


def _check_ends(file: BinaryIO) -> None:
    """Raises EOFError unless the file begins and ends as MCAP logs do; the reader takes the end's
    offsets on trust."""
    head = file.read(len(MAGIC))
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - len(MAGIC)))
    tail = file.read()
    file.seek(0)
    if head != MAGIC or tail != MAGIC:
        raise EOFError("it does not begin and end as one")
    if size < SHORTEST:
        raise EOFError(f"its {size} bytes are fewer than the shortest log has")


def _frame(decode: Decoder, message: Any, index: int, name: str) -> Frame | Unreadable:
    try:
        header, image = decode(message.data, name)
    except DataError as error:
        return Unreadable(name, str(error))
    logged_ns = message.log_time
    now, sent_ns, stamped_ns = place_recorded(logged_ns, message.publish_time, header.stamp_ns)
    assert now is not None
    return Frame(
        image,
        index,
        stamped_ns or sent_ns or now,
        name,
        logged_ns,
        header.frame_id,
        age_source="playback",
        sent_ns=sent_ns,
        received_ns=now,
    )


def _decoder(encoding: str, schema: Any) -> Decoder | None:
    """None for an encoding that nobody here knows."""
    if encoding == "json":
        return _compressed(lambda data: base64.b64decode(json.loads(data)["data"]))
    if encoding == "cdr" and schema.name in IMAGE_TYPES:
        return lambda data, name: read_picture(schema.name, data, name)
    try:
        from mcap_protobuf.decoder import DecoderFactory as Protobuf
        from mcap_ros2.decoder import DecoderFactory as Ros2
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    factories: list[Any] = [Ros2(), Protobuf()]
    for factory in factories:
        decode = factory.decoder_for(encoding, schema)
        if decode is not None:
            return _compressed(lambda data, decode=decode: decode(data).data)  # type: ignore[misc]
    return None


def _compressed(content: Callable[[bytes], bytes]) -> Decoder:
    """The decoder of messages whose compressed picture `content` takes out."""

    def decode(data: bytes, name: str) -> tuple[Header, Picture]:
        try:
            found = np.frombuffer(bytes(content(data)), np.uint8)
        except Exception:  # a decoder's, of a damaged message; the next one may be whole
            found = np.empty(0, np.uint8)
        return Header(), decode_image(found, name)

    return decode


def _mcap() -> Any:
    """The reader's maker."""
    try:
        from mcap.reader import make_reader
    except ImportError as error:
        raise MissingPackage(INSTALL) from error
    return make_reader
