"""The header of a safetensors file, checked against the file before any tensor is made."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from .limits import Kind, check_limit, parse_json

WIDTHS = {  # bytes of a value
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 8),
}
METADATA = "__metadata__"


def read_tensor_header(path: Path, kind: Kind) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file: each tensor's entry by name, and `__metadata__`.

    Args:
        path: of the file.
        kind: of the error.

    Returns:
        The header, and the byte where the tensors begin.

    Raises:
        UsageError: as `kind`, if it is none, is beyond the limits, or its tensors do not fill the
            file one after the other.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        check_limit("weights_bytes", size, path, kind)
        length = int.from_bytes(file.read(8), "little")
        if 8 + length > size or length < 2:
            raise kind(_DAMAGED.format(path))
        check_limit("header_bytes", length, path, kind)
        header = parse_json(file.read(length), path, kind)
    if not isinstance(header, dict):
        raise kind(_DAMAGED.format(path))
    metadata = header.get(METADATA) or {}
    tensors = {name: entry for name, entry in header.items() if name != METADATA}
    check_limit("tensors", len(tensors), path, kind)
    found = [_find_span(entry) for entry in tensors.values()]
    spans = sorted(span for span in found if span is not None)
    ends = [0, *(end for _, end in spans)]
    begins = [*(begin for begin, _ in spans), size - 8 - length]
    strings = isinstance(metadata, dict) and all(
        isinstance(value, str) for value in metadata.values()
    )
    # Else two tensors share bytes, or bytes belong to none, or some are missing.
    if None in found or ends != begins or not strings:
        raise kind(_DAMAGED.format(path))
    return header, 8 + length


_DAMAGED = "{} is damaged or not a safetensors file: fetch or export it again"


def _find_span(entry: Any) -> tuple[int, int] | None:
    """(first byte, byte behind the last) of a tensor; None where its entry makes no sense."""
    if not isinstance(entry, dict):
        return None
    offsets, shape = _read_sizes(entry.get("data_offsets")), _read_sizes(entry.get("shape"))
    width = WIDTHS.get(str(entry.get("dtype")))
    if offsets is None or shape is None or width is None or len(offsets) != 2:
        return None
    begin, end = offsets
    return (begin, end) if end - begin == math.prod(shape) * width else None


def _read_sizes(values: object) -> list[int] | None:
    """Whole numbers of no less than 0, else None."""
    if not isinstance(values, list):
        return None
    return values if all(type(each) is int and each >= 0 for each in values) else None
