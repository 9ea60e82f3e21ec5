"""Serialized protobuf messages, field by field, without their descriptions.

Enough to copy an ONNX model with a few fields changed; the base install has no `onnx`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types


@dataclass(frozen=True)
class Field:
    """A field of a message: its number, what it holds (nothing, if that is a number of fixed size),
    and all its bytes."""

    number: int
    value: int | bytes
    raw: bytes

    @property
    def content(self) -> bytes:
        assert isinstance(self.value, bytes)
        return self.value


def fields(content: bytes) -> Iterator[Field]:
    """The fields of a message, in order. Raises ValueError where it is none."""
    at = 0
    while at < len(content):
        start = at
        tag, at = read_varint(content, at)
        value: int | bytes = b""
        if tag & 7 == VARINT:
            value, at = read_varint(content, at)
        elif tag & 7 == BYTES:
            length, at = read_varint(content, at)
            value, at = content[at : at + length], at + length
        elif tag & 7 in (EIGHT_BYTES, FOUR_BYTES):
            at += 8 if tag & 7 == EIGHT_BYTES else 4
        else:
            raise ValueError(f"no protobuf message: wire type {tag & 7}")
        if at > len(content):
            raise ValueError("a protobuf message ends too early")
        yield Field(tag >> 3, value, content[start:at])


def message(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text or another message."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def read_varint(content: bytes, at: int) -> tuple[int, int]:
    """(value, position behind it); of one that is cut off, what there is."""
    value = shift = 0
    while at < len(content):
        value |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if content[at - 1] < 0x80:
            break
    return value, at
