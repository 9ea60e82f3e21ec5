"""An ONNX file's structure, walked before any library parses it.

Only lengths and field numbers are looked at, so that it takes milliseconds; values are skipped.
"""

from __future__ import annotations

from ..errors import ArtifactError
from .limits import Kind, check_limit, find_limit

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
BEYOND = 1 << 65  # every end of a file


def scan_onnx(
    content: bytes, where: object, kind: Kind = ArtifactError, alone: bool = True
) -> None:
    """Refuse an ONNX model that is cut off, beyond the limits, or keeps weights elsewhere.

    Args:
        content: of the file.
        where: its path, for messages.
        kind: of the error.
        alone: whether all weights have to be inside.

    Raises:
        UsageError: as `kind`, it is.
    """
    check_limit("model_bytes", len(content), where, kind)
    most, fields, nodes = find_limit("model_fields"), 0, 0
    waiting = [(0, len(content), "model", 1)]
    while waiting:
        place, end, message, depth = waiting.pop()
        check_limit("depth", depth, where, kind)
        inside = MESSAGES[message]
        while place < end:
            fields += 1
            if fields > most:
                check_limit("model_fields", fields, where, kind)
            tag, place = _varint(content, place, end)
            number, wire = tag >> 3, tag & 7
            begin = place
            if wire == 0:
                value, place = _varint(content, place, end)
            elif wire == 2:
                length, begin = _varint(content, place, end)
                value, place = length, begin + length
            elif wire in (1, 5):
                value, place = 0, place + (8 if wire == 1 else 4)
            else:
                place = BEYOND
            if place > end or not number:
                raise kind(f"{where} is damaged or no ONNX model: copy or export it again")
            outside = number == EXTERNAL_DATA or (number == DATA_LOCATION and value)
            if alone and message == "tensor" and outside:
                raise kind(
                    f"{where} keeps weights in another file, which no digest covers: export it "
                    "again"
                )
            if wire == 2 and number in inside:
                waiting.append((begin, place, inside[number], depth + 1))
                nodes += inside[number] == "node"
    check_limit("model_nodes", nodes, where, kind)


def _varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    """(the number, the place behind it, BEYOND where it does not end)."""
    value = shift = 0
    while place < end and shift < 64:
        byte = content[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    return 1, BEYOND
