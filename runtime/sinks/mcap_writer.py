"""Records a drive as an MCAP log that Foxglove opens: overlay, labels, facts and statuses."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ...data.files import RecordingFile, check_writable, explain_failure
from ...data.ros.ros_messages import (
    CompressedImage,
    Diagnostic,
    DiagnosticArray,
    Header,
    Image,
    LabelInfo,
    MessageType,
    RosMessage,
)
from ...errors import MissingPackage
from ..drive.messages import Message, Result, Status, StatusKind
from .label_files import Colors, Paint, encode_picture
from .ros_topics import gray_image, label_image

RETRY_S = 10.0
# Every record is a chunk of its own: what waits in one until it is full would be called delivered,
# and be lost where the disk is full by then.
CHUNK = 1
INSTALL = 'MCAP logs need the mcap package: pip install "rtseg[drive]"'
TIME: dict[str, object] = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}},
}
IMAGE: dict[str, object] = {  # Foxglove's own, in JSON
    "title": "foxglove.CompressedImage",
    "type": "object",
    "properties": {
        "timestamp": TIME,
        "frame_id": {"type": "string"},
        "data": {"type": "string", "contentEncoding": "base64"},
        "format": {"type": "string"},
    },
}
FACTS: dict[str, object] = {"title": "rtseg.Facts", "type": "object"}
TOPICS = {"overlay": IMAGE, "labels": IMAGE, "result": FACTS, "status": FACTS}
ROS_TOPICS: dict[str, type[RosMessage]] = {
    "ros/overlay": CompressedImage,
    "ros/labels": Image,
    "ros/label_info": LabelInfo,
    "ros/diagnostics": DiagnosticArray,
}


class McapRecorder:
    """Writes an MCAP log, see `RecordingFile`; `mcap recover` saves what a crash left.

    Topics: `/rtseg/overlay` (JPEG) and `/rtseg/labels` (PNG of class ids), both
    `foxglove.CompressedImage`; `/rtseg/result` and `/rtseg/status`, JSON without the pictures.
    Where results have them also `/rtseg/certified` (PNG, 255 where certified, else 0) and
    `/rtseg/confidence` (PNG), likewise.
    Log times are capture times. The metadata `rtseg` holds classes and palette.

    With `ros_messages` also, in CDR: `/rtseg/ros/overlay` (sensor_msgs/CompressedImage),
    `/rtseg/ros/labels` (sensor_msgs/Image, mono8; likewise `certified` and `confidence`),
    `/rtseg/ros/label_info` (vision_msgs/LabelInfo, once) and `/rtseg/ros/diagnostics`
    (diagnostic_msgs/DiagnosticArray, of each status).

    In a drive of several cameras the topics begin with `/rtseg/CAMERA`.

    After an error it begins another file, at most every ten seconds.

    Args:
        path: the file's name.
        classes, palette: names and BGR colors.
        paint: makes the overlay, (H, W, 3) uint8 BGR.
        ros_messages: write the results as ROS 2 messages too.
        cameras: their names, in a drive of several.

    Raises:
        MissingPackage: the mcap package is not installed.
        OSError: the folder cannot be written to.
    """

    name = "MCAP recorder"
    capacity = 64
    records = True

    def __init__(
        self,
        path: Path,
        classes: Sequence[str],
        palette: Colors,
        paint: Paint,
        ros_messages: bool = False,
        cameras: Sequence[str] = (),
    ):
        try:
            from mcap.writer import Writer
        except ImportError as error:
            raise MissingPackage(INSTALL) from error
        check_writable(path.parent)
        self.path, self.classes, self.palette, self.paint = path, classes, palette, paint
        self.ros_messages, self.cameras = ros_messages, cameras or ("",)
        self._new_writer = Writer
        self._recording: RecordingFile | None = None
        self._file: BinaryIO | None = None
        self._broken: tuple[float, OSError] | None = None

    def _begin(self, at_ns: int) -> None:
        if self._broken and time.monotonic() < self._broken[0] + RETRY_S:
            raise self._broken[1]
        self._recording = RecordingFile(self.path)
        self._file = self._recording.open()
        self._writer = self._new_writer(self._file, chunk_size=CHUNK)
        self._writer.start(profile="", library="rtseg")
        names = json.dumps([list(self.classes), [list(color) for color in self.palette]])
        self._writer.add_metadata("rtseg", {"classes_and_palette": names})
        self._channels: dict[str, int] = {}
        for camera in self.cameras:
            self._begin_camera(camera, at_ns)

    def _begin_camera(self, camera: str, at_ns: int) -> None:
        for name, schema in TOPICS.items():
            topic = _topic(camera, name)
            self._channels[topic] = self._channel(topic, schema)
        if self.ros_messages:
            for name, message in ROS_TOPICS.items():
                topic = _topic(camera, name)
                self._channels[topic] = self._ros_channel(topic, message.TYPE)
            info = LabelInfo(Header(at_ns), self.classes)
            self._add_bytes(_topic(camera, "ros/label_info"), info.encode(), at_ns)

    def _ros_channel(self, topic: str, kind: MessageType) -> int:
        known = self._writer.register_schema(kind.name, "ros2msg", kind.schema().encode())
        return int(self._writer.register_channel(topic, "cdr", known))

    def _channel(self, topic: str, schema: dict[str, Any]) -> int:
        data = json.dumps(schema).encode()
        known = self._writer.register_schema(schema["title"], "jsonschema", data)
        return int(self._writer.register_channel(topic, "json", known))

    def __call__(self, message: Message) -> None:
        try:
            with explain_failure(self.path):
                if self._recording is None:
                    self._begin(_at_ns(message))
                self._record(message)
                if self._file is not None:
                    # After every message: what the library has passed on is then the kernel's,
                    # and survives a crash.
                    self._file.flush()
        except OSError as error:
            self._abandon(error)
            raise

    def _record(self, message: Message) -> None:
        if not isinstance(message, Result):
            self._add(_topic(message.camera, "status"), message.facts(), _at_ns(message))
            self._record_ros_status(message)
            return
        overlay = self.paint(message.image, message.labels, self.palette)
        at_ns = _at_ns(message)
        jpeg = encode_picture(".jpg", overlay)
        camera = message.camera
        frame_id = message.coordinate_frame or camera or "camera"
        labels = encode_picture(".png", message.labels)
        self._add_image(_topic(camera, "overlay"), "jpeg", jpeg, at_ns, frame_id)
        self._add_image(_topic(camera, "labels"), "png", labels, at_ns, frame_id)
        self._add(_topic(camera, "result"), message.facts(), at_ns)
        self._record_maps(message, at_ns, frame_id)
        if self.ros_messages:
            picture = CompressedImage(Header(at_ns, message.coordinate_frame), "jpeg", jpeg)
            self._add_bytes(_topic(camera, "ros/overlay"), picture.encode(), at_ns)
            self._add_bytes(_topic(camera, "ros/labels"), label_image(message).encode(), at_ns)

    def _record_maps(self, result: Result, at_ns: int, frame_id: str) -> None:
        # Their channels begin with the first one: a log without them names no more image topics.
        for name, picture in result.maps().items():
            topic, ros_topic = _topic(result.camera, name), _topic(result.camera, f"ros/{name}")
            if topic not in self._channels:
                self._channels[topic] = self._channel(topic, IMAGE)
                if self.ros_messages:
                    self._channels[ros_topic] = self._ros_channel(ros_topic, Image.TYPE)
            self._add_image(topic, "png", encode_picture(".png", picture), at_ns, frame_id)
            if self.ros_messages:
                self._add_bytes(ros_topic, gray_image(result, picture).encode(), at_ns)

    def _record_ros_status(self, status: Status) -> None:
        if self.ros_messages:
            text = f"{status.kind.value} {status.cause}: {status.text}"
            level = 3 if status.kind is StatusKind.STALE else 2
            name = ": ".join(filter(None, ("rtseg", status.camera, "segmentation")))
            found = Diagnostic(level, name, text)
            message = DiagnosticArray(Header(status.at_wall_ns), [found])
            topic = _topic(status.camera, "ros/diagnostics")
            self._add_bytes(topic, message.encode(), status.at_wall_ns)

    def _abandon(self, error: OSError) -> None:
        if self._recording is None:
            return
        self._broken = time.monotonic(), error
        if self._file is not None:
            with contextlib.suppress(OSError):  # it writes what it has buffered, to a full disk
                self._file.close()
        self._recording.abandon()
        self._recording = None

    def _add_image(self, topic: str, kind: str, content: bytes, at_ns: int, frame_id: str) -> None:
        seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
        self._add(
            topic,
            {
                "timestamp": {"sec": seconds, "nsec": nanoseconds},
                "frame_id": frame_id,
                "data": base64.b64encode(content).decode(),
                "format": kind,
            },
            at_ns,
        )

    def _add(self, topic: str, value: dict[str, object], at_ns: int) -> None:
        self._add_bytes(topic, json.dumps(value).encode(), at_ns)

    def _add_bytes(self, topic: str, data: bytes, at_ns: int) -> None:
        self._writer.add_message(self._channels[topic], at_ns, data, at_ns)

    def close(self) -> None:
        """Finish the log. Raises OSError if that is impossible; it keeps its partial name."""
        if self._recording is None or self._file is None:
            return
        with explain_failure(self._recording.partial):
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._file.close()
        self._recording.publish()


def _topic(camera: str, name: str) -> str:
    return "/".join(filter(None, ("/rtseg", camera, name)))


def _at_ns(message: Message) -> int:
    """When it was captured, or told, since 1970."""
    return message.captured_wall_ns if isinstance(message, Result) else message.at_wall_ns
