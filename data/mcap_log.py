"""Camera frames out of MCAP logs, as ROS 2 and Foxglove write them."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from .frames import Frame, Unreadable

SCHEMAS = (
    "sensor_msgs/msg/CompressedImage",
    "foxglove.CompressedImage",
    "foxglove_msgs/msg/CompressedImage",
)
MAGIC = b"\x89MCAP0\r\n"
INSTALL = 'MCAP logs need the mcap packages: pip install "rtseg[drive]"'


class McapLog:
    """The compressed images of one topic of an MCAP file, in the log's order.

    topic: None takes the only one that has such images. A picture that cannot be decoded gives an
    Unreadable. Raises ValueError if the file is no MCAP log, has no such topic, or several and none
    is named; RuntimeError where the mcap packages are missing.
    """

    def __init__(self, path: Path, topic: str | None = None):
        self.path = path
        topics = self._topics()
        if not topics:
            raise ValueError(f"{path} has no topic with compressed images ({', '.join(SCHEMAS)})")
        if topic is None and len(topics) > 1:
            raise ValueError(f"{path} has images on {', '.join(topics)}: name one with --topic")
        if topic is not None and topic not in topics:
            raise ValueError(f"{path} has no images on {topic}: they are on {', '.join(topics)}")
        self.topic = topic or topics[0]

    def _topics(self) -> list[str]:
        make_reader, errors = _mcap()
        try:
            with self.path.open("rb") as file:
                _check_magic(file)
                summary = make_reader(file).get_summary()
        except errors as error:
            raise ValueError(
                f"{self.path} is damaged or no MCAP log ({error}): `mcap recover` may mend it"
            ) from error
        if summary is None:
            raise ValueError(f"{self.path} was not closed: `mcap recover` mends it")
        return sorted(
            channel.topic
            for channel in summary.channels.values()
            if channel.schema_id and summary.schemas[channel.schema_id].name in SCHEMAS
        )

    def __iter__(self) -> Iterator[Frame | Unreadable]:
        make_reader, _ = _mcap()
        decoders: dict[int, Callable[[bytes], bytes]] = {}
        with self.path.open("rb") as file:
            messages = make_reader(file).iter_messages(topics=[self.topic])
            for index, (schema, channel, message) in enumerate(messages):
                if channel.id not in decoders:
                    decoders[channel.id] = _decoder(channel.message_encoding, schema)
                name = f"{self.path.stem}_{index:06d}"
                yield _frame(decoders[channel.id](message.data), index, name, message.log_time)


def _check_magic(file: BinaryIO) -> None:
    """Raises EOFError unless the file begins and ends as MCAP logs do; the reader takes the end's
    offsets on trust."""
    head = file.read(len(MAGIC))
    file.seek(0, os.SEEK_END)
    whole = file.tell() >= 2 * len(MAGIC)
    file.seek(-len(MAGIC) if whole else 0, os.SEEK_END)
    tail = file.read()
    file.seek(0)
    if head != MAGIC or tail != MAGIC:
        raise EOFError("it does not begin and end as one")


def _frame(data: bytes, index: int, name: str, wall_ns: int) -> Frame | Unreadable:
    content = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        return Unreadable(name, f"{name} is damaged or not an image")
    return Frame(np.asarray(image, np.uint8), index, time.monotonic_ns(), name, wall_ns)


def _decoder(encoding: str, schema: Any) -> Callable[[bytes], bytes]:
    """Message -> the compressed picture in it."""
    if encoding == "json":
        return lambda data: base64.b64decode(json.loads(data)["data"])
    try:
        from mcap_protobuf.decoder import DecoderFactory as Protobuf
        from mcap_ros2.decoder import DecoderFactory as Ros2
    except ImportError as error:
        raise RuntimeError(INSTALL) from error
    factories: list[Any] = [Ros2(), Protobuf()]
    for factory in factories:
        decode = factory.decoder_for(encoding, schema)
        if decode is not None:
            return lambda data, decode=decode: bytes(decode(data).data)  # type: ignore[misc]
    raise ValueError(f"images in the encoding {encoding!r} cannot be read: ROS 2, protobuf or JSON")


def _mcap() -> tuple[Any, tuple[type[Exception], ...]]:
    try:
        from mcap.exceptions import McapError
        from mcap.reader import make_reader
    except ImportError as error:
        raise RuntimeError(INSTALL) from error
    return make_reader, (McapError, EOFError, UnicodeDecodeError)
