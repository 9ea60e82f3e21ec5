"""TensorRT, full or RTX: engines on an NVIDIA GPU."""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError, MissingPackage, UsageError
from ...gpu import Gpu, gpus
from ..artifact import Card, EngineFacts, read_card, read_sealed
from ..packages import cache_folder, import_package, make_log, slug
from ..preflight import BINDINGS, Machine, check_machine, mend_bindings, this_machine
from ..support import find_support
from ..verify import EngineHost, prove_once
from .argmax_kernel import COARSE, LABELS, KernelFile, LabelKernel, kernel_path
from .backend import Backend, Diagnosis, Image, Info, Labels
from .cuda import Cuda, device_address, stream_handle
from .device_arrays import CUDA, DeviceFrame, SharedArray
from .tensorrt_engine import Plan, Tensor
from .tensorrt_self_test import self_test

# What TensorRT cannot judge itself, since it does not even start; the rest it is asked to.
HOPELESS = ("no_gpu", "no_package", "flavour", "driver", "compute_capability")


class TensorRT(Backend):
    """An engine, its buffers on the GPU and in pinned memory, and a stream. Nothing is allocated
    per frame.

    device: "cuda" or "cuda:N". cuda_graph: launch the network as one recorded graph; `info.options`
    says whether that worked. stream: the caller's (a handle, or an object with `__cuda_stream__`),
    by default one of its own. prove: False only for callers that compare its labels themselves.
    card: of the artifact, if it was read and verified.
    size: (height, width), of an engine that takes several. beside: the same engine at another size,
    whose weights are shared.

    An engine with a label kernel (`rtseg export --label-kernel`) has that run behind it, in the
    same graph. The first load on a machine runs the reference frames that travel with the engine,
    and refuses the engine if its labels are wrong. The labels returned are a view of pinned memory
    that the next call overwrites. To avoid a copy, write the next image into `frame` and pass that.

    Raises ArtifactError where the engine cannot run or is not right; the message says what would.
    """

    _log: Any
    _plan: Plan

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        *,
        cuda_graph: bool = True,
        stream: object = None,
        prove: bool = True,
        card: Card | None = None,
        size: tuple[int, int] | None = None,
        beside: TensorRT | None = None,
    ):
        # With a stream of its own, since sizes may run at the same time.
        self._again = partial(TensorRT, path, device, cuda_graph=cuda_graph, prove=prove)
        self.card = (card or read_card(path)).at(size)
        facts, index = _facts(path, self.card), _index(device)
        machine = this_machine()
        _refuse_hopeless(path, self.card, machine)
        self._trt = import_package(facts.flavour)
        self._log = beside._log if beside else make_log(self._trt, "error")
        self._open = ExitStack()
        # Also frees everything when the program ends without `close`.
        self._finalizer = weakref.finalize(self, self._open.close)
        self._path, self._wants_graph = path, cuda_graph
        try:
            self._cuda = Cuda(index)
            self.host = _engine_host(self._cuda, self._trt)
            self_test(self._trt, self._log, self._cuda, self.host)
            self._use_stream(stream)
            self._load(path, machine, beside)
            self._make_buffers(path)
            graph = self._warm_up(cuda_graph)
            self._plan.keep_cache()
            self.info = self._describe(facts, graph)
            if prove:
                prove_once(path, self.card, self, self.host)
            self._plan.keep_cache()  # what the proof's runs compiled beside
        except BaseException:
            self._open.close()
            raise

    can_open_lanes = True

    def open_lane(self) -> TensorRT:
        """A context of the same engine with a stream, buffers and a graph of its own."""
        self._use()
        lane = copy.copy(self)
        lane._open = ExitStack()
        lane._finalizer = weakref.finalize(lane, lane._open.close)
        try:
            lane._use_stream(None)
            lane._plan = self._plan.open_another(self._trt)
            lane._make_buffers(self._path)
            lane._warm_up(self._wants_graph)
            # First of all when it closes: a frame may still be on its way into what is freed.
            lane._open.callback(lane._cuda.synchronize, lane._stream)
        except BaseException:
            lane._open.close()
            raise
        return lane

    def start(self, image: Image) -> None:
        """As of a Backend, the copy of the labels queued too."""
        super().start(image)
        self._copy_to_host(LABELS)

    def finish(self) -> Labels:
        self.synchronize()
        return np.asarray(self._host[LABELS], np.uint8)

    def _use_stream(self, stream: object) -> None:
        if stream is None:
            self._stream = self._cuda.create_stream()
            self._open.callback(self._cuda.destroy_stream, self._stream)
        else:
            # Its owner may drop it, and a handle alone would not keep it alive.
            self._callers_stream, self._stream = stream, stream_handle(stream)

    def _load(self, path: Path, machine: Machine, beside: TensorRT | None) -> None:
        content = beside._plan if beside else read_sealed(path, self.card)
        began = time.perf_counter()
        try:
            caches = _jit_caches(path, self.card, self.host)
            chosen = self._choose_profile()
            dla = (_facts(path, self.card).options or {}).get("dla")
            self._plan = Plan(self._trt, self._log, content, self._cuda, caches, chosen, dla)
        except ArtifactError as error:
            verdict = check_machine(path, self.card, machine)
            raise ArtifactError(
                f"{path}: {verdict.reason}: {verdict.fix}"
                if not verdict.ok
                else f"{path} does not run here: {error}: export it again on this machine"
            ) from error
        self.load_ms = (time.perf_counter() - began) * 1e3

    def _make_buffers(self, path: Path) -> None:
        self._open.callback(self._plan.close)
        self._tensors = dict(_expected_tensors(path, self.card, self._plan))
        self.names: tuple[str, ...] = self.card.outputs
        if COARSE in self.names:
            self._tensors[LABELS] = self._start_kernel(path)
            self.names = (LABELS,)
        self.frame: Image = self._pinned("frame")
        self._host: dict[str, NDArray[np.generic]] = {
            name: self._pinned(name) for name in self.names
        }

    def at(self, size: tuple[int, int]) -> TensorRT:
        self._use()
        return self._again(card=self.card, size=size, beside=self)

    def _choose_profile(self) -> tuple[int, tuple[int, ...]] | None:
        """(the profile of the engine for this size, the frame's shape); None with one size only."""
        card = self.card
        return (card.sizes.index(card.size), card.input_shape) if card.sizes else None

    def _start_kernel(self, path: Path) -> Tensor:
        """The labels that a kernel behind every run of the plan makes."""
        beside = kernel_path(path, self.card)
        file = KernelFile.load(beside, self.card.files.get(beside.name))
        coarse, size = self._tensors[COARSE], self.card.size
        if (coarse.shape, coarse.dtype.name) != (file.call.shape, file.call.dtype):
            raise ArtifactError(
                f"{path} gives {coarse.dtype} {coarse.shape}, and its label kernel takes "
                f"{file.call.dtype} {file.call.shape}: export it again"
            )
        kernel = LabelKernel(file, self._cuda, coarse.address, size, self._stream)
        self._open.callback(kernel.close)
        self._plan.behind = kernel.enqueue
        return Tensor(LABELS, self.card.label_shape, np.dtype(np.uint8), False, kernel.labels)

    def _pinned(self, name: str) -> NDArray[Any]:
        tensor = self._tensors[name]
        return self._cuda.allocate_pinned(tensor.shape, tensor.dtype)

    def _warm_up(self, cuda_graph: bool) -> str:
        """Run once, since lazy work of the first run cannot be captured, then capture."""
        self.frame[:] = 0
        self._cuda.to_device(self._tensors["frame"].address, self.frame, self._stream)
        began = time.perf_counter()
        self._plan.enqueue(self._stream)
        self.synchronize()
        self.first_run_ms = (time.perf_counter() - began) * 1e3
        return self._plan.capture() if cuda_graph else "off"

    def _describe(self, facts: EngineFacts, graph: str) -> Info:
        return Info(
            name="tensorrt",
            version=self._trt.__version__,
            device=self.host.gpu,
            threads=None,
            precision=self.card.precision,
            options=(
                ("flavour", facts.flavour),
                ("argmax", "runtime" if COARSE in self.card.outputs else "graph"),
                ("cuda_graph", graph),
                ("jit_cache", self._plan.jit),
                ("load_ms", f"{self.load_ms:.1f}"),
                ("first_run_ms", f"{self.first_run_ms:.1f}"),
            ),
        )

    def upload(self, image: Image) -> None:
        """image (*card.input_shape) uint8. Queues the copy; `frame` must stay as it is until
        `download` or `synchronize`. Raises ValueError for another shape or type."""
        self._use()
        if image.shape != self.frame.shape or image.dtype != np.uint8:
            raise UsageError(
                f"the engine takes uint8 of shape {self.frame.shape}, "
                f"not {image.dtype} of shape {image.shape}"
            )
        # A caller that wrote into `frame` has spared itself this copy.
        self._cuda.upload(self._tensors["frame"].address, self.frame, image, self._stream)

    def upload_device(self, frame: object) -> None:
        """A frame that is on the GPU already: an address, or an object with
        `__cuda_array_interface__`, uint8 of `card.input_shape`. It must be finished, or made on
        this backend's stream."""
        self._use()
        tensor = self._tensors["frame"]
        source = device_address(frame, tensor.shape)
        self._cuda.on_device(tensor.address, source, tensor.nbytes, self._stream)

    def infer_device(self, frame: object) -> Labels:
        """As a call, for a frame that `upload_device` takes."""
        self.upload_device(frame)
        self.compute()
        return self.download()

    def compute(self) -> None:
        self._use()
        self._plan.run(self._stream)

    def time_on_device(self, runs: int = 20) -> list[float]:
        """Milliseconds of each of `runs` of `compute`, by CUDA events: the wall's clock has
        launching and waiting beside."""
        self._use()
        return self._cuda.time_ms(lambda: self._plan.run(self._stream), self._stream, runs)

    def label_on_device(self, frame: object) -> SharedArray:
        self._use()
        self._cuda.select()
        tensor = self._tensors["frame"]
        given = DeviceFrame(frame, tensor.shape, self._cuda, self._stream)
        self._cuda.on_device(tensor.address, given.address, tensor.nbytes, self._stream)
        self.compute()
        self.synchronize()  # only now may the producer have its memory back
        given.release()
        labels = self.on_device()
        return labels if given.several else labels.first()

    def on_device(self, output: str = "labels") -> SharedArray:
        """The output of the last `compute` in GPU memory, for other libraries. DLPack waits for
        queued work; through `__cuda_array_interface__` it may still be writing."""
        self._use()
        tensor, device = self._tensors[output], (CUDA, self._cuda.index)
        return SharedArray(tensor.address, tensor.shape, tensor.dtype, device, self.synchronize)

    def _fetch(self, name: str) -> NDArray[np.generic]:
        self._copy_to_host(name)
        self.synchronize()
        return self._host[name]

    def _copy_to_host(self, name: str) -> None:
        self._use()
        self._cuda.to_host(self._host[name], self._tensors[name].address, self._stream)

    def synchronize(self) -> None:
        self._use()
        self._cuda.synchronize(self._stream)

    def close(self) -> None:
        if self._finalizer.alive:
            self._cuda.select()  # memory is freed on the thread's current GPU
        self._finalizer()
        self._host = {}
        self.frame = np.empty((1, 0, 0, 3), np.uint8)

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        machine = this_machine()
        for package in machine.tensorrt:
            import_package(package.flavour)
        versions = {str(package.flavour): package.version for package in machine.tensorrt}
        if not found:
            return Diagnosis(versions, (), "builds engines here; running them needs an NVIDIA GPU")
        if BINDINGS not in machine.modules:
            raise MissingPackage("cuda-bindings is not installed")
        if fix := mend_bindings(machine.bindings, found[0].driver):
            note = f"cuda-bindings {machine.bindings} needs a newer driver than {found[0].driver}"
            return Diagnosis(versions, (), note, fix)
        able, notes, fix = [], [], ""
        for gpu in found:
            answers = [find_support(gpu, each.flavour, each.version) for each in machine.tensorrt]
            best = next((answer for answer in answers if answer.works), answers[0])
            if best.works:
                able.append(f"cuda:{gpu.index}")
            if best.why:
                notes.append(f"{gpu.name}: {best.why}")
            fix = fix or ("" if best.works else best.fix)
        return Diagnosis(versions, tuple(able), "; ".join(notes), fix)

    def _use(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("this engine is closed: load it again")
        self._cuda.select()


def _facts(path: Path, card: Card) -> EngineFacts:
    if card.engine is None:
        raise ArtifactError(f"the card of {path} describes no engine: export it again")
    return card.engine


def _index(device: str | None) -> int:
    """The N of "cuda:N"."""
    kind, _, index = (device or "cuda").partition(":")
    if kind == "cpu":
        raise ArtifactError(
            "an engine runs on an NVIDIA GPU only: on a CPU load the ONNX or OpenVINO artifact"
        )
    if kind != "cuda" or not (index or "0").isdigit():
        raise ArtifactError(f'device is "cuda" or "cuda:N" for an engine, not {device!r}')
    return int(index or 0)


def _refuse_hopeless(path: Path, card: Card, machine: Machine) -> None:
    verdict = check_machine(path, card, machine)
    if verdict.code in HOPELESS:
        raise ArtifactError(f"{path}: {verdict.reason}: {verdict.fix}")


def _engine_host(cuda: Cuda, trt: ModuleType) -> EngineHost:
    here = gpus()
    return EngineHost(
        gpu=cuda.name,
        compute_capability=cuda.compute_capability,
        driver=here[0].driver if here else "",
        tensorrt=f"{trt.__name__} {trt.__version__}",
    )


def _jit_caches(path: Path, card: Card, host: EngineHost) -> tuple[Path, ...]:
    """Beside the engine, else in the user's cache; a file a GPU and driver."""
    where = slug(f"{host.gpu} {host.driver}")
    digest = card.files.get(path.name, path.stem)[:16]
    return (
        path.with_name(f"{path.name}.{where}.jit"),
        cache_folder() / f"{digest}-{where}.jit",
    )


def _expected_tensors(path: Path, card: Card, plan: Plan) -> dict[str, Any]:
    """The plan's tensors, which are those that the card promises."""
    wanted: dict[str, tuple[int, ...]] = {"frame": card.input_shape}
    if "labels" in card.outputs:
        wanted["labels"] = card.label_shape
    for name, shape in wanted.items():
        found = plan.tensors.get(name)
        if found is None or found.shape != shape or found.dtype != np.uint8:
            got = f"{found.dtype} {found.shape}" if found else "none"
            raise ArtifactError(
                f"{path} is not the engine of its card: {name} is {got}, not uint8 {shape}"
            )
    if missing := set(card.outputs) - plan.tensors.keys():
        raise ArtifactError(f"{path} is not the engine of its card: no output {missing.pop()!r}")
    return plan.tensors
