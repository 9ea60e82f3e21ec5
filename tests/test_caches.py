"""Where files are kept between runs: in the user's cache, never in the package's own folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from rtseg.runtime import packages
from rtseg.runtime.packages import cache_folder, can_write, writable_cache

LOOPS = """
import numpy as np
from rtseg.runtime.argmax_cpu import label_shuffled
labels = np.zeros((2, 4), np.uint8)
label_shuffled(np.arange(16, dtype=np.float32).reshape(8, 1, 2), 2, 0, 1, labels)
assert labels.tolist() == [[1] * 4] * 2
"""


def without_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_variables")
def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages.Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "rtseg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "rtseg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # would be in whatever folder one stands
    assert cache_folder() == tmp_path / ".cache" / "rtseg"


@pytest.mark.usefixtures("no_variables")
def test_without_a_home_there_is_a_folder_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.Path, "home", without_home)
    folder = cache_folder()
    assert folder == cache_folder()
    assert can_write(folder)
    code = "from rtseg.runtime.packages import scratch_folder as f; print(f())"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() != str(folder)
    assert not Path(made.stdout.strip()).exists()


@pytest.mark.usefixtures("no_variables")
def test_a_machine_that_lets_nothing_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(prefix: str) -> str:
        raise OSError("No usable temporary directory found")

    packages.scratch_folder.cache_clear()
    monkeypatch.setattr(packages.Path, "home", without_home)
    monkeypatch.setattr(packages.tempfile, "mkdtemp", full)
    assert not (cache_folder() / "known").is_file()
    assert not can_write(cache_folder())


def test_what_needs_a_folder_gets_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert writable_cache("bench") == tmp_path / "cache" / "rtseg" / "bench"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # even root cannot write there
    folder = writable_cache("bench")
    assert folder.is_dir()
    assert tmp_path not in folder.parents


@pytest.mark.parametrize("where", ["a cache", "read-only", "numba's own variable"])
def test_compiled_loops_stay_out_of_the_package(where: str, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason='needs numba: pip install "rtseg[fast]"')
    package = tmp_path / "site" / "rtseg"
    for folder in ("data", "runtime"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, package / folder, ignore=ignored)
    for name in ("__init__.py", "errors.py"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, package)
    before = {path for path in package.rglob("*") if path.suffix != ".pyc"}
    (tmp_path / "read-only").touch()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    environment |= {"PYTHONPATH": str(package.parent), "XDG_CACHE_HOME": str(tmp_path / where)}
    kept = tmp_path / where
    if where == "numba's own variable":
        environment["NUMBA_CACHE_DIR"] = str(kept)
    done = subprocess.run(
        [sys.executable, "-c", LOOPS], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    after = {p for p in package.rglob("*") if p.suffix != ".pyc" and p.name != "__pycache__"}
    assert after == before
    assert bool(list(kept.rglob("*.nbi"))) == (where != "read-only")


HOMELESS = """
import os, pwd
pwd.getpwuid = lambda user: {}[user]  # no such user
import rtseg.runtime.backends.openvino
print(os.environ["HOME"])
"""


def test_a_process_without_a_home_is_given_one() -> None:
    without = {"HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"}
    environment = {name: value for name, value in os.environ.items() if name not in without}
    done = subprocess.run(
        [sys.executable, "-c", HOMELESS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert not Path(done.stdout.strip()).exists()  # it went with the process
