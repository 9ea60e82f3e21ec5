"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, then rename: a reader never sees half a file, not
    even after a loss of power."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename is atomic within one file system alone.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            # The name may reach the disk before the content does: then the file would be empty.
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        os.unlink(temporary)
        raise


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems sync none
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    summary = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            summary.update(block)
    return summary.hexdigest()


@contextlib.contextmanager
def scratch_folder(parent: Path, purpose: str) -> Iterator[Path]:
    """A folder in `parent` that is removed at the end, `.PURPOSE-*`; what processes that were
    killed left there goes first."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f".{purpose}-*"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as held:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{purpose}-"))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks; nobody removes it either
            held.enter_context(_locked(folder))
        folder.mkdir(exist_ok=True)  # if another process took it for left over before it was locked
        yield folder


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A folder held as long as this process lives; OSError if another holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
