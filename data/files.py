"""The one way to write: nothing has its final name before it is whole and on the disk.

`write_atomically` takes content that is at hand, `stage_file` what another library writes by name,
`RecordingFile` what comes bit by bit and is kept when it is cut short, `LineLog` whole lines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import BinaryIO, TextIO

from ..errors import WriteError
from .descriptors import RESERVE

ELSEWHERE = "or name another folder"
REMEDIES = {  # what the user can do about a write that failed
    errno.ENOSPC: f"the disk is full: free some space there, {ELSEWHERE}",
    errno.EDQUOT: f"the disk quota is used up: free some space there, {ELSEWHERE}",
    errno.EROFS: "the file system is read-only: name another folder",
    errno.EIO: f"the disk failed: look into the system's log (dmesg), {ELSEWHERE}",
    errno.EFBIG: f"a file may not grow that large here: raise the limit (ulimit -f), {ELSEWHERE}",
    errno.EMFILE: "this process has no file descriptors left: raise its limit (ulimit -n)",
    errno.ENFILE: "this machine has no file descriptors left: raise the limit (fs.file-max)",
    errno.EACCES: f"this user may not write there: change its permissions, {ELSEWHERE}",
    errno.EPERM: f"this user may not write there: change its permissions, {ELSEWHERE}",
}


@contextlib.contextmanager
def explain_failure(path: Path) -> Iterator[None]:
    """A full, read-only or broken disk as one line that names `path` and what to do; a process
    without descriptors takes those in reserve.

    Raises:
        WriteError: in place of the OSError of such a disk.
    """
    if "\0" in str(path):  # Python's own ValueError would not say what to do
        raise WriteError(errno.EINVAL, "no name holds a zero byte: name another", repr(str(path)))
    try:
        with RESERVE.lend():
            yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise WriteError(error.errno, REMEDIES[error.errno], str(path)) from error


def write_atomically(path: Path, content: bytes, mode: int = 0o644, replaces: bool = True) -> None:
    """Write to a temporary name beside `path`, then rename: a reader never sees half a file, not
    even after a loss of power.

    Args:
        path: of the file; its folder is made.
        content: all of it.
        mode: permissions.
        replaces: whether a file that is there already gives way.

    Raises:
        WriteError: the disk does not take it; nothing is left.
        FileExistsError: it is there already, and is not to be replaced.
    """
    with stage_file(path, mode, replaces) as temporary, temporary.open("wb") as file:
        file.write(content)


@contextlib.contextmanager
def stage_file(path: Path, mode: int = 0o644, replaces: bool = True) -> Iterator[Path]:
    """A temporary file beside `path`, with its ending, that becomes `path` at the end of the block;
    after an error it is removed. Arguments and errors as of `write_atomically`."""
    with explain_failure(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:100]}.", suffix=path.suffix
        )
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, mode)
            # A name may reach the disk before the content does: then the file would be empty.
            _sync(Path(name))
            if replaces:
                os.replace(name, path)
            else:
                _rename_to_new(Path(name), path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def find_reason(path: Path) -> Iterator[None]:
    """Around a library that writes `path` by itself and does not say why it could not.

    Raises:
        WriteError: in place of its error, where the disk is the reason.
    """
    try:
        yield
    except Exception:
        with explain_failure(path):
            probe_disk(path.parent)
        raise


def probe_disk(folder: Path) -> None:
    """Raises OSError unless a file of 1 MiB can be written in `folder`; it leaves none."""
    # Buffered: a plain write takes as much as there is room for, and says nothing.
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(1 << 20))
        probe.flush()
        os.fsync(probe.fileno())


def move_file(source: Path, target: Path) -> None:
    """Give a file that is whole its name, once it is on the disk.

    Raises:
        WriteError: the disk does not take it.
    """
    with explain_failure(target):
        _sync(source)
        os.replace(source, target)
        _sync_folder(target.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content; errors as of `write_atomically`."""
    with stage_file(target) as temporary:
        shutil.copyfile(source, temporary)


def replace_folder(made: Path, folder: Path) -> None:
    """Put a folder that is whole in the place of an older one, which goes to `made`'s parent.

    Raises:
        WriteError: the disk does not take it.
    """
    with explain_failure(folder):
        for each in made.rglob("*"):
            _sync_folder(each) if each.is_dir() else _sync(each)
        if folder.exists():
            folder.rename(made.with_name("old"))
        made.rename(folder)
        _sync_folder(folder.parent)


