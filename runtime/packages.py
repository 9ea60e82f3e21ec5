"""The two TensorRT packages: which is installed, its module and its log.

`tensorrt` is the full SDK: its engines run on the GPU model that built them. `tensorrt_rtx` builds
without a GPU, for several at once, and compiles the kernels at first run. Their Python API is one.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import importlib.util
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TextIO

from ..data.files import probe_disk
from ..errors import MissingPackage, UsageError
from ..gpu import gpus
from .support import INSTALL_FULL, INSTALL_RTX, find_support, tensorrt_for

Flavour = Literal["tensorrt", "tensorrt_rtx"]
FLAVOURS: tuple[Flavour, ...] = ("tensorrt", "tensorrt_rtx")
INSTALL = INSTALL_RTX  # builds without a GPU
# Each of the two packages writes over the other's files, and so does taking one of them away.
INSTALL_CUDA = 'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "rtseg[gpu]"'
# The oldest driver branch that runs a CUDA major version, on Linux and Windows.
MINIMUM_DRIVER = {12: "525", 13: "580"}
LEVELS = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
# What TensorRT says at every build on a machine without a GPU, and what is no error.
HARMLESS = ("cudaError 35", "Thread context has not been set")


@dataclass(frozen=True)
class Package:
    """An installed TensorRT package: `cuda` is the major version that it is built for, if known."""

    flavour: Flavour
    version: str
    cuda: int | None

    @property
    def minimum_driver(self) -> str | None:
        return MINIMUM_DRIVER.get(self.cuda) if self.cuda else None


def find_package(flavour: Flavour) -> Package | None:
    """The package as the installer recorded it, without importing it."""
    for cuda in (*sorted(MINIMUM_DRIVER, reverse=True), None):
        name = f"{flavour}_cu{cuda}" if cuda else flavour
        try:
            return Package(flavour, metadata.version(name), cuda)
        except metadata.PackageNotFoundError:
            continue
    return None


def bindings_version() -> str | None:
    """Of cuda-bindings, as the installer recorded it."""
    try:
        return metadata.version("cuda-bindings")
    except metadata.PackageNotFoundError:
        return None


def import_package(flavour: Flavour) -> ModuleType:
    """The module `tensorrt` or `tensorrt_rtx`. Raises MissingPackage if it does not import."""
    if importlib.util.find_spec(flavour) is None:
        raise MissingPackage(f"{flavour} is not installed: {install_line(flavour)}")
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:
        raise MissingPackage(
            f"{flavour} is installed but does not load ({error}): {install_line(flavour)} again"
        ) from error


def preload_cuda(onnxruntime: Any) -> str:
    """Load the CUDA and cuDNN that pip installed, where the loader would not look; returns what
    ONNX Runtime prints of those that are missing, in one line."""
    said = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())[:300]


def install_line(flavour: Flavour) -> str:
    """The command that brings a TensorRT package."""
    return INSTALL if flavour == "tensorrt_rtx" else INSTALL_FULL


def make_log(trt: Any, level: str = "warning", file: TextIO | None = None) -> Any:
    """A TensorRT logger that writes to `file` instead of stderr and keeps the errors in `errors`.

    level: "verbose", "info", "warning" or "error"; ValueError otherwise.
    """
    names = {name.lower(): place for place, name in enumerate(LEVELS)}
    if level not in names:
        raise UsageError(f"no log level is called {level!r}: choose from {', '.join(names)}")

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            place = LEVELS.index(severity.name)
            if file is not None and place <= names[level]:
                file.write(f"[{severity.name}] {message}\n")
            if place <= LEVELS.index("ERROR") and not any(part in message for part in HARMLESS):
                self.errors.append(message)

    return Log()


def last_line(errors: Iterable[str]) -> str:
    """The last thing that went wrong, as one line."""
    said = [" ".join(error.split()) for error in errors]
    return said[-1] if said else "TensorRT gave no reason"


def members(enumeration: Any) -> dict[str, Any]:
    """The members of a TensorRT enumeration by name; their numbers differ between versions."""
    return dict(enumeration.__members__)


def read_header(path: Path) -> tuple[Flavour, str, int] | None:
    """(flavour, TensorRT version, size in bytes) of an engine file, or None if it is none.

    TensorRT's plan header: a magic word, the plan's size at byte 16, the version's four numbers at
    byte 24, where NVIDIA says to look for them (github.com/NVIDIA/TensorRT/issues/3073).
    """
    with path.open("rb") as file:
        head = file.read(28)
    # The magic words of the two packages' plans.
    flavour: Flavour | None = {b"ftrt": FLAVOURS[0], b"vtrt": FLAVOURS[1]}.get(head[:4])
    if flavour is None or len(head) < 28:
        return None
    version = ".".join(str(number) for number in head[24:28])
    return flavour, version, int.from_bytes(head[16:24], "little")


def pip_line(extra: str) -> str:
    """The command that brings an extra; of ONNX Runtime, without which nothing is exported, the
    package for this machine, and of TensorRT the one that runs on its GPU."""
    if extra == "cpu" or (extra == "export" and importlib.util.find_spec("onnxruntime") is None):
        runtime = "gpu" if gpus() else "cpu"
        extra = runtime if extra == "cpu" else f"{extra},{runtime}"
    if extra == "tensorrt-rtx" and (here := gpus()):
        able = (gpu for gpu in here if find_support(gpu, "tensorrt_rtx").works)
        return tensorrt_for(next(able, here[0]))
    return f'pip install "rtseg[{extra}]"'


# What each optional package is for, and the extra that brings it.
_EXTRAS = {
    "torch": ("networks", "export"),
    "safetensors": ("checkpoints", "export"),
    "onnx": ("exports", "export"),
    "onnxscript": ("exports", "export"),
    "onnxslim": ("exports", "export"),
    "onnxruntime": ("ONNX files", "cpu"),
    "openvino": ("OpenVINO files", "openvino"),
    "executorch": ("ExecuTorch programs", "executorch"),
    "yaml": ("YAML files", "train"),
    "matplotlib": ("plots", "train"),
    "mcap": ("MCAP logs", "drive"),
    "prometheus_client": ("metrics", "drive"),
    "starlette": ("the live page", "web"),
    "uvicorn": ("the live page", "web"),
    "ray": ("fleets", "fleet"),
    "pyarrow": ("fleets", "fleet"),
}


def explain_import(error: ModuleNotFoundError) -> MissingPackage | None:
    """The command that fixes a failed import of an optional package; None for any other module."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRAS:
        return None
    purpose, extra = _EXTRAS[module]
    return MissingPackage(f"{purpose} need the package {module}: {pip_line(extra)}")


