"""CDR, the serialization of ROS 2 messages: plain CDR version 1, and reading its variants."""

from __future__ import annotations

import struct

from ...errors import DataError

LITTLE_ENDIAN = b"\x00\x01\x00\x00"  # the encapsulation that ROS 2 writes
# Version 2 differs from version 1 only in 8-byte numbers and in types that are not final, and
# neither occurs in the messages here.
BYTE_ORDERS = {0x0000: ">", 0x0001: "<", 0x0006: ">", 0x0007: "<"}
LONGEST_TEXT = 1 << 16


class CdrWriter:
    """Appends values, each at its own alignment; `finish` gives the message."""

    def __init__(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._size = 0  # without the encapsulation, which alignment does not count

    def uint8(self, value: int) -> None:
        self._add(struct.pack("<B", value))

    def uint16(self, value: int) -> None:
        self._number("<H", value, 2)

    def uint32(self, value: int) -> None:
        self._number("<I", value, 4)

    def int32(self, value: int) -> None:
        self._number("<i", value, 4)

    def float32(self, value: float) -> None:
        self._number("<f", value, 4)

    def text(self, value: str) -> None:
        content = value.encode() + b"\0"
        self.uint32(len(content))
        self._add(content)

    def content(self, value: bytes | memoryview) -> None:
        """A sequence of bytes, which is not copied before `finish`."""
        self.uint32(len(value))
        self._add(value)

    def finish(self) -> bytes:
        return b"".join((LITTLE_ENDIAN, *self._parts))

    def _number(self, form: str, value: float, size: int) -> None:
        self._add(bytes(-self._size % size))
        self._add(struct.pack(form, value))

    def _add(self, part: bytes | memoryview) -> None:
        self._parts.append(part)
        self._size += len(part)


class CdrReader:
    """Reads values from a message, front to back.

    Args:
        message: with its encapsulation of four bytes.

    Raises:
        DataError: it is no CDR of a final type, or, from every method, it ends too early.
    """

    def __init__(self, message: bytes | memoryview):
        self._data = memoryview(message)
        if len(self._data) < 4:
            raise DataError(f"a message of {len(self._data)} bytes")
        kind = int.from_bytes(self._data[:2], "big")
        if kind not in BYTE_ORDERS:
            raise DataError(f"a message in the encapsulation {kind:#06x}, which is no plain CDR")
        self._order = BYTE_ORDERS[kind]
        self._data = self._data[4:]
        self._at = 0

    def uint8(self) -> int:
        return self._take(1)[0]

    def uint16(self) -> int:
        return int(self._number("H", 2))

    def uint32(self) -> int:
        return int(self._number("I", 4))

    def int32(self) -> int:
        return int(self._number("i", 4))

    def float32(self) -> float:
        return self._number("f", 4)

    def text(self) -> str:
        size = self.uint32()
        if size > LONGEST_TEXT:
            raise DataError(f"a text of {size} bytes, where at most {LONGEST_TEXT} are sensible")
        return bytes(self._take(size)).rstrip(b"\0").decode(errors="replace")

    def content(self) -> memoryview:
        """A sequence of bytes, which stays where it is."""
        return self._take(self.uint32())

    def _number(self, form: str, size: int) -> float:
        self._take(-self._at % size)
        (value,) = struct.unpack(self._order + form, self._take(size))
        return float(value) if form == "f" else value

    def _take(self, size: int) -> memoryview:
        left = len(self._data) - self._at
        if size > left:
            raise DataError(f"a message that ends early: {size} bytes are wanted, {left} are left")
        self._at += size
        return self._data[self._at - size : self._at]
