"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    summary = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            summary.update(block)
    return summary.hexdigest()
