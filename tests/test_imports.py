"""Imports go one way, and the base package runs without PyTorch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

MAY_IMPORT = {
    "data": set(),
    "models": {"data"},
    "train": {"data", "models"},
    "runtime": {"data"},
    "export": {"data", "models", "train", "runtime"},
    "speed": {"data", "models", "train", "runtime", "export"},
    "demo": {"data", "models", "train", "runtime", "export", "speed"},
    "fleet": {"data", "runtime"},
    "cli": {"data", "models", "train", "runtime", "export", "speed", "demo", "fleet"},
}
EXCEPT = {
    "runtime/backends/pytorch.py": {"models"},  # the one backend that needs PyTorch
    "train/teacher.py": {"runtime"},  # an artifact teaches too
}
FILES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py"))


def imported_folders(path: Path) -> set[str]:
    depth = len(path.relative_to(ROOT).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth and node.module:
            found.add(node.module.split(".")[0])
    return found & MAY_IMPORT.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    folder = name.split("/")[0]
    allowed = MAY_IMPORT[folder] | EXCEPT.get(name, set()) | {folder}
    assert imported_folders(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_front_door_prints(path: Path) -> None:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert prints == []


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_every_folder_is_installed(folder: str) -> None:
    """An editable installation finds a folder without `__init__.py`, a wheel leaves it out."""
    assert (ROOT / folder / "__init__.py").is_file()
