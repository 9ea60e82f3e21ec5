"""Backends: their base class, and the registry with one row for each."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, BackendError, MissingPackage
from ...gpu import Gpu, gpus
from ..argmax import LabelMaker, compiled_available
from ..artifact import Card, read_card
from ..packages import pip_line
from .device_arrays import host_frame

log = logging.getLogger("rtseg")
# (N, H, W, 3) BGR or (N, *card.frame_shape) of a camera's format, N as the card says, 1 as a rule
Image = NDArray[np.uint8]
Labels = NDArray[np.uint8]  # (N, H, W) class ids
# An image -> the scores that the labels are the argmax of, (N, K, h, w) or (N, K, factor^2, h, w).
Scores = Callable[[Image], NDArray[np.generic]]
# (layer, kind, kernel) -> milliseconds of each run.
LayerTimes = dict[tuple[str, str, str], list[float]]

# Where the argmax runs: in the graph as exported, or in the runtime, on coarse logits.
ARGMAX = ("graph", "runtime")
ORT_FORM = ".ort.onnx"  # ends the names of ONNX files in ONNX Runtime's own form of int8
AGREEING = 0.999  # least share of labels that a lane shares with its backend, on noise


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


@dataclass(frozen=True)
class Diagnosis:
    """An installed backend on this machine: versions by package, devices that it runs on here,
    what holds it back, and the command that fixes that."""

    versions: dict[str, str]
    devices: tuple[str, ...]
    note: str = ""
    fix: str = ""


class Backend(ABC):
    """A loaded model. Not thread-safe; the next call may overwrite the labels, so copy to keep.

    A call is `upload`, `compute` and `download` in turn; they are apart so that each can be timed,
    with `synchronize` between them where work is only queued. names: outputs of its artifact.
    gives_coarse: whether `open_scores` reads them before the last resize.
    """

    card: Card
    info: Info
    names: Sequence[str]
    can_open_lanes = False
    gives_coarse = False

    def __call__(self, image: Image) -> Labels:
        """image (*card.input_shape) uint8 -> labels (N, H, W) uint8 of the card's size."""
        self.upload(image)
        self.compute()
        return self.download()

    @abstractmethod
    def upload(self, image: Image) -> None: ...

    @abstractmethod
    def compute(self) -> None: ...

    def label_on_device(self, frame: object) -> object:
        """Labels of a frame that is on the backend's device, left there: (H, W) uint8, or (N, H, W)
        of a frame with that axis. Finished, and valid until the next call.

        Raises:
            UsageError: if the frame is elsewhere, or of another type, shape or layout.
        """
        image, several = host_frame(frame, self.card.input_shape)
        labels = self(image)
        return labels if several else labels[0]

    def start(self, image: Image) -> None:
        """Queue a frame, the first half of a call. On a GPU it returns before the labels are made;
        `image` is the caller's again."""
        self.upload(image)
        self.compute()

    def finish(self) -> Labels:
        """Wait for the labels of the frame that was started last."""
        return self.download()

    def open_lanes(self, count: int) -> list[Backend]:
        """Further backends of this network, each with buffers of its own, so that one takes a frame
        while another computes. They share its weights, and each is closed on its own.

        None where a frame has to end before the next is begun; and none, with a warning, where the
        GPU has no memory for them, or one labels noise otherwise than this one.
        """
        lanes: list[Backend] = []
        with ExitStack() as undo:
            try:
                while self.can_open_lanes and len(lanes) < count:
                    lanes.append(self.open_lane())
                    undo.callback(lanes[-1].close)
                why = "" if self._agrees_with(lanes) else "another labels noise otherwise"
            except (ArtifactError, BackendError) as error:
                why = str(error)
            if not why:
                undo.pop_all()
                return lanes
        log.warning("%s takes one frame at a time: %s", self.card.model, why)
        return []

    def _agrees_with(self, lanes: Sequence[Backend]) -> bool:
        if not lanes:
            return True
        # Two frames, so that labels left from the first do not pass for the second's.
        frames = np.random.default_rng(0).integers(0, 256, (2, *self.card.input_shape), np.uint8)
        for frame in frames:
            expected = np.array(self(frame))
            for lane in lanes:
                lane.start(frame)
                if np.mean(lane.finish() == expected) <= AGREEING:
                    return False
        return True

    def open_lane(self) -> Backend:
        """One of `open_lanes`, where `can_open_lanes` says that there are any."""
        raise AssertionError(f"{type(self).__name__} opens no lanes, and says so")

    @abstractmethod
    def _fetch(self, name: str) -> NDArray[np.generic]:
        """The output `name` of the last `compute`, in host memory."""

    @abstractmethod
    def synchronize(self) -> None: ...

    def at(self, size: tuple[int, int]) -> Backend:
        """The same file for frames of another of its sizes, (height, width), on the same device
        and with the same options; both share what the runtime lets them share.

        Raises:
            ArtifactError: the file does not take that size, or is not right at it here.
        """
        raise ArtifactError(
            f"{type(self).__name__} serves one size of a file: load it again, with size={size}"
        )

    @abstractmethod
    def close(self) -> None:
        """Free everything; a later call raises."""

    @classmethod
    @abstractmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        """Look at the installed package on a machine with these GPUs; a broken one may raise
        anything."""

    def download(self) -> Labels:
        return self._output("labels")

    @property
    def maker(self) -> LabelMaker | None:
        """What makes the labels, where a CPU does it outside of the graph."""
        return None

    @property
    def arithmetic(self) -> str:
        """What decides how this artifact's logits are rounded: backend, kind of device and the
        precision that it computes in."""
        kind = "cpu" if self.info.device == "cpu" else "gpu"
        return f"{self.info.name} {kind} {self.info.precision}"

    def logits(self) -> NDArray[np.floating[Any]] | None:
        """The logits of the last call (N, K, h, w), if the artifact gives them."""
        return self._output("logits") if "logits" in self.names else None

    def _output(self, name: str) -> NDArray[Any]:
        if name not in self.names:
            raise ArtifactError(
                f"this artifact has no {name}, only {', '.join(self.names)}: "
                "export it with --output both"
            )
        return self._fetch(name)

    @classmethod
    def open_scores(cls, path: Path, **options: Any) -> Scores | None:
        """Read an artifact's scores, given as an output or not; None where that cannot be done."""
        return None

    @classmethod
    def profile(cls, path: Path, threads: int, hint: str | None, image: Image) -> LayerTimes:
        """Time every layer of an artifact, as the package itself counts.

        Raises:
            ArtifactError: if it does not report them.
        """
        raise ArtifactError(
            f"{cls.__name__} does not report the times of layers: name another backend"
        )