def cache_folder() -> Path:
    """Where this user's machine keeps what it measured or compiled.

    It may not exist yet, and it may be read-only, as a vehicle's home can be: callers do
    without where writing fails, or use `writable_cache`. Without any home: a folder of this
    process.
    """
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        if os.path.isabs(home := os.environ.get(name, "")):  # the XDG rules: others are ignored
            return Path(home) / "rtseg"
    try:
        return Path.home() / ".cache" / "rtseg"
    except RuntimeError:  # no HOME, and no such user, as in many a container
        with contextlib.suppress(OSError):
            return scratch_folder()
        return Path(os.devnull) / "rtseg"  # where nothing is, and nothing can be written


def writable_cache(name: str) -> Path:
    """The folder `name` in the cache, made; where that cannot be written, one of this process.

    Raises OSError where no temporary folder can be made either.
    """
    folder = cache_folder() / name
    if not can_write(folder):
        folder = scratch_folder() / name
        folder.mkdir(exist_ok=True)
    return folder


def can_write(folder: Path) -> bool:
    """Whether there is room for a file in `folder`, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A real file: on a read-only mount, or for root, permission bits tell nothing.
        probe_disk(folder)
    except OSError:
        return False
    return True


@cache
def scratch_folder() -> Path:
    """A folder for this process alone, removed when it ends.

    Raises OSError where none can be made.
    """
    # Not a fixed name: another user could create it first and put code (compiled loops) there.
    folder, owner = Path(tempfile.mkdtemp(prefix="rtseg-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not a child that was forked
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def slug(text: str) -> str:
    """`text` as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def settle_home() -> None:
    """Give a process without a home one of its own: OpenVINO, for one, fails as it is imported."""
    try:
        Path.home()
    except RuntimeError:
        with contextlib.suppress(OSError):
            os.environ["HOME"] = str(scratch_folder())


settle_home()
