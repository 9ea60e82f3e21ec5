"""Records a drive as an MCAP log that Foxglove opens: overlay, labels, facts and statuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import MissingPackage
from ..drive.messages import Message, Result
from .label_files import Colors, Paint, encode_picture

INSTALL = 'MCAP logs need the mcap package: pip install "rtseg[drive]"'
TIME: dict[str, Any] = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}},
}
IMAGE: dict[str, Any] = {  # Foxglove's own, in JSON
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": TIME,
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
}
FACTS: dict[str, Any] = {"title": "rtseg.Facts", "type": "object"}


class McapRecorder:
    """Topics: `/rtseg/overlay` (JPEG) and `/rtseg/labels` (PNG of class ids), both
    `foxglove.CompressedImage`; `/rtseg/result` and `/rtseg/status`, JSON without the pictures.
    Log times are capture times. The metadata `rtseg` holds classes and palette.

    The file gets its name when it is closed; until then it is `.NAME.partial`, from which
    `mcap recover` saves what a crash left. Raises MissingPackage where the package is missing.
    """

    name = "MCAP recorder"
    capacity = 64
    records = True

    def __init__(self, path: Path, classes: Sequence[str], palette: Colors, paint: Paint):
        try:
            from mcap.writer import Writer
        except ImportError as error:
            raise MissingPackage(INSTALL) from error
        self.path, self.palette, self.paint = path, palette, paint
        path.parent.mkdir(parents=True, exist_ok=True)
        self.partial = path.with_name(f".{path.name}.partial")
        self._file = self.partial.open("wb")
        self._writer = Writer(self._file)
        self._writer.start(profile="", library="rtseg")
        names = json.dumps([list(classes), [list(color) for color in palette]])
        self._writer.add_metadata("rtseg", {"classes_and_palette": names})
        self._channels = {
            topic: self._channel(topic, schema)
            for topic, schema in {
                "/rtseg/overlay": IMAGE,
                "/rtseg/labels": IMAGE,
                "/rtseg/result": FACTS,
                "/rtseg/status": FACTS,
            }.items()
        }

    def _channel(self, topic: str, schema: dict[str, Any]) -> int:
        data = json.dumps(schema).encode()
        known = self._writer.register_schema(schema["title"], "jsonschema", data)
        return int(self._writer.register_channel(topic, "json", known))

    def __call__(self, message: Message) -> None:
        if not isinstance(message, Result):
            self._add("/rtseg/status", message.facts(), message.at_wall_ns)
            return
        overlay = self.paint(message.image, message.labels, self.palette)
        at_ns = message.captured_wall_ns
        self._add_image("/rtseg/overlay", "jpeg", encode_picture(".jpg", overlay), at_ns)
        self._add_image("/rtseg/labels", "png", encode_picture(".png", message.labels), at_ns)
        self._add("/rtseg/result", message.facts(), at_ns)

    def _add_image(self, topic: str, kind: str, content: bytes, at_ns: int) -> None:
        seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
        self._add(
            topic,
            {
                "timestamp": {"sec": seconds, "nsec": nanoseconds},
                "frame_id": "camera",
                "data": base64.b64encode(content).decode(),
                "format": kind,
            },
            at_ns,
        )

    def _add(self, topic: str, value: dict[str, Any], at_ns: int) -> None:
        data = json.dumps(value).encode()
        self._writer.add_message(self._channels[topic], at_ns, data, at_ns)

    def close(self) -> None:
        self._writer.finish()  # type: ignore[no-untyped-call]
        self._file.close()
        self.partial.replace(self.path)