@dataclass(frozen=True)
class BackendSpec:
    """A row of the registry: everything that is asked of a backend before it is loaded.

    module, cls: where its class is. packages: any one of them will do; extra: brings them.
    suffixes: of the files that it loads. devices: kinds that it runs on, with its place among those
    taken by default there, the fastest first; None: only where it is named. precisions: by what
    the user asks for, the graph's own and what the backend is told to compute it in.
    """

    module: str
    cls: str
    packages: tuple[str, ...]
    extra: str
    suffixes: tuple[str, ...]
    devices: Mapping[str, int | None]
    precisions: Mapping[str, tuple[str, str | None]]

    @property
    def is_installed(self) -> bool:
        return any(map(importlib.util.find_spec, self.packages))

    @property
    def install(self) -> str:
        return pip_line(self.extra)

    def load(self) -> type[Backend]:
        """Import the backend's class, and its package with it."""
        module = importlib.import_module(f".{self.module}", __package__)
        found: type[Backend] = getattr(module, self.cls)
        return found


GRAPHS: Mapping[str, tuple[str, str | None]] = {
    each: (each, None) for each in ("fp32", "fp16", "int8")
}
# A new backend is a row here and a file beside this one.
BACKENDS = {
    "tensorrt": BackendSpec(
        module="tensorrt", cls="TensorRT", packages=("tensorrt", "tensorrt_rtx"),
        extra="tensorrt-rtx", suffixes=(".engine", ".plan"), devices={"cuda": 0},
        precisions={**GRAPHS, "fp8": ("fp8", None)},
    ),
    "onnxruntime": BackendSpec(
        module="onnxruntime", cls="OnnxRuntime", packages=("onnxruntime",), extra="cpu",
        suffixes=(".onnx",), devices={"cuda": 2, "cpu": 1}, precisions=GRAPHS,
    ),
    "openvino": BackendSpec(
        module="openvino", cls="OpenVino", packages=("openvino",), extra="openvino",
        suffixes=(".xml", ".onnx"), devices={"cpu": 0},
        precisions={
            "fp32": ("fp32", "fp32"), "bf16": ("fp32", "bf16"), "fp16": ("fp16", "fp16"),
            "int8": ("int8", None),
        },
    ),
    "torch": BackendSpec(
        module="pytorch", cls="PyTorch", packages=("torch",), extra="export",
        suffixes=(".safetensors",), devices={"cuda": 1, "cpu": None}, precisions=GRAPHS,
    ),
    "qnn": BackendSpec(
        module="qnn", cls="Qnn", packages=("onnxruntime_qnn",), extra="qnn", suffixes=(".qnn",),
        devices={"cpu": None}, precisions={"int8": ("int8", None)},
    ),
    "executorch": BackendSpec(
        module="executorch", cls="ExecuTorch", packages=("executorch",), extra="executorch",
        suffixes=(".pte",), devices={"cpu": None}, precisions={"fp32": ("fp32", None)},
    ),
}  # fmt: skip


