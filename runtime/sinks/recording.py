"""Names of recordings: what was recorded before is never overwritten."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path


class RecordingFile:
    """A file that gets its name when it is whole; until then it is `NAME.partial.SUFFIX`.

    Where `path` is taken, by a finished recording or by what a crash left of one, it is numbered:
    `drive.mcap`, `drive-2.mcap`, ...

    Args:
        path: the name wished for.

    Attributes:
        path: the name that it will have.
        partial: the empty file to write to; no other recording has it.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, path: Path):
        for self.path in _numbered(path):
            self.partial = self.path.with_name(f"{self.path.stem}.partial{self.path.suffix}")
            if not self.path.exists() and _create(self.partial):
                return

    def publish(self) -> None:
        """Give it its name, once it is on the disk. Raises OSError if it cannot be."""
        # Content before name, and the folder after it, or a power cut may leave the name without
        # content.
        _sync(self.partial)
        self.partial.rename(self.path)
        _sync(self.path.parent)

    def abandon(self) -> None:
        """Leave what there is under its partial name; remove it if that is nothing."""
        if self.partial.stat().st_size == 0:
            self.partial.unlink()


def new_folder(path: Path) -> Path:
    """Make `path`, or a numbered one where that holds something already."""
    for folder in _numbered(path):
        folder.mkdir(parents=True, exist_ok=True)
        if not any(folder.iterdir()):
            return folder
    raise AssertionError("numbers do not end")


def check_writable(folder: Path) -> None:
    """Make a folder that recordings will be written to.

    Raises:
        OSError: it cannot be made, or not be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise OSError(errno.EACCES, "the folder cannot be written to", str(folder))


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))


def _create(path: Path) -> bool:
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
