"""The ROS 2 messages that images and label maps need, to and from CDR.

Names of types, their hashes and definitions are ROS 2's own: `sensor_msgs`, `std_msgs`,
`diagnostic_msgs` as of Iron and later (the definitions have not changed since Foxy), `vision_msgs`
as of its version 4. The hashes are RIHS01, the SHA-256 of a type's description by REP 2011's rule;
tests recompute them from the definitions here with the package rosbags. That of LabelInfo equals
the one in rosidl's generated sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from .cdr import CdrReader, CdrWriter

SECOND_NS = 1_000_000_000
MOST_CLASSES = 1 << 16  # a class id is a uint16


@dataclass(frozen=True, eq=False)
class MessageType:
    """A message type as other programs identify it.

    Attributes:
        name: as `ros2 topic info` prints it.
        digest: of its description, RIHS01.
        definition: the text of its .msg file without comments.
        uses: the types in it, by name, with their definitions.
    """

    name: str
    digest: str
    definition: str
    uses: Mapping[str, str]

    @property
    def wire_name(self) -> str:
        """As rmw names it on DDS and Zenoh: `sensor_msgs::msg::dds_::Image_`."""
        package, kind, name = self.name.split("/")
        return f"{package}::{kind}::dds_::{name}_"

    def schema(self) -> str:
        """Definition and those of the types in it, as MCAP's schemas of ROS 2 have them."""
        parts = [self.definition]
        for name, definition in self.uses.items():
            parts.append(f"{'=' * 80}\nMSG: {name.replace('/msg/', '/')}\n{definition}")
        return "".join(parts)


HEADER = {
    "std_msgs/msg/Header": "builtin_interfaces/Time stamp\nstring frame_id\n",
    "builtin_interfaces/msg/Time": "int32 sec\nuint32 nanosec\n",
}


@dataclass(frozen=True)
class Header:
    """When a message's data was taken, since 1970, and the coordinate frame that it is in."""

    stamp_ns: int = 0
    frame_id: str = ""

    def write(self, out: CdrWriter) -> None:
        seconds, nanoseconds = divmod(self.stamp_ns, SECOND_NS)
        out.int32(seconds)
        out.uint32(nanoseconds)
        out.text(self.frame_id)

    @classmethod
    def read(cls, source: CdrReader) -> Header:
        seconds, nanoseconds = source.int32(), source.uint32()
        return cls(seconds * SECOND_NS + nanoseconds, source.text())


@dataclass(frozen=True)
class Image:
    """sensor_msgs/msg/Image. step: bytes of a row; data: at least height x step of them."""

    header: Header
    height: int
    width: int
    encoding: str
    step: int
    data: bytes | memoryview
    is_bigendian: int = 0

    TYPE: ClassVar = MessageType(
        "sensor_msgs/msg/Image",
        "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47",
        "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\n"
        "uint8 is_bigendian\nuint32 step\nuint8[] data\n",
        HEADER,
    )

    def encode(self) -> bytes:
        out = CdrWriter()
        self.header.write(out)
        out.uint32(self.height)
        out.uint32(self.width)
        out.text(self.encoding)
        out.uint8(self.is_bigendian)
        out.uint32(self.step)
        out.content(self.data)
        return out.finish()

    @classmethod
    def decode(cls, message: bytes | memoryview) -> Image:
        """`data` points into the message. Raises DataError if it ends early."""
        source = CdrReader(message)
        header = Header.read(source)
        height, width, encoding = source.uint32(), source.uint32(), source.text()
        is_bigendian, step = source.uint8(), source.uint32()
        return cls(header, height, width, encoding, step, source.content(), is_bigendian)


