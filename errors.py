"""The errors that rtseg raises itself: each message names what was given, what is wrong with it and
what to do.

The command line turns an `RtsegError` or an `OSError` into one line and an exit code. Every other
exception is a bug and shows its traceback.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

__all__ = [
    "ArtifactError",
    "BackendError",
    "CheckpointError",
    "DataError",
    "ExportError",
    "MissingPackage",
    "ProofError",
    "RecipeError",
    "RtsegError",
    "SignatureError",
    "TrainingError",
    "UsageError",
    "WriteError",
]


class RtsegError(Exception):
    """The base of all errors that rtseg raises itself.

    Attributes:
        exit_code: what the command line exits with: 1 the job failed, 2 wrong usage.
    """

    exit_code = 1

    def __init__(self, *arguments: object):
        if arguments and '"rtseg[' in (message := str(arguments[0])):
            from .install import localize

            arguments = (localize(message), *arguments[1:])
        super().__init__(*arguments)


# Python's own classes too, here and below, for code that catches those.
class UsageError(RtsegError, ValueError):
    """A name, a value or a file that cannot be used as asked; nothing was written."""

    exit_code = 2


class ArtifactError(UsageError):
    """A file that is no artifact, is damaged or does not run on this machine."""


class SignatureError(ArtifactError):
    """A file that the required key did not sign, or that was changed since; it was not read."""


class CheckpointError(UsageError):
    """A checkpoint that cannot be read or does not fit the network; nothing was loaded.

    Attributes:
        missing: keys of the network that the checkpoint lacks.
        unexpected: keys of the checkpoint that the network has no place for.
        misshaped: "key: shape found, shape expected".
    """

    def __init__(
        self,
        message: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshaped: Iterable[str] = (),
    ):
        super().__init__(message)
        self.missing, self.unexpected = list(missing), list(unexpected)
        self.misshaped = list(misshaped)


class DataError(UsageError):
    """A file or folder of a data set that is missing, unreadable or not what it should be."""


class ExportError(UsageError):
    """An export that cannot be made as asked; nothing was written."""


class RecipeError(UsageError):
    """A recipe that cannot be used; the message names the key and what to write instead."""


class BackendError(RtsegError, RuntimeError):
    """An engine, a driver or a GPU that failed at work."""


class MissingPackage(RtsegError, ImportError):
    """A package that is not installed; the message is the command that installs it."""


class ProofError(RtsegError, RuntimeError):
    """Artifacts that fell below the parity bar; they were kept under a `.failed` name."""


class WriteError(RtsegError, OSError):
    """A disk that is full, read-only or broken, or a folder that this user may not write to; what
    was being written is gone, or has `.partial` in its name.

    Attributes:
        errno: why, such as `errno.ENOSPC`.
        filename: the path that was to be written.
    """

    def __str__(self) -> str:
        return f"cannot write {self.filename}: {self.strerror}"


class TrainingError(RtsegError, RuntimeError):
    """Training that cannot go on; the message says why and what to do."""


def warn_renamed(old: str, new: str) -> None:
    """Warn that `old` has been renamed; this version still accepts it."""
    warnings.warn(f"{old} is called {new} now: use that before 0.2", FutureWarning, stacklevel=3)
