"""The card inside of a safetensors file, and the digest of the tensors that it is of."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..data.limits import parse_json
from ..data.safetensors_header import read_tensor_header
from ..errors import ArtifactError


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin.

    Raises:
        ArtifactError: if it has none, or not all of its bytes are there.
    """
    if not path.is_file():
        raise ArtifactError(f"no file at {path}")
    return read_tensor_header(path, ArtifactError)


def digest_of_tensors(path: Path) -> str:
    """The SHA-256 of a safetensors file's tensors, their names, types and shapes."""
    header, start = _read_header(path)
    header.pop("__metadata__", None)
    # Sorted, so that a tool that writes the header in another order keeps the digest.
    summary = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(1 << 22):
            summary.update(block)
    return summary.hexdigest()


def find_header_card(path: Path) -> str:
    """The card's JSON in the header of an artifact's weights.

    Raises:
        ArtifactError: if the file is a checkpoint, which has none.
    """
    card = (_read_header(path)[0].get("__metadata__") or {}).get("card")
    if card is None:
        raise ArtifactError(
            f"{path} is a checkpoint without a card: `rtseg export {path}` makes artifacts of it"
        )
    if not card.startswith('"'):
        return str(card)
    return str(parse_json(card, f"the card in {path}", ArtifactError))
