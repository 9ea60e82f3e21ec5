"""An ONNX file's structure, walked before any library parses it.

Only lengths and field numbers are looked at, so that it takes milliseconds; values are skipped.
"""

from __future__ import annotations

from ..data.limits import check_limit, find_limit
from ..errors import ArtifactError

# Fields of onnx.proto that hold messages, by the kind of message; the rest are values.
MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse", 11: "value", 12: "value", 13: "value"},
    "node": {5: "attribute"},
    "attribute": {
        **dict.fromkeys((5, 10), "tensor"),
        **dict.fromkeys((6, 11), "graph"),
        **dict.fromkeys((22, 23), "sparse"),
        **dict.fromkeys((14, 15), "type"),
    },
    "function": {7: "node", 11: "attribute", 12: "value"},
    "training": {1: "graph", 2: "graph"},
    "sparse": {1: "tensor", 2: "tensor"},
    "value": {2: "type"},
    "type": {4: "sequence", 5: "map", 9: "sequence"},
    "sequence": {1: "type"},
    "map": {2: "type"},
    "tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # of a tensor


def scan_onnx(content: bytes, where: object) -> None:
    """Refuse an ONNX model that is cut off, beyond the limits, or keeps weights elsewhere.

    Args:
        content: of the file.
        where: its path, for messages.

    Raises:
        ArtifactError: it is.
    """
    check_limit("model_bytes", len(content), where, ArtifactError)
    most, fields = find_limit("model_fields"), 0
    waiting = [(0, len(content), "model", 1)]
    while waiting:
        place, end, kind, depth = waiting.pop()
        check_limit("depth", depth, where, ArtifactError)
        inside = MESSAGES[kind]
        while place < end:
            fields += 1
            if fields > most:
                check_limit("model_fields", fields, where, ArtifactError)
            tag, place = _varint(content, place, end, where)
            number, wire = tag >> 3, tag & 7
            begin = place
            if wire == 0:
                value, place = _varint(content, place, end, where)
            elif wire == 2:
                length, begin = _varint(content, place, end, where)
                value, place = length, begin + length
            elif wire in (1, 5):
                value, place = 0, place + (8 if wire == 1 else 4)
            else:
                raise _damage(where)
            if place > end or not number:
                raise _damage(where)
            outside = number == EXTERNAL_DATA or (number == DATA_LOCATION and value)
            if kind == "tensor" and outside:
                raise ArtifactError(
                    f"{where} keeps weights in another file, which no digest covers: export it "
                    "again"
                )
            if wire == 2 and number in inside:
                waiting.append((begin, place, inside[number], depth + 1))


def _varint(content: bytes, place: int, end: int, where: object) -> tuple[int, int]:
    """(the number, the place behind it)."""
    value = shift = 0
    while place < end and shift < 64:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise _damage(where)


def _damage(where: object) -> ArtifactError:
    return ArtifactError(f"{where} is damaged or no ONNX model: copy or export it again")