class RecordingFile:
    """A file that gets its name when it is whole; until then it is `NAME.partial`, such as
    `drive.mp4.partial`, which no other recording has. Renamed, what a crash left can be read.

    Args:
        path: the name wished for; its folder is made.
        replaces: whether an older file of that name gives way. Otherwise this one is numbered where
            the name is taken, by a finished recording or by what a crash left of one: `drive.mcap`,
            `drive-2.mcap`, ...

    Attributes:
        path: the name that it will have.
        partial: the empty file to write to.

    Raises:
        WriteError: the folder cannot be written to.
    """

    def __init__(self, path: Path, replaces: bool = False):
        self._replaces = replaces
        with explain_failure(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            for name in _numbered(path):
                self.path = path if replaces else name
                self.partial = name.with_name(f"{name.name}.partial")
                if (replaces or not name.exists()) and _create(self.partial):
                    return

    def open(self) -> BinaryIO:
        """The partial file, to write to; errors as of `write_atomically`."""
        with explain_failure(self.partial):
            return self.partial.open("wb")

    @contextlib.contextmanager
    def under_its_ending(self) -> Iterator[Path]:
        """A temporary file of the wished ending, for a library that goes by that; it becomes the
        partial file at the end of the block, and a library that holds it open writes on."""
        with explain_failure(self.path):
            handle, name = tempfile.mkstemp(
                dir=self.path.parent, prefix=f".{self.path.stem[:100]}.", suffix=self.path.suffix
            )
            os.close(handle)
            os.chmod(name, 0o644)
        try:
            yield Path(name)
            os.replace(name, self.partial)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise

    def publish(self) -> None:
        """Give it its name, once it is on the disk; errors as of `move_file`."""
        if self._replaces:
            move_file(self.partial, self.path)
            return
        with explain_failure(self.path):
            _sync(self.partial)
            for name in _numbered(self.path):
                with contextlib.suppress(FileExistsError):
                    _rename_to_new(self.partial, name)
                    self.path = name
                    break
            _sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Leave what there is under its partial name; remove it if that is nothing."""
        with contextlib.suppress(OSError):  # another error is on its way, or it is gone
            if self.partial.stat().st_size == 0:
                self.partial.unlink()


@contextlib.contextmanager
def text_log(path: Path) -> Iterator[TextIO]:
    """What a job says of itself: it has its name when the job has ended, well or not, and stays
    partial if it was cut short by a signal or a disk."""
    recording = RecordingFile(path, replaces=True)
    with explain_failure(recording.partial):
        file = io.TextIOWrapper(recording.open(), encoding="utf-8")
    try:
        yield file
    except Exception as error:
        if not isinstance(error, OSError):
            file.close()
            recording.publish()
        raise
    with explain_failure(recording.partial):
        file.close()
    recording.publish()


class LineLog:
    """A log whose lines are appended one by one, each whole or not at all.

    Args:
        path: of the file, which is written anew.
        lines: that it begins with.

    Raises:
        WriteError: the disk does not take it.
    """

    def __init__(self, path: Path, lines: Iterable[str] = ()):
        self.path = path
        write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
        self._file = path.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Write a line; after a WriteError the file is as it was."""
        content = memoryview(f"{line}\n".encode())
        with explain_failure(self.path):
            end = os.fstat(self._file.fileno()).st_size
            try:
                while content:
                    content = content[self._file.write(content) :]
            except BaseException:
                self._file.truncate(end)
                raise

    def close(self) -> None:
        """Bring it to the disk."""
        with explain_failure(self.path), self._file:
            os.fsync(self._file.fileno())


def new_folder(path: Path) -> Path:
    """Make `path`, or a numbered one where that holds something already.

    Raises:
        WriteError: it cannot be made.
    """
    with explain_failure(path):
        for folder in _numbered(path):
            folder.mkdir(parents=True, exist_ok=True)
            if not any(folder.iterdir()):
                return folder
    raise AssertionError("numbers do not end")


def keep_newest(parent: Path, pattern: str, most: int) -> list[Path]:
    """Remove all but the `most` newest files or folders that a pattern matches.

    Returns:
        Those that stay, the newest last.
    """
    found = sorted(parent.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    for path in found[:-most]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found[-most:]


def check_writable(folder: Path) -> None:
    """Make a folder that files will be written to.

    Raises:
        WriteError: it cannot be made, or not be written to.
    """
    with explain_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _numbered(path: Path) -> Iterator[Path]:
    yield path
    yield from (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))


def _create(path: Path) -> bool:
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def _rename_to_new(source: Path, target: Path) -> None:
    """Raises FileExistsError if `target` is there: a plain rename would write over it."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: the name is taken first
        target.open("xb").close()
        os.replace(source, target)
    else:
        os.unlink(source)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems sync none
        _sync(folder)


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
    with explain_failure(parent):
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f".{purpose}-*"):
            with contextlib.suppress(OSError), _locked(left):
                shutil.rmtree(left, ignore_errors=True)
    with contextlib.ExitStack() as held:
        with explain_failure(parent):
            folder = Path(tempfile.mkdtemp(dir=parent, prefix=f".{purpose}-"))
        held.callback(shutil.rmtree, folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # a file system without locks; nobody removes it either
            held.enter_context(_locked(folder))
        folder.mkdir(exist_ok=True)  # if another process took it for left over before it was locked
        yield folder


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """A folder, made if need be, that no other process holds meanwhile.

    Raises:
        BlockingIOError: another process holds it.
        WriteError: it cannot be made or written to.
    """
    check_writable(folder)
    with _locked(folder):
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """A folder held as long as this process lives; OSError if another holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
