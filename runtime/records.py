"""Trusted records: proofs, self-tests and compiled kernels, sealed by the user's own key.

A seal is an HMAC-SHA256 under a random key in the user's cache folder, which nobody else can read.
A record that was forged, damaged or brought from another machine has no such seal and counts as
absent: what it claims is tested again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from ..data.files import write_atomically
from ..data.limits import read_json
from .packages import cache_folder

KEY_BYTES = SEAL_BYTES = 32
SEAL = "seal"  # the field of a record


def key_path() -> Path:
    """File of this user's key, made with the first record."""
    return cache_folder() / "records.key"


def write_record(path: Path, facts: Mapping[str, object]) -> None:
    """Write facts as JSON, sealed; where that is impossible, on a vehicle with a read-only home
    say, there is no record."""
    if (key := _key(make=True)) is None:
        return
    record = {**facts, SEAL: _seal(key, _canonical(facts)).hex()}
    with contextlib.suppress(OSError):
        write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def read_record(path: Path, **wanted: object) -> dict[str, object] | None:
    """The facts of a record, if it is sealed and says what is wanted; else None."""
    try:
        record = read_json(path)
        given = record.pop(SEAL).encode()
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        return None
    key = _key()
    if key is None or not hmac.compare_digest(_seal(key, _canonical(record)).hex().encode(), given):
        return None
    said = {name: record.get(name) for name in wanted}
    return record if _canonical(said) == _canonical(wanted) else None  # 1 is not true here


def seal(content: bytes) -> bytes | None:
    """Content behind its seal; None where no key can be kept."""
    key = _key(make=True)
    return None if key is None else _seal(key, content) + content


def unseal(sealed: bytes) -> bytes | None:
    """The content, if `seal` made it here; else None."""
    key, content = _key(), sealed[SEAL_BYTES:]
    if key is None or not hmac.compare_digest(_seal(key, content), sealed[:SEAL_BYTES]):
        return None
    return content


def _seal(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def _canonical(facts: Mapping[str, object]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def _key(make: bool = False) -> bytes | None:
    """The user's key; one that others may know, or that is damaged, is none and is replaced."""
    path = key_path()
    if (known := _read_key(path)) is not None or not make:
        return known
    with contextlib.suppress(OSError):
        there = path.exists()
        with contextlib.suppress(FileExistsError):  # another process was first
            write_atomically(path, secrets.token_bytes(KEY_BYTES), mode=0o600, replaces=there)
    return _read_key(path)


def _read_key(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            content = file.read(KEY_BYTES + 1)
    except OSError:
        return None
    if hasattr(os, "geteuid") and (facts.st_uid != os.geteuid() or facts.st_mode & 0o077):
        return None
    return content if stat.S_ISREG(facts.st_mode) and len(content) == KEY_BYTES else None
