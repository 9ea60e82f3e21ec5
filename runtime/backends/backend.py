"""What every backend offers, and which one runs a file on this machine."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MissingPackage
from ..artifact import Card
from ..packages import pip_line

Image = NDArray[np.uint8]  # (1, H, W, 3) BGR
Labels = NDArray[np.uint8]  # (1, H, W) class ids


# Where the argmax runs: in the graph as exported, or in the runtime, on coarse logits.
ARGMAX = ("graph", "runtime")


@dataclass(frozen=True)
class Info:
    """What runs the model: `name` of the backend, `version` of its package, `device` as its driver
    names it, `threads` on a CPU, `precision` that it computes in, further `options`."""

    name: str
    version: str
    device: str
    threads: int | None
    precision: str
    options: tuple[tuple[str, str], ...] = ()


class Backend(Protocol):
    """A loaded model. Not thread-safe; the next call may overwrite the labels, so copy to keep.

    A call is `upload`, `compute` and `download` in turn; they are apart so that each can be timed,
    with `synchronize` between them where work is only queued.
    """

    card: Card
    info: Info

    def __call__(self, image: Image) -> Labels:
        """image (1, H, W, 3) uint8 BGR of the card's size -> labels (1, H, W) uint8."""
        ...

    def upload(self, image: Image) -> None: ...

    def compute(self) -> None: ...

    def download(self) -> Labels: ...

    def synchronize(self) -> None: ...

    def logits(self) -> NDArray[np.floating[Any]] | None:
        """The logits of the last call (1, K, h, w), if the artifact gives them."""
        ...

    def close(self) -> None:
        """Free everything; a later call raises."""
        ...


def check_argmax(argmax: str | None) -> None:
    """Refuse anything but a value of ARGMAX, or None for the backend's own choice."""
    if argmax not in (None, *ARGMAX):
        raise ArtifactError(f'argmax is "graph" or "runtime", not {argmax!r}')


class InTurn:
    """The call of a backend, made of its steps.

    A backend gives `upload`, `compute`, and `_fetch`, which copies the output of a name from the
    last `compute`; `names` are the outputs that its artifact has.
    """

    names: Sequence[str]

    def __call__(self, image: Image) -> Labels:
        self.upload(image)  # type: ignore[attr-defined]
        self.compute()  # type: ignore[attr-defined]
        return self.download()

    def download(self) -> Labels:
        return self._output("labels")

    def logits(self) -> NDArray[np.floating[Any]] | None:
        return self._output("logits") if "logits" in self.names else None

    def _output(self, name: str) -> NDArray[Any]:
        if name not in self.names:
            raise ArtifactError(
                f"this artifact has no {name}, only {', '.join(self.names)}: "
                "export it with --output both"
            )
        value: NDArray[Any] = self._fetch(name)  # type: ignore[attr-defined]
        return value


@dataclass(frozen=True)
class Entry:
    """A backend: where its class is, the packages that it needs and the extra that brings them."""

    module: str
    cls: str
    packages: tuple[str, ...]  # any one of them will do
    extra: str
    suffixes: tuple[str, ...]  # what it loads


BACKENDS = {
    "tensorrt": Entry(
        "tensorrt", "TensorRT", ("tensorrt", "tensorrt_rtx"), "tensorrt", (".engine", ".plan")
    ),
    "onnxruntime": Entry("onnxruntime", "OnnxRuntime", ("onnxruntime",), "cpu", (".onnx",)),
    "openvino": Entry("openvino", "OpenVino", ("openvino",), "openvino", (".xml", ".onnx")),
    "torch": Entry("pytorch", "PyTorch", ("torch",), "export", (".safetensors",)),
}


def installed(backend: str) -> bool:
    return any(importlib.util.find_spec(package) for package in BACKENDS[backend].packages)


def choose(path: Path, backend: str | None, device: str | None) -> str:
    """The backend for a file: the one asked for, else the fastest that is installed.

    Raises ArtifactError for a backend that is unknown or cannot read the file, and for a file
    that none can read; MissingPackage where the package is absent.
    """
    if backend is not None and backend not in BACKENDS:
        raise ArtifactError(f"no backend is called {backend!r}: choose from {', '.join(BACKENDS)}")
    able = [name for name, entry in BACKENDS.items() if path.suffix in entry.suffixes]
    if not able:
        known = ", ".join(dict.fromkeys(s for e in BACKENDS.values() for s in e.suffixes))
        raise ArtifactError(f"{path} is no artifact: a runtime loads {known}")
    if backend is not None and backend not in able:
        raise ArtifactError(f"{backend} cannot load {path.name}: {' or '.join(able)} can")
    wanted = [backend] if backend else _by_speed(able, device)
    present = [name for name in wanted if installed(name)]
    if not present:
        entry = BACKENDS[wanted[0]]
        raise MissingPackage(f"{path.name} needs {entry.packages[-1]}: {pip_line(entry.extra)}")
    return present[0]


def _by_speed(able: list[str], device: str | None) -> list[str]:
    """An ONNX file goes to CUDA where there is one, else to OpenVINO, the faster one on CPUs."""
    if "openvino" not in able or (device or "").startswith("cuda"):
        return able
    if device is None and "onnxruntime" in able and cuda_available():
        return able
    return sorted(able, key=lambda name: name != "openvino")


def cuda_available() -> bool:
    """Whether ONNX Runtime here was built with CUDA and a GPU answers."""
    if not installed("onnxruntime"):
        return False
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    from ...system import gpus

    return bool(gpus())


def open_backend(name: str, path: Path, device: str | None, **options: Any) -> Backend:
    if "labels" in options:  # its name until 0.2
        old = options.pop("labels")
        options["argmax"] = "runtime" if old == "cells" else old
        warnings.warn(
            f"labels={old!r} is now argmax={options['argmax']!r}", FutureWarning, stacklevel=3
        )
    entry = BACKENDS[name]
    module = importlib.import_module(f".{entry.module}", __package__)
    backend: Backend = getattr(module, entry.cls)(path, device, **options)
    return backend
