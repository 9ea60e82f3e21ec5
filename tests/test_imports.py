"""Imports go one way, and the base package runs without PyTorch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

# Modules beside the folders, for all to use.
BASE = {"errors", "_package", "gpu", "install", "reporting", "system", "usage"}
NETWORKS = {"data", "models", "train", "runtime", "export"}
MAY_IMPORT = {
    "errors": {"install"},
    "install": set(),
    "_package": set(),
    "reporting": {"errors"},
    "gpu": set(),
    "system": {"gpu"},
    "usage": {"gpu", "system"},
    "data": BASE,
    "models": BASE | {"data"},
    "train": BASE | {"data", "models"},
    "runtime": BASE | {"data"},
    "export": BASE | {"data", "models", "train", "runtime"},
    "labels": {"errors", "runtime"},
    "resolve": BASE | NETWORKS,
    "speed": BASE | NETWORKS | {"resolve"},
    "demo": BASE | NETWORKS | {"resolve", "speed"},
    "fleet": BASE | {"data", "runtime"},
    "api": BASE | NETWORKS | {"resolve"},
    "drive_job": BASE | {"data", "runtime", "resolve", "demo"},
    "cli": BASE | NETWORKS | {"resolve", "speed", "demo", "fleet", "api", "drive_job"},
}
EXCEPT = {
    "runtime/backends/pytorch.py": {"models"},  # the one backend that needs PyTorch
    "runtime/backends/qnn.py": {"labels"},  # an NPU's logits become labels on the host
    "train/teacher.py": {"runtime", "resolve"},  # an artifact teaches too
}
FOLDERS = [name for name in MAY_IMPORT if (ROOT / name).is_dir()]
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
FILES += sorted(ROOT / f"{name}.py" for name in MAY_IMPORT if name not in FOLDERS)


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
    folder = name.split("/")[0].removesuffix(".py")
    allowed = MAY_IMPORT[folder] | EXCEPT.get(name, set()) | {folder}
    assert imported_folders(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_only_the_front_door_prints(path: Path) -> None:
    calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert prints == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_is_installed(folder: str) -> None:
    """An editable installation finds a folder without `__init__.py`, a wheel leaves it out."""
    assert (ROOT / folder / "__init__.py").is_file()
