"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from rtseg.data.files import write_atomically


def test_content_is_on_the_disk_before_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a loss of power may leave an empty file under the final name."""
    steps = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        steps.append("folder" if folder else f"{os.fstat(handle).st_size} bytes")
        sync(handle)

    def note_rename(source: str, target: Path) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_rename)
    write_atomically(tmp_path / "record", b"12345")
    assert steps == ["5 bytes", "rename", "folder"]
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
