"""How the package installs: its extras, and an environment that version 0.1 left broken."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

setuptools: Any = pytest.importorskip("setuptools", reason="needs setuptools: pip install it")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What setup.py defines, and under "told" what it tells setuptools."""
    told: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **words: told.update(words))
        patch.chdir(ROOT)
        return runpy.run_path(str(ROOT / "setup.py")) | {"told": told}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[>=;]", line)[0] for line in requirements}


def test_no_extra_brings_both_packages_of_onnx_runtime(script: dict[str, Any]) -> None:
    base, extras = names(script["told"]["install_requires"]), script["told"]["extras_require"]
    assert not base & {"onnxruntime", "onnxruntime-gpu"}
    on_cpu = {extra for extra, needs in extras.items() if "onnxruntime" in names(needs)}
    on_gpu = {extra for extra, needs in extras.items() if "onnxruntime-gpu" in names(needs)}
    assert on_cpu == {"cpu", "all", "dev"}
    assert on_gpu == {"gpu", "all-gpu"}
    assert names(extras["all"]) - names(extras["all-gpu"]) == {"onnxruntime"}


def test_the_base_package_runs_artifacts(script: dict[str, Any]) -> None:
    assert "openvino" in names(script["told"]["install_requires"])


def left_over(folder: Path) -> Path:
    """What uninstalling version 0.1 leaves in a folder of packages."""
    package = folder / "rtseg"
    compiled = package / "runtime" / "__pycache__"
    compiled.mkdir(parents=True)
    for name in ("labels_cpu.mix-43.py311.nbi", "labels_cpu.mix-43.py311.1.nbc"):
        (compiled / name).write_bytes(b"code")
    return package


def test_an_editable_install_removes_what_would_hide_it(
    script: dict[str, Any], tmp_path: Path
) -> None:
    package = left_over(tmp_path)
    script["remove_leftovers"](package)
    assert not package.exists()
    script["remove_leftovers"](package)  # nothing there: nothing to do


def test_an_installed_package_loses_its_compiled_loops_only(
    script: dict[str, Any], tmp_path: Path
) -> None:
    package = left_over(tmp_path)
    kept = [package / "__init__.py", package / "runtime" / "__pycache__" / "card.cpython-311.pyc"]
    for path in kept:
        path.touch()
    script["remove_leftovers"](package)
    assert [path for path in package.rglob("*") if path.is_file()] == kept


def test_somebody_s_own_files_are_let_be(script: dict[str, Any], tmp_path: Path) -> None:
    package = left_over(tmp_path)
    (package / "notes.txt").touch()
    script["remove_leftovers"](package)
    assert [path.name for path in package.rglob("*")] == ["notes.txt"]


HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Editable:  # as setuptools' finder, which Python asks last
    def find_spec(self, name, path=None, target=None):
        if name.rpartition(".")[0] == "rtseg":
            return PathFinder.find_spec(name, [{root!r}])

sys.path.insert(0, {folder!r})
sys.meta_path.append(Editable())
from rtseg.cli import main
main()
"""


def test_a_hidden_checkout_says_what_hides_it(tmp_path: Path) -> None:
    package = left_over(tmp_path)
    code = HIDDEN.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"rtseg: {package} is a left-over of version 0.1 and hides this one: delete it\n"
    )
