"""The card inside of an ONNX file: a metadata property at its end, found without any library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ArtifactError

if TYPE_CHECKING:
    from .artifact import Card

# Numbers of fields in onnx.proto: of a model; of its graph.
GRAPH, METADATA, OUTPUT = 7, 14, 12
# The start of an entry of the metadata, its key, and of how protobuf writes its value.
ENTRY = b"\x0a\x05rtseg\x12"


def split_card(content: bytes, path: Path) -> tuple[bytes, bytes]:
    """(the model without its card, the card's JSON) of a file's content.

    Raises:
        ArtifactError: it has no card, or is damaged.
    """
    # The last one: a card goes to the end, and a model may hold such bytes by chance.
    start = content.rfind(ENTRY)
    if start < 0 and not _is_onnx(content):
        raise ArtifactError(f"{path} is truncated or no ONNX file: copy or export it again")
    if start < 0:
        raise ArtifactError(
            f"{path} carries no card, so nothing says what its classes and sizes are: "
            f"`rtseg export {path} --normalize NAME` makes an artifact of it"
        )
    added = field(METADATA, content[start:])
    for digits in range(1, 6):  # of the text's length
        at = start + len(ENTRY) + digits
        if at > len(content):
            break
        prefix = ENTRY + encode_varint(len(content) - at)
        if content[start:at] == prefix and content.endswith(added):
            return content[: -len(added)], content[at:]
    raise ArtifactError(
        f"{path} is truncated or was rewritten by another tool: copy or export it again"
    )


def _is_onnx(content: bytes) -> bool:
    """Whether protobuf fields fill these bytes to the end, and one of them is a graph."""
    at, numbers = 0, set()
    while at < len(content):
        tag, at = _read_varint(content, at)
        number, kind = tag >> 3, tag & 7
        numbers.add(number)
        if kind == 0:
            _, at = _read_varint(content, at)
        elif kind == 2:
            length, at = _read_varint(content, at)
            at += length
        else:  # a model has no fields of other kinds
            return False
    return at == len(content) and GRAPH in numbers


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends: beyond the content if it is cut short."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[at] if at < len(content) else 0x80
        value, at = value | (byte & 0x7F) << shift, at + 1
        if byte < 0x80:
            return value, at
    return value, len(content) + 1


def field(number: int, content: bytes) -> bytes:
    """A protobuf field that holds bytes, text or another message."""
    return encode_varint(number << 3 | 2) + encode_varint(len(content)) + content


def encode_varint(value: int) -> bytes:
    """Protobuf's number: seven bits a byte, lowest first; the eighth says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def coarse_graph(content: bytes, card: Card) -> bytes:
    """The ONNX model, of a file's content, that ends at the coarse logits instead of the labels."""
    # ONNX Runtime computes every output of a graph, asked for or not (in 1.31 RunOptions'
    # only_execute_path_to_fetches skips nothing), so the end has to go. The exporter puts it last
    # in the file, so that leaving it out takes no look inside and no onnx package.
    assert card.coarse is not None
    assert card.coarse.parts is not None
    head, start, end = card.coarse.parts
    names = [*(name for name in card.outputs if name != "labels"), card.coarse.tensor]
    outputs = [field(OUTPUT, field(1, name.encode())) for name in dict.fromkeys(names)]
    return content[:head] + field(GRAPH, content[start:end] + b"".join(outputs))