def is_installed(backend: str) -> bool:
    """Whether a backend's package is there; nothing is imported."""
    return BACKENDS[backend].is_installed


def default_backends(kind: str) -> list[str]:
    """The installed backends that make the best of a kind of device, the fastest first."""
    ranks = {
        name: rank for name, s in BACKENDS.items() if (rank := s.devices.get(kind)) is not None
    }
    return sorted(filter(is_installed, ranks), key=ranks.__getitem__)


def refuse_network(what: str | os.PathLike[str]) -> None:
    """Say how to come by an artifact of what is no file and has no artifact's ending.

    Args:
        what: that was given as an artifact's path.

    Raises:
        ArtifactError: it may be a network's name, as the command line takes it.
    """
    path = Path(what)
    if path.exists() or any(path.suffix in spec.suffixes for spec in BACKENDS.values()):
        return
    raise ArtifactError(
        f"no artifact at {path}: a network is exported first, and this is the path that gives: "
        f'rtseg.export("{path}")[0].path'
    )


def choose(path: Path, backend: str | None, device: str | None) -> str:
    """Choose the backend for a file: the one asked for, else the fastest that is installed.

    Args:
        path: an artifact, told by its suffix.
        backend: a name of BACKENDS.
        device: "cpu", "cuda[:N]" or None for what the machine has.

    Raises:
        ArtifactError: for a backend that is unknown or cannot read the file, and for a file that
            none can read.
        MissingPackage: if the package is absent.
    """
    if backend is not None and backend not in BACKENDS:
        raise ArtifactError(f"no backend is called {backend!r}: choose from {', '.join(BACKENDS)}")
    able = [name for name, spec in BACKENDS.items() if path.suffix in spec.suffixes]
    if not able:
        known = ", ".join(dict.fromkeys(s for spec in BACKENDS.values() for s in spec.suffixes))
        raise ArtifactError(f"{path} is no artifact: a runtime loads {known}")
    if backend is not None and backend not in able:
        raise ArtifactError(f"{backend} cannot load {path.name}: {' or '.join(able)} can")
    kind = (device or "").partition(":")[0]
    if not kind and len(able) > 1:
        kind = "cuda" if cuda_available() else "cpu"
    if path.name.endswith(ORT_FORM):
        able = [name for name in able if name == "onnxruntime" or name == backend]
    # A device that none has ends in the fastest one's own error.
    able.sort(key=lambda name: BACKENDS[name].devices.get(kind or "cuda", 99) or 0)
    wanted = [backend] if backend else able
    present = [name for name in wanted if is_installed(name)]
    if not present:
        spec = BACKENDS[wanted[0]]
        raise MissingPackage(f"{path.name} needs {spec.packages[-1]}: {spec.install}")
    log.debug("%s runs in %s", path.name, present[0])
    return present[0]