@dataclass(frozen=True)
class CompressedImage:
    """sensor_msgs/msg/CompressedImage. format: such as "jpeg"; data: a picture file's content."""

    header: Header
    format: str
    data: bytes | memoryview

    TYPE: ClassVar = MessageType(
        "sensor_msgs/msg/CompressedImage",
        "RIHS01_15640771531571185e2efc8a100baf923961a4d15d5569652e6cb6691e8e371a",
        "std_msgs/Header header\nstring format\nuint8[] data\n",
        HEADER,
    )

    def encode(self) -> bytes:
        out = CdrWriter()
        self.header.write(out)
        out.text(self.format)
        out.content(self.data)
        return out.finish()

    @classmethod
    def decode(cls, message: bytes | memoryview) -> CompressedImage:
        """`data` points into the message. Raises DataError if it ends early."""
        source = CdrReader(message)
        return cls(Header.read(source), source.text(), source.content())


@dataclass(frozen=True)
class LabelInfo:
    """vision_msgs/msg/LabelInfo: the names of class ids 0, 1, ..."""

    header: Header
    classes: Sequence[str]
    threshold: float = 0.0

    TYPE: ClassVar = MessageType(
        "vision_msgs/msg/LabelInfo",
        "RIHS01_3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783",
        "std_msgs/Header header\nvision_msgs/VisionClass[] class_map\nfloat32 threshold\n",
        {**HEADER, "vision_msgs/msg/VisionClass": "uint16 class_id\nstring class_name\n"},
    )

    def encode(self) -> bytes:
        out = CdrWriter()
        self.header.write(out)
        out.uint32(len(self.classes))
        for number, name in enumerate(self.classes):
            out.uint16(number)
            out.text(name)
        out.float32(self.threshold)
        return out.finish()

    @classmethod
    def decode(cls, message: bytes | memoryview) -> LabelInfo:
        """Raises DataError if the message ends early."""
        source = CdrReader(message)
        header, names = Header.read(source), {}
        for _ in range(min(source.uint32(), MOST_CLASSES)):
            number = source.uint16()
            names[number] = source.text()
        classes = [names.get(number, "") for number in range(max(names, default=-1) + 1)]
        return cls(header, classes, source.float32())


@dataclass(frozen=True)
class Diagnostic:
    """diagnostic_msgs/msg/DiagnosticStatus. level: 0 OK, 1 WARN, 2 ERROR, 3 STALE."""

    level: int
    name: str
    message: str
    hardware_id: str = ""
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DiagnosticArray:
    """diagnostic_msgs/msg/DiagnosticArray."""

    header: Header
    statuses: Sequence[Diagnostic]

    TYPE: ClassVar = MessageType(
        "diagnostic_msgs/msg/DiagnosticArray",
        "RIHS01_5a8a36efb05fb25070fa0fb3810290c0e6cd4862b54a8fb975a1ee8dc55a333e",
        "std_msgs/Header header\ndiagnostic_msgs/DiagnosticStatus[] status\n",
        {
            **HEADER,
            "diagnostic_msgs/msg/DiagnosticStatus": "byte OK=0\nbyte WARN=1\nbyte ERROR=2\n"
            "byte STALE=3\nbyte level\nstring name\nstring message\nstring hardware_id\n"
            "diagnostic_msgs/KeyValue[] values\n",
            "diagnostic_msgs/msg/KeyValue": "string key\nstring value\n",
        },
    )

    def encode(self) -> bytes:
        out = CdrWriter()
        self.header.write(out)
        out.uint32(len(self.statuses))
        for status in self.statuses:
            out.uint8(status.level)
            out.text(status.name)
            out.text(status.message)
            out.text(status.hardware_id)
            out.uint32(len(status.values))
            for key, value in status.values.items():
                out.text(key)
                out.text(value)
        return out.finish()

    @classmethod
    def decode(cls, message: bytes | memoryview) -> DiagnosticArray:
        """Raises DataError if the message ends early."""
        source = CdrReader(message)
        header, statuses = Header.read(source), []
        for _ in range(source.uint32()):
            level, texts = source.uint8(), [source.text() for _ in range(3)]
            values = {}
            for _ in range(source.uint32()):
                key = source.text()
                values[key] = source.text()
            statuses.append(Diagnostic(level, texts[0], texts[1], texts[2], values))
        return cls(header, statuses)


RosMessage = Image | CompressedImage | LabelInfo | DiagnosticArray
