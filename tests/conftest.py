"""What the tests share: golden files, street frames, and markers that skip with a reason."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rtseg.data.frames import read_folder
from rtseg.gpu import gpus
from rtseg.models.loading import Model, load_model

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"


def load_script(name: str) -> Any:
    """A program of `scripts/` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class _RootIsNoPackage:
    """Keeps pytest from importing the repository's root, which is the package itself, by the name
    of its folder: as GitHub's archive has it, `rtseg-main`, that is no name of a package.

    A plugin of its own: hooks of a conftest are not asked about the folders above it.
    """

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> Any:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoPackage())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    has_gpu = bool(gpus())
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:  # a folder of that name is a keyword too
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and none answers here"))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))


def load_rule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_rule", GOLDEN / "rule.py")
    assert spec is not None
    assert spec.loader is not None
    rule = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rule)
    return rule


RULE = load_rule()


@dataclass(frozen=True)
class Golden:
    """A reference implementation: weights by rule, an input, its logits sampled by `stride`."""

    meta: dict[str, Any]
    logits: np.ndarray[Any, Any]

    @property
    def state(self) -> dict[str, torch.Tensor]:
        state = RULE.state_dict(self.meta["entries"], self.meta["salt"])
        return {name: torch.from_numpy(value) for name, value in state.items()}

    @property
    def image(self) -> torch.Tensor:
        return torch.from_numpy(RULE.image(self.meta["image_shape"], self.meta["salt"]))

    def error(self, logits: torch.Tensor) -> float:
        """Largest difference, in standard deviations of the reference's logits."""
        stride = self.meta["stride"]
        ours = logits.numpy()[:, :, ::stride, ::stride]
        assert ours.shape == self.logits.shape, f"{ours.shape}, expected {self.logits.shape}"
        return float(np.abs(ours - self.logits).max() / self.logits.std())


def read_golden(name: str) -> Golden:
    return Golden(*RULE.load(GOLDEN / f"{name}.npz"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: small steps are faster so, and rounded alike on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real frames and labels."""
    folder = Path(os.environ.get("RTSEG_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs real frames, and {folder} is absent (RTSEG_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def street_frames(shared_data: Path) -> list[tuple[str, np.ndarray[Any, Any]]]:
    return read_folder(shared_data / "cityscapes")


@pytest.fixture(scope="session")
def nano() -> Model:
    """csfcn_nano with the weights that ship."""
    return load_model("csfcn_nano:camvid")


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def rtseg() -> Run:
    """The real command, in a process of its own."""

    def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        # Safe path: what lies beside the checkout hides no package, such as a folder `onnx`.
        environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONSAFEPATH": "1"}
        return subprocess.run(
            [sys.executable, "-m", "rtseg", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=cwd or ROOT.parent,
            check=False,
        )

    return run


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    """The one JSON value on a command's stdout."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mount_small_disk(parent: Path, size: str) -> Iterator[Path]:
    """A file system of `size`, such as "3m"; skips where it cannot be mounted."""
    folder = parent / "small"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    yield from mount_small_disk(tmp_path, "3m")