def choose_certifying(path: Path, backend: str | None, device: str | None) -> str:
    """As `choose`, for labels that are to be certified: where the fastest backend is none of those
    in which the card bounds the error of the logits, an installed one that is."""
    name, proof = choose(path, backend, device), read_card(path).proof
    known = [bound.arithmetic.partition(" ")[0] for bound in proof.bounds] if proof else []
    if backend is not None or name in known:
        return name
    return next((each for each in known if each in BACKENDS and is_installed(each)), name)


def cuda_available() -> bool:
    """Whether ONNX Runtime here was built with CUDA and a GPU answers."""
    if not is_installed("onnxruntime"):
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers() and bool(gpus())


def check_input(path: Path, card: Card, shape: Sequence[int]) -> None:
    """Raises ArtifactError unless a graph takes frames of its card's batch and size."""
    if tuple(shape) != card.input_shape:
        raise ArtifactError(
            f"{path} takes {tuple(shape)}, and its card says {card.input_shape}: export it again"
        )


def open_backend(
    name: str, path: Path, device: str | None, card: Card | None = None, **options: object
) -> Backend:
    """Load an artifact in the backend `name`; card: of it, if it was read and verified; options:
    as its class takes them."""
    if "labels" in options:  # its name until 0.2
        old = options.pop("labels")
        options["argmax"] = "runtime" if old == "cells" else old
        warnings.warn(
            f"labels={old!r} is now argmax={options['argmax']!r}", FutureWarning, stacklevel=3
        )
    make: Any = BACKENDS[name].load()
    backend: Backend = make(path, device, card=card, **options)
    info = backend.info
    log.info("%s loaded in %s %s, %s", path.name, info.name, info.version, info.precision)
    return backend


def check_argmax(argmax: str | None) -> None:
    """Refuse anything but a value of ARGMAX, or None for the backend's own choice."""
    if argmax not in (None, *ARGMAX):
        raise ArtifactError(f'argmax is "graph" or "runtime", not {argmax!r}')


def leaves_out_argmax(card: Card, argmax: str | None) -> bool:
    """Whether a graph is to end at its coarse logits, of which a `LabelMaker` makes labels on CPUs.

    By default where it ends in a bilinear resize and numba is installed.

    Raises:
        ArtifactError: if that was asked for and the card names no coarse logits.
    """
    check_argmax(argmax)
    coarse = card.coarse if "labels" in card.outputs else None
    if argmax == "runtime" and coarse is None:
        raise ArtifactError(
            'this artifact names no logits to take the argmax of: load it with argmax="graph", or '
            "export it again"
        )
    if coarse is None or argmax == "graph":
        return False
    # Outside it was 1.4 to 1.8 times as fast (docs/speed-notes.md). Shuffled logits are as large as
    # the frame's: csfcn at 256x512, one thread, took 318 ms whole and 309 cut in ONNX Runtime, 284
    # and 257 in OpenVINO fp32, 66 and 81 in bf16.
    return argmax == "runtime" or (compiled_available() and coarse.upsampling != "shuffle")


def label_maker(card: Card, shape: Sequence[int], threads: int) -> LabelMaker:
    """What makes labels of a graph's coarse logits of `shape`; see `CoarseLogits`."""
    assert card.coarse is not None
    if len(shape) == 5:
        # A graph that shuffles takes its argmax over (N, K, factor^2, h, w).
        shape = (shape[0], shape[1] * shape[2], *shape[3:])
    return LabelMaker(tuple(shape), card.size, card.coarse.upsampling, threads)
