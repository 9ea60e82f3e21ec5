"""ONNX Runtime, on the CPU or through CUDA."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import platform
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...errors import ArtifactError, MissingPackage
from ...gpu import Gpu, gpus
from ...system import usable_cores
from ..argmax import LabelMaker
from ..artifact import Card, read_card, read_sealed
from ..onnx_metadata import coarse_graph
from ..packages import INSTALL_CUDA, preload_cuda
from ..support import INSTALL_ORT, find_support
from ..verify import prove_half, this_processor
from .backend import (
    BACKENDS,
    Backend,
    Diagnosis,
    Image,
    Info,
    Labels,
    LayerTimes,
    Scores,
    check_input,
    cuda_available,
    is_installed,
    label_maker,
    leaves_out_argmax,
)
from .cuda import Cuda
from .device_arrays import CUDA, DeviceFrame, SharedArray
from .onnxruntime_self_test import WIDEN, self_test

log = logging.getLogger("rtseg")
RUNS = 10  # of a profile
SIDES = ("H", "W")  # names of a frame's sides in a graph that takes several sizes
NUMPY_TYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class OnnxRuntime(Backend):
    """An ONNX artifact. Inputs and outputs are bound once: no allocation per frame on CUDA, and no
    copy of the frame on the CPU.

    Args:
        path: the artifact.
        device: "cpu" or "cuda[:N]"; by default CUDA where ONNX Runtime and the machine have it.
        threads: on the CPU, by default one per core that this process may use.
        argmax: "graph" takes it as exported, "runtime" outside of the graph, on the CPU only; see
            `leaves_out_argmax` for the default.
        cuda_graph: on CUDA, record the run and replay it; `info.options` says whether that worked.
        prefer_nhwc: on CUDA, keep convolutions channels last.
        card: of the artifact, if it was read and verified.
        size: (height, width), of an artifact that takes several.
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        argmax: str | None = None,
        cuda_graph: bool = False,
        prefer_nhwc: bool = False,
        card: Card | None = None,
        size: tuple[int, int] | None = None,
    ):
        self._again = functools.partial(
            OnnxRuntime, path, device, threads, argmax, cuda_graph, prefer_nhwc
        )
        self.card = (card or read_card(path)).at(size)
        self.kind, self.index = kind, index = _parse_device(device)
        threads = threads or usable_cores()
        on_cpu = kind == "cpu"
        if argmax == "runtime" and not on_cpu:
            raise ArtifactError('the argmax leaves the graph on CPUs only: use argmax="graph"')
        if on_cpu and (cuda_graph or prefer_nhwc):
            raise ArtifactError("cuda_graph and prefer_nhwc are options of CUDA: leave them out")
        leave_out = leaves_out_argmax(self.card, argmax) and on_cpu
        self._content = read_sealed(path, self.card)
        self._path, options = path, []
        self._cuda: Cuda | None = None
        self._values: dict[str, Any] = {}
        if on_cpu:
            self_test()
            model = coarse_graph(self._content, self.card) if leave_out else self._content
            self.session = self._open(model, self._options(threads), ["CPUExecutionProvider"])
        else:
            wanted = {"enable_cuda_graph": cuda_graph, "prefer_nhwc": prefer_nhwc}
            options = self._open_on_cuda(threads, wanted)
        check_input(path, self.card, self.session.get_inputs()[0].shape)
        shapes = {output.name: output.shape for output in self.session.get_outputs()}
        self.names = list(shapes)
        self._maker: LabelMaker | None = None
        if leave_out and self.card.coarse:
            self._coarse = self.card.coarse.tensor
            self._maker = label_maker(self.card, shapes[self._coarse], threads)
        self._input: Image | None = None
        self._bind()
        if cuda_graph:
            options.append(("cuda_graph", self._prove_replay(threads, wanted)))
        self._content = b""  # the session has its own
        self.info = Info(
            name="onnxruntime",
            version=onnxruntime.__version__,
            device=kind if on_cpu else f"cuda:{index}",
            threads=threads if on_cpu else None,
            precision=self.card.precision,
            options=(("argmax", "runtime" if self._maker else "graph"), *options),
        )

        if on_cpu and self.card.precision == "fp16" and computes_half():
            self._prove_on_cpu(path, threads)
        if not on_cpu and self.card.precision == "fp16":
            gpu = next((each for each in gpus() if each.index == index), None)
            if gpu is not None:
                cpu = functools.partial(OnnxRuntime, path, "cpu", threads, card=self.card)
                prove_half(path, self.card, self, gpu, cpu)

    def _prove_on_cpu(self, path: Path, threads: int) -> None:
        """Against OpenVINO in float32: ONNX Runtime has no other kernels for this graph here."""
        if not is_installed("openvino"):
            log.warning("%s is not proven in this CPU's float16: install openvino", path.name)
            return
        make: Any = BACKENDS["openvino"].load()
        plain = functools.partial(
            make, path, threads=threads, precision="fp32", argmax="graph", card=self.card
        )
        prove_half(path, self.card, self, this_processor(), plain)

    def at(self, size: tuple[int, int]) -> OnnxRuntime:
        # A session of its own: one with open sides, which all sizes could share, took 2 to 5 %
        # longer (docs/howto/several.md).
        return self._again(card=self.card, size=size)

    def _options(self, threads: int) -> Any:
        options = _options(threads)
        if self.card.sizes:
            # With the sides fixed ONNX Runtime folds all that picks by them, and is as fast as on a
            # file of this size alone.
            for side, length in zip(SIDES, self.card.size, strict=True):
                options.add_free_dimension_override_by_name(side, length)
        return options

    def _open(self, model: bytes, options: Any, providers: list[Any]) -> Any:
        try:
            return onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # the package raises classes of its own, without a common base
            raise ArtifactError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {self._path}: "
                f"{_first_line(error)}"
            ) from error

    def _open_on_cuda(self, threads: int, wanted: Mapping[str, bool]) -> list[tuple[str, str]]:
        """Make the session; returns what to say of it. Raises ArtifactError without CUDA.

        ONNX Runtime gives nodes that CUDA does not take to the CPU, and says nothing. So it is
        first told not to.
        """
        missing = preload_cuda(onnxruntime)
        facts = {name: "1" for name, asked in wanted.items() if asked}
        provider = ("CUDAExecutionProvider", {"device_id": self.index, **facts})
        strict = self._options(threads)
        strict.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        said = [("prefer_nhwc", "on")] if wanted["prefer_nhwc"] else []
        try:
            # The CPU's own provider may not be named here.
            self.session = self._open(self._content, strict, [provider])
        except ArtifactError as error:
            options = self._options(threads)
            # In front: ONNX Runtime gives each node to the first provider that takes it.
            self.session = self._open(self._content, options, [provider, "CPUExecutionProvider"])
            said.append(("cpu_fallback", _first_line(error)))
        if "CUDAExecutionProvider" not in self.session.get_providers():
            raise ArtifactError(
                f"ONNX Runtime could not start CUDA ({missing or 'driver, CUDA or cuDNN'}): "
                'run `rtseg doctor`, or load with device="cpu"'
            )
        return said

    def _bind(self) -> None:
        """On CUDA to buffers of ours, whose addresses stay, as a CUDA graph needs it; with
        cuda-bindings the host's side is pinned memory, which is neither copied twice nor new."""
        self.binding = self.session.io_binding()
        if self.kind == "cpu":
            for name in self.names:
                self.binding.bind_output(name, "cpu")
            return
        tensors = (*self.session.get_inputs(), *self.session.get_outputs())
        kinds = {each.name: (tuple(each.shape), NUMPY_TYPES[each.type]) for each in tensors}
        self._values = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(*facts, "cuda", self.index)
            for name, facts in kinds.items()
        }
        for name, value in self._values.items():
            bind = self.binding.bind_ortvalue_input if name == "frame" else None
            (bind or self.binding.bind_ortvalue_output)(name, value)
        if self._cuda is None:
            with contextlib.suppress(MissingPackage, ArtifactError):  # then by its own copies
                self._cuda = Cuda(self.index)
                self._stream = self._cuda.create_stream()
                self._host = {n: self._cuda.allocate_pinned(*facts) for n, facts in kinds.items()}

    def _prove_replay(self, threads: int, wanted: Mapping[str, bool]) -> str:
        """Hold a replay against a plain run, behind poisoned outputs; "on", or why it is off."""
        shape = self._values["frame"].shape()
        first, other = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
        try:
            expected = self._outputs_of(first)
            for _ in range(3):  # it is recorded after a few runs, here of another frame
                self._outputs_of(other)
            for name in self.names:
                poison = np.full_like(expected[name], 255)  # no class
                self._values[name].update_inplace(poison)
            found = self._outputs_of(first)
            same = all(np.allclose(found[n], expected[n], 0.01, 0.01) for n in self.names)
            why = "it gave other results"
        except Exception as error:  # the package's own: a graph that it cannot capture
            same, why = False, _first_line(error)
        if same:
            return "on"
        self._open_on_cuda(threads, {**wanted, "enable_cuda_graph": False})
        self._bind()
        return f"off: {why}"

    def _outputs_of(self, image: Image) -> dict[str, NDArray[np.generic]]:
        self.upload(image)
        self.compute()
        return {name: self._fetch(name).copy() for name in self.names}

    @property
    def maker(self) -> LabelMaker | None:
        return self._maker

    def upload(self, image: Image) -> None:
        if self.kind == "cpu":
            self._input = image  # bound by address, so it has to live on
            self.binding.bind_cpu_input("frame", image)
        elif self._cuda is None:
            self._values["frame"].update_inplace(image)
        else:
            self._cuda.select()
            address = self._values["frame"].data_ptr()
            self._cuda.upload(address, self._host["frame"], image, self._stream)
            self._cuda.synchronize(self._stream)  # ONNX Runtime computes in a stream of its own

    def label_on_device(self, frame: object) -> object:
        if self.kind == "cpu":
            return super().label_on_device(frame)
        if self._cuda is None:
            raise MissingPackage("frames on the GPU need cuda-bindings: pip install cuda-bindings")
        self._cuda.select()
        bound = self._values["frame"]
        shape = tuple(bound.shape())
        given = DeviceFrame(frame, shape, self._cuda, self._stream)
        # Copied, since a CUDA graph knows one address only.
        size = int(np.prod(shape))
        self._cuda.on_device(bound.data_ptr(), given.address, size, self._stream)
        self._cuda.synchronize(self._stream)  # ONNX Runtime computes in a stream of its own
        given.release()
        self.compute()
        address, device = self._values["labels"].data_ptr(), (CUDA, self.index)
        labels = SharedArray(address, self.card.label_shape, np.uint8, device)
        return labels if given.several else labels.first()

    def compute(self) -> None:
        self.session.run_with_iobinding(self.binding)
        if self._maker is not None:
            self._maker(self._fetch(self._coarse).reshape(self._maker.shape))

    def download(self) -> Labels:
        return super().download() if self._maker is None else self._maker.labels

    def _fetch(self, name: str) -> NDArray[np.generic]:
        if self._cuda is not None:  # a run ends before it returns
            self._cuda.select()
            self._cuda.to_host(self._host[name], self._values[name].data_ptr(), self._stream)
            self._cuda.synchronize(self._stream)
            return self._host[name]
        value: NDArray[np.generic] = self.binding.get_outputs()[self.names.index(name)].numpy()
        return value

    def synchronize(self) -> None:
        self.binding.synchronize_outputs()

    def close(self) -> None:
        del self.binding, self.session
        self._input = None
        self._values = {}
        if self._cuda is not None:
            self._cuda.select()
            self._cuda.destroy_stream(self._stream)
            self._host = {}
            self._cuda = None
        if self._maker is not None:
            self._maker.close()

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        versions = {"onnxruntime": onnxruntime.__version__}
        if cuda_available():
            return Diagnosis(versions, ("cuda", "cpu"))
        if not found:
            return Diagnosis(versions, ("cpu",))
        fix = find_support(found[0], "onnxruntime").fix
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


def computes_half() -> bool:
    """Whether ONNX Runtime's kernels compute float16 graphs in float16 on this CPU: those for Arm
    do; on x86 it casts to float32."""
    return platform.machine().lower() in ("aarch64", "arm64")


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
    options.add_session_config_entry(WIDEN, str(int(self_test())))
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


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
