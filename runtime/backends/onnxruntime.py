"""ONNX Runtime, on the CPU or through CUDA."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...errors import ArtifactError
from ...system import Gpu, gpus, usable_cores
from ..argmax import LabelMaker
from ..artifact import coarse_graph, read_card
from ..packages import INSTALL_CUDA
from ..support import INSTALL_ORT, supported
from ..verify import prove_half
from .backend import (
    Backend,
    Diagnosis,
    Image,
    Info,
    Labels,
    LayerTimes,
    Scores,
    check_input,
    cuda_available,
    label_maker,
    leaves_out_argmax,
)

RUNS = 10  # of a profile


class OnnxRuntime(Backend):
    """An ONNX artifact. Inputs and outputs are bound once: no allocation per frame on CUDA, and no
    copy of the frame on the CPU.

    Args:
        path: the artifact.
        device: "cpu" or "cuda[:N]"; by default CUDA where ONNX Runtime and the machine have it.
        threads: on the CPU, by default one per core that this process may use.
        argmax: "graph" takes it as exported, "runtime" outside of the graph, on the CPU only; see
            `leaves_out_argmax` for the default.
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        argmax: str | None = None,
    ):
        self.card = read_card(path)
        self.kind, self.index = kind, index = _parse_device(device)
        threads = threads or usable_cores()
        on_cpu = kind == "cpu"
        if argmax == "runtime" and not on_cpu:
            raise ArtifactError('the argmax leaves the graph on CPUs only: use argmax="graph"')
        leave_out = leaves_out_argmax(self.card, argmax) and on_cpu
        providers: list[object] = ["CPUExecutionProvider"]
        missing = "" if on_cpu else _preload_cuda()
        if not on_cpu:
            # In front: ONNX Runtime gives each node to the first provider that takes it.
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index}))
        model = coarse_graph(path, self.card) if leave_out else str(path)
        try:
            self.session = onnxruntime.InferenceSession(
                model, _options(threads), providers=providers
            )
        except Exception as error:  # the package raises classes of its own, without a common base
            raise ArtifactError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}"
            ) from error
        if not on_cpu and "CUDAExecutionProvider" not in self.session.get_providers():
            raise ArtifactError(
                f"ONNX Runtime could not start CUDA ({missing or 'driver, CUDA or cuDNN'}): "
                'run `rtseg doctor`, or load with device="cpu"'
            )
        check_input(path, self.card, self.session.get_inputs()[0].shape)
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        self.names = list(shapes)
        self._maker: LabelMaker | None = None
        if leave_out and self.card.coarse:
            self._coarse = self.card.coarse.tensor
            self._maker = label_maker(self.card, shapes[self._coarse], threads)
        self.binding = self.session.io_binding()
        self._input: Any = None
        for name in self.names:
            self.binding.bind_output(name, kind, index)
        self.info = Info(
            name="onnxruntime",
            version=onnxruntime.__version__,
            device=kind if on_cpu else f"cuda:{index}",
            threads=threads if on_cpu else None,
            precision=self.card.precision,
            options=(("argmax", "runtime" if self._maker else "graph"),),
        )

        if not on_cpu and self.card.precision == "fp16":
            gpu = next((each for each in gpus() if each.index == index), None)
            if gpu is not None:
                prove_half(path, self.card, self, gpu, lambda: OnnxRuntime(path, "cpu", threads))

    def upload(self, image: Image) -> None:
        if self.kind == "cpu":
            self._input = image  # bound by address, so it has to live on
            self.binding.bind_cpu_input("frame", image)
        # One buffer on the GPU for all frames, made of the first.
        elif self._input is None:
            self._input = onnxruntime.OrtValue.ortvalue_from_numpy(image, self.kind, self.index)
            self.binding.bind_ortvalue_input("frame", self._input)
        else:
            self._input.update_inplace(image)

    def compute(self) -> None:
        self.session.run_with_iobinding(self.binding)
        if self._maker is not None:
            self._maker(self._fetch(self._coarse).reshape(self._maker.shape))

    def download(self) -> Labels:
        return super().download() if self._maker is None else self._maker.labels

    def _fetch(self, name: str) -> NDArray[np.generic]:
        value: NDArray[np.generic] = self.binding.get_outputs()[self.names.index(name)].numpy()
        return value

    def synchronize(self) -> None:
        self.binding.synchronize_outputs()

    def close(self) -> None:
        del self.binding, self.session
        self._input = None
        if self._maker is not None:
            self._maker.close()

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        versions = {"onnxruntime": onnxruntime.__version__}
        if cuda_available():
            return Diagnosis(versions, ("cuda", "cpu"))
        if not found:
            return Diagnosis(versions, ("cpu",))
        fix = supported(found[0], "onnxruntime").fix
        fix = INSTALL_CUDA if fix == INSTALL_ORT else fix  # a Jetson has a wheel of its own
        return Diagnosis(versions, ("cpu",), "this build does not use the GPU", fix)

    @classmethod
    def open_scores(cls, path: Path, **options: object) -> Scores:
        import onnx

        model = onnx.load(path)
        argmax = next((node for node in model.graph.node if node.op_type == "ArgMax"), None)
        name = argmax.input[0] if argmax else "logits"
        if name not in {output.name for output in model.graph.output}:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), _options(0), providers=["CPUExecutionProvider"]
        )
        return lambda image: np.asarray(session.run([name], {"frame": image})[0])

    @classmethod
    def profile(cls, path: Path, threads: int, hint: str | None, image: Image) -> LayerTimes:
        options = _options(threads)
        options.enable_profiling = True
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "profile")
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            for _ in range(RUNS + 1):
                session.run(None, {"frame": image})
            events = json.loads(Path(session.end_profiling()).read_text())
        return kernel_times(events)


def kernel_times(events: Sequence[dict[str, Any]]) -> LayerTimes:
    """ONNX Runtime's events, the first run's left out."""
    spent: LayerTimes = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            facts = event["args"]
            layer = event["name"].removesuffix("_kernel_time")
            key = layer, facts.get("op_name", ""), facts.get("provider", "")
            spent[key].append(event["dur"] / 1e3)
    # The first run allocates, and chooses kernels.
    return {key: times[1:] or times for key, times in spent.items()}


def _options(threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    # 3: errors and worse.
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return options


def _parse_device(device: str | None) -> tuple[str, int]:
    """("cpu", 0) or ("cuda", index)."""
    if device is None:
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
