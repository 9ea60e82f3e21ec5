"""ONNX Runtime, on the CPU or through CUDA."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...system import usable_cores
from ..argmax import LabelMaker, compiled_available
from ..artifact import read_card
from ..cut_onnx import COARSE, cut_labels
from ..packages import INSTALL_CUDA
from .backend import Image, Info, InTurn, Labels, check_argmax


class OnnxRuntime(InTurn):
    """An ONNX artifact. Inputs and outputs are bound once: no allocation per frame on CUDA, and no
    copy of the frame on the CPU.

    device: "cpu" or "cuda[:N]"; by default CUDA where ONNX Runtime and the machine have it.
    threads: on the CPU, by default one per core that this process may use. argmax: on the CPU,
    "graph" makes them in the model as it was exported, "runtime" from its coarse logits, by
    `argmax.py`; by default "runtime" where the model ends in a bilinear resize and numba is
    installed, since that was the faster (docs/speed-notes.md).
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        argmax: str | None = None,
    ):
        check_argmax(argmax)
        self.card = read_card(path)
        kind, index = _device(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        threads = threads or usable_cores()
        options.intra_op_num_threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        missing = ""
        if kind == "cuda":
            missing = _preload_cuda()
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
        start = partial(_start, path, options, providers)
        wanted = argmax == "runtime" or (argmax is None and kind == "cpu" and compiled_available())
        cut = None
        if wanted and kind == "cpu":
            cut = _cut(path, self.card.size, start, threads, shuffled=argmax == "runtime")
        if argmax == "runtime" and cut is None:
            raise ArtifactError(
                "ONNX Runtime makes labels of coarse logits on a CPU, for models whose labels are "
                'the argmax of enlarged logits: load this one with argmax="graph"'
            )
        self._maker: LabelMaker | None = None
        if cut is not None:
            self.session, self._maker = cut
        else:
            self.session = start(str(path))
        if kind == "cuda" and "CUDAExecutionProvider" not in self.session.get_providers():
            raise ArtifactError(
                f"ONNX Runtime could not start CUDA ({missing or 'driver, CUDA or cuDNN'}): "
                'run `rtseg doctor`, or load with device="cpu"'
            )
        self.kind, self.index = kind, index
        self.binding = self.session.io_binding()
        self.names = [output.name for output in self.session.get_outputs()]
        self._input: Any = None
        self._bind_outputs()
        self.info = Info(
            name="onnxruntime",
            version=onnxruntime.__version__,
            device=kind if kind == "cpu" else f"cuda:{index}",
            threads=threads if kind == "cpu" else None,
            precision=self.card.precision,
            options=(("argmax", "runtime" if self._maker else "graph"),),
        )

    def _bind_outputs(self) -> None:
        for name in self.names:
            self.binding.bind_output(name, self.kind, self.index)

    def upload(self, image: Image) -> None:
        if self.kind == "cpu":
            self._input = image  # bound by address, so it has to live on
            self.binding.bind_cpu_input("frame", image)
        elif self._input is None:
            self._input = onnxruntime.OrtValue.ortvalue_from_numpy(image, self.kind, self.index)
            self.binding.bind_ortvalue_input("frame", self._input)
        else:
            self._input.update_inplace(image)

    def compute(self) -> None:
        self.session.run_with_iobinding(self.binding)
        if self._maker is not None:
            self._maker(self._fetch(COARSE).reshape(self._maker.shape))

    def download(self) -> Labels:
        return self._output("labels") if self._maker is None else self._maker.labels

    def _fetch(self, name: str) -> NDArray[Any]:
        value: NDArray[Any] = self.binding.get_outputs()[self.names.index(name)].numpy()
        return value

    def synchronize(self) -> None:
        self.binding.synchronize_outputs()

    def close(self) -> None:
        del self.binding, self.session
        self._input = None
        if self._maker is not None:
            self._maker.close()


def _start(path: Path, options: Any, providers: list[Any], model: str | bytes) -> Any:
    """A session of `model`, which is the artifact at `path` or made of it."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # the package raises classes of its own, without a common base
        raise ArtifactError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}"
        ) from error


def _cut(
    path: Path, size: tuple[int, int], start: Callable[[bytes], Any], threads: int, shuffled: bool
) -> tuple[Any, LabelMaker] | None:
    """(a session that ends at the coarse logits, what makes labels of them), where both can be,
    and unless they are of pixels to be shuffled and `shuffled` is off."""
    found = cut_labels(path.read_bytes())
    if found is None or (found[1] == "shuffle" and not shuffled):
        return None
    model, enlarge = found
    session = start(model)
    shape = next(tuple(o.shape) for o in session.get_outputs() if o.name == COARSE)
    if enlarge == "shuffle":
        factor = size[0] // shape[3] if len(shape) == 5 else 0
        if shape[2:] != (factor**2, size[0] // max(1, factor), size[1] // max(1, factor)):
            return None
        shape = (1, shape[1] * shape[2], *shape[3:])
    return session, LabelMaker(shape, size, enlarge, threads)


def _device(device: str | None) -> tuple[str, int]:
    """("cpu", 0) or ("cuda", index)."""
    if device is None:
        from .backend import cuda_available

        device = "cuda" if cuda_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or not (index or "0").isdigit():
        raise ArtifactError(f'device is "cpu", "cuda" or "cuda:N", not {device!r}')
    if kind == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise ArtifactError(
            f'this ONNX Runtime has no CUDA: {INSTALL_CUDA}, or load with device="cpu"'
        )
    return kind, int(index or 0)


def _preload_cuda() -> str:
    """Load the CUDA and cuDNN that pip installed, where the loader would not look; returns what
    ONNX Runtime prints of those that are missing, in one line."""
    said = io.StringIO()
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(said):
            onnxruntime.preload_dlls()
    return " ".join(said.getvalue().split())[:300]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
