"""The state of a run on disk: written whole or not at all, read without running code."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..data.files import write_atomically
from ..errors import CheckpointError


class SaveError(OSError):
    """A file of the run that could not be written; what was saved before is still there."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Raises SaveError, for a full disk say, and leaves an older file at `path` as it was."""
    content = io.BytesIO()
    torch.save(state, content)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise SaveError(
            f"cannot write {path}: {error.strerror or error}; the last saved state is unharmed, "
            "make room and go on with --resume"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """Raises CheckpointError for a file that is missing, damaged or no state of a run."""
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: no {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "iteration" not in state:
        raise CheckpointError(f"{path} is not the state of a training run")
    if "optimiser" in state:  # as 0.1 wrote it
        state["optimizer"] = state.pop("optimiser")
    return state


def git_revision() -> str:
    """The revision of this code, `-dirty` if changed since; "unknown" outside a checkout."""
    folder = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
