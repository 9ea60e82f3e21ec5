"""PyTorch itself, for machines that have it and for comparison; the only backend to import it."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile
from torch.utils.dlpack import from_dlpack

from ...errors import ArtifactError, BackendError, UsageError
from ...gpu import Gpu
from ...models import FrameToLabels, build, deploy, digest, load_checkpoint
from ...models.pipeline import find_last_upsample
from ...system import usable_cores
from ..argmax import LabelMaker
from ..argmax_torch import (
    CpuLabels,
    Maker,
    bypass_layer,
    find_head,
    find_missing_package,
    make_label_maker,
    median_ms,
)
from ..artifact import Card, read_card
from ..camera_torch import CameraFrames
from ..support import find_support
from .backend import (
    Backend,
    Diagnosis,
    Image,
    Info,
    Labels,
    LayerTimes,
    Scores,
    check_argmax,
)
from .cuda import STRIPE
from .device_arrays import check_layout, device_of, name_device

log = logging.getLogger("rtseg")
SEARCHING = threading.Lock()  # cuDNN's switch is the process's, not a thread's
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PyTorch(Backend):
    """Weights with a card (`rtseg export --to torch`), run in their deployed form.

    On CUDA the whole graph from frame to labels is captured once and replayed, with pinned host
    buffers, and with the algorithms of cuDNN that are the fastest at load, which another process
    may choose otherwise, and so round otherwise. On a CPU half precision falls back to float32,
    which is faster there.

    device: "cpu" or "cuda[:N]"; by default CUDA where torch has it. threads: on the CPU.

    argmax: "graph" enlarges and compares in PyTorch, "runtime" makes the labels of the coarse
    logits (`argmax_torch.py`). By default a CPU takes "runtime" where the network ends in a
    bilinear resize and numba is installed, since that was the faster (docs/speed-notes.md), and
    CUDA times both at load and keeps the faster one; `info.options` says which. Artifacts that give
    logits too keep "graph", so that the labels are the argmax of these. card: of the artifact, if
    it was read and verified. size: (height, width), of an artifact that takes several.
    """

    def __init__(
        self,
        path: Path,
        device: str | None = None,
        threads: int | None = None,
        argmax: str | None = None,
        card: Card | None = None,
        size: tuple[int, int] | None = None,
    ):
        self._again = partial(PyTorch, path, device, threads, argmax)
        check_argmax(argmax)
        self.card = card = (card or read_card(path)).at(size)
        self.names = card.outputs
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ArtifactError(
                'this PyTorch has no CUDA device: load with device="cpu", or see `rtseg doctor`'
            )
        network = load_checkpoint(build(card.model, len(card.classes)), path)
        # Of the state, not of the file: the file holds the card itself.
        if digest(network) != card.weights:
            raise ArtifactError(f"{path} holds other weights than its card names: export it again")
        on_gpu = self.device.type == "cuda"
        precision = card.precision if on_gpu and card.precision in DTYPES else "fp32"
        threads = threads or usable_cores()
        if not on_gpu:
            torch.set_num_threads(threads)
        whole = FrameToLabels(deploy(network, card.size), card.outputs).eval()
        self.module = whole.to(self.device, DTYPES[precision], memory_format=torch.channels_last)
        shape = card.input_shape
        self.frame = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.staging = pinned_like(self.frame) if on_gpu else None
        self.graph: Any = None
        self._camera = CameraFrames(card).to(self.device) if card.takes_camera else None
        self._maker: Maker | None = None
        self._head: str | None = None
        why = (
            self._prepare_runtime_argmax(threads, asked=argmax == "runtime")
            if argmax != "graph"
            else ""
        )
        options = [("argmax", "runtime" if self._maker else "graph")]
        self.results = self._run()
        self._host: list[torch.Tensor] = []
        if on_gpu:
            options = self._record_graphs(choose=argmax is None)
            self._host = [pinned_like(each) for each in self.results]
        self.info = Info(
            name="torch",
            version=torch.__version__,
            device=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            threads=None if on_gpu else threads,
            precision=precision,
            options=(*options, *([("no_runtime_argmax", why)] if why else [])),
        )

    def _prepare_runtime_argmax(self, threads: int, asked: bool) -> str:
        """Make `_maker`, or say why there is none; where it was asked for, raise that."""
        why = find_missing_package(self.device) or ""
        how = find_last_upsample(self.module.network, self.card.size)
        if self.card.outputs != ("labels",) or how is None:
            why = "it needs an artifact that enlarges its logits and gives labels only"
        if how == "shuffle" and self.device.type == "cpu" and not asked:
            why = "a shuffled head's labels gain nothing from them on a CPU"
        try:
            if not why:
                self._start_maker(how, threads)
        except Exception as error:  # Triton's compiler has many of its own, on GPUs unknown to it
            why, self._maker = str(error).strip().splitlines()[0][:200], None
        if why and asked:
            raise ArtifactError(f'{why}; or load it with argmax="graph"')
        return why

    def _start_maker(self, how: Any, threads: int) -> None:
        network = self.module.network
        layer = None
        if how == "shuffle" and self.device.type == "cuda":
            self._head = find_head(network, self.card.size)
            layer = network.get_submodule(self._head) if self._head else None
        self._maker = make_label_maker(self._coarse(), self.card.size, how, threads, layer)
        self._run()  # compiles

    def _coarse(self) -> torch.Tensor:
        """What `_maker` takes, of the last frame."""
        self.module.outputs = ("coarse",)
        try:
            with torch.inference_mode(), bypass_layer(self.module.network, self._head):
                (coarse,) = self.module(self._pixels())
                return coarse
        finally:
            self.module.outputs = self.card.outputs

    def _run(self) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            if self._maker is not None:
                return (self._maker(self._coarse()),)
            results: tuple[torch.Tensor, ...] = self.module(self._pixels())
            return results

    def _pixels(self) -> torch.Tensor:
        """The last frame as the network reads it."""
        if self._camera is None:
            return self.frame
        pixels: torch.Tensor = self._camera(self.frame)
        return pixels

    def _record_graphs(self, choose: bool) -> list[tuple[str, str]]:
        # Streams, graphs and kernels go to the current device, which need not be ours.
        with torch.cuda.device_of(self.frame):
            return self._capture(choose)

    def _capture(self, choose: bool) -> list[tuple[str, str]]:
        """Record the graph, of both ways the faster one if that is open; what to say of it."""
        makers: dict[str, Maker | None] = {"runtime": self._maker} if self._maker else {}
        if choose or not makers:
            makers["graph"] = None
        recorded = {}
        for way, self._maker in makers.items():
            recorded[way] = self._recorded()
        spent = median_ms(
            {way: partial(self._replay, graph) for way, (graph, _) in recorded.items()}
        )
        best = min(spent, key=lambda way: spent[way])
        self._maker = makers[best]
        self.graph, self.results = recorded[best]
        times = ", ".join(f"{way} {ms:.3f}" for way, ms in spent.items())
        return [
            ("argmax", best),
            ("argmax_ms", times),
            ("cuda_graph", self._prove_replay()),
            ("cudnn", "benchmark"),
        ]

    @torch.inference_mode()
    def _prove_replay(self) -> str:
        """Compare the graph's results with those of a plain run, on noise; "on", or why it is off.

        A graph captured on another device than its kernels' is empty and replays without an error.
        """
        self.frame.random_(0, 256)
        with search_algorithms():  # those of the graph
            expected = [each.float() for each in self._run()]
        for result in self.results:
            result.fill_(255)  # no class, so that results left from the capture do not pass
        self._replay(self.graph)
        shares = [
            torch.isclose(ours.float(), theirs, rtol=0.01, atol=0.01).float().mean().item()
            for ours, theirs in zip(self.results, expected, strict=True)
        ]
        if min(shares) > 0.999:
            return "on"
        self.graph = None
        log.warning("a CUDA graph gave other results than its network on %s", self.device)
        return f"off: it gave other results on {1 - min(shares):.1%} of the values"

    def _recorded(self) -> tuple[object, tuple[torch.Tensor, ...]]:
        """(the graph of `_run`, its results)."""
        stream = torch.cuda.Stream(self.device)
        # Weights may still be converted on the current stream, for which that one does not wait.
        torch.cuda.synchronize(self.device)
        with search_algorithms():
            with torch.cuda.stream(stream):
                for _ in range(3):  # libraries choose and allocate on their first runs
                    self._run()
            torch.cuda.synchronize(self.device)
            graph = torch.cuda.CUDAGraph()
            # In that stream: all others' captures share one, and with it cuBLAS's scratch memory.
            # Thread-local: another thread may allocate meanwhile, as a second network's loading.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                results = self._run()
        return graph, results

    @property
    def can_open_lanes(self) -> bool:  # type: ignore[override]
        return self.graph is not None

    def open_lane(self) -> TorchLane:
        """Buffers, a graph and a CUDA stream of its own for the same network."""
        try:
            return TorchLane(self)
        except torch.cuda.OutOfMemoryError as error:
            raise BackendError(str(error).splitlines()[0]) from error

    def _replay(self, graph: Any) -> None:
        with torch.cuda.device_of(self.frame):
            graph.replay()
        self.synchronize()

    @property
    def maker(self) -> LabelMaker | None:
        return self._maker.maker if isinstance(self._maker, CpuLabels) else None

    def upload(self, image: Image) -> None:
        if self.staging is None:
            self.frame = torch.from_numpy(image)
            return
        # Rows of all frames one below another, so that every stripe is one piece of memory.
        image = image.reshape(-1, *image.shape[2:])
        staging, frame = self.staging.flatten(0, 1), self.frame.flatten(0, 1)
        pinned = staging.numpy()
        step = max(1, STRIPE * len(image) // image.nbytes)  # rows
        for start in range(0, len(image), step):
            # While one stripe is on its way to the GPU, the host copies the next.
            rows = slice(start, start + step)
            pinned[rows] = image[rows]
            frame[rows].copy_(staging[rows], non_blocking=True)

    def label_on_device(self, frame: object) -> object:
        """On a CPU NumPy's array, else a tensor."""
        if self.device.type == "cpu":
            return super().label_on_device(frame)
        with torch.cuda.device_of(self.frame):
            tensor = self._take(frame)
            several = check_layout(
                tuple(tensor.shape),
                tensor.stride(),
                str(tensor.dtype).removeprefix("torch."),
                self.card.input_shape,
            )
            self.frame.copy_(tensor.reshape(self.frame.shape), non_blocking=True)
            self.compute()
        self.synchronize()
        labels = self.results[self.names.index("labels")]
        return labels if several else labels[0]

    def _take(self, frame: Any) -> torch.Tensor:
        """A tensor on the frame's memory, which the current stream waits for."""
        if (device := device_of(frame)) is not None:
            if name_device(device) != str(self.frame.device):
                raise UsageError(
                    f"the frame is on {name_device(device)} and the network on "
                    f"{self.frame.device}: give a frame of that device"
                )
            return from_dlpack(frame)
        facts = getattr(frame, "__cuda_array_interface__", None)
        if facts is None:
            raise UsageError(
                "a frame on the device has __dlpack__ or __cuda_array_interface__; "
                f"{type(frame).__name__} has neither"
            )
        if facts.get("stream") is not None:  # PyTorch does not look at it
            producer = torch.cuda.ExternalStream(facts["stream"], self.frame.device)
            torch.cuda.current_stream().wait_stream(producer)
        return torch.as_tensor(frame, device=self.frame.device)

    def compute(self) -> None:
        if self.graph is None:
            self.results = self._run()
        else:
            with torch.cuda.device_of(self.frame):
                self.graph.replay()

    def _fetch(self, name: str) -> NDArray[np.generic]:
        place = self.names.index(name)
        result = self.results[place]
        if self._host:  # pageable memory would be copied twice
            result = self._host[place].copy_(result, non_blocking=True)
            self.synchronize()
        value: NDArray[np.generic] = result.numpy()
        return value

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def at(self, size: tuple[int, int]) -> PyTorch:
        return self._again(card=self.card, size=size)

    def close(self) -> None:
        del self.module, self.results, self.graph
        if isinstance(self._maker, CpuLabels):
            self._maker.close()

    @classmethod
    def diagnose(cls, found: Sequence[Gpu]) -> Diagnosis:
        versions = {"torch": str(torch.__version__)}
        if torch.cuda.is_available():
            return Diagnosis(versions, ("cuda", "cpu"))
        if not found:
            return Diagnosis(versions, ("cpu",))
        fix = f"see {find_support(found[0], 'torch').fix}"
        return Diagnosis(versions, ("cpu",), "this build does not use the GPU", fix)

    @classmethod
    def open_scores(cls, path: Path, **options: object) -> Scores:
        card = read_card(path)
        network = load_checkpoint(build(card.model, len(card.classes)), path)
        whole: torch.nn.Module = FrameToLabels(network, ("logits",))
        if card.takes_camera:
            whole = torch.nn.Sequential(CameraFrames(card), whole)

        def scores(image: Image) -> NDArray[np.generic]:
            with torch.inference_mode():
                return np.asarray(whole(torch.from_numpy(image))[0])

        return scores

    @classmethod
    def profile(cls, path: Path, threads: int, hint: str | None, image: Image) -> LayerTimes:
        """By operation and the shapes that it was given, since PyTorch knows no layers' names."""
        spent: LayerTimes = defaultdict(list)
        backend = cls(path, "cpu", threads)
        backend(image)
        for _ in range(3):
            with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record:
                backend(image)
            for event in record.key_averages(group_by_input_shape=True):
                shape = "x".join(map(str, (event.input_shapes or [[]])[0]))
                key = f"{event.key} {shape}".strip(), event.key, "PyTorch"
                spent[key].append(event.self_cpu_time_total / 1e3)
        backend.close()
        return spent


class TorchLane(PyTorch):
    """One of `open_lanes`."""

    def __init__(self, backend: PyTorch):
        self.__dict__.update(backend.__dict__)
        self.stream = torch.cuda.Stream(self.device)
        if self._maker is not None:  # which has the labels' memory
            maker: Any = copy.copy(self._maker)
            maker.labels = torch.empty_like(maker.labels)
            self._maker = maker
        with torch.cuda.device_of(backend.frame):
            self.frame = torch.zeros_like(backend.frame)
            self.staging = pinned_like(backend.frame)
            self.graph, self.results = self._recorded()
            self._host = [pinned_like(each) for each in self.results]

    def start(self, image: Image) -> None:
        """As of a Backend, the copies of the results queued too."""
        with torch.cuda.stream(self.stream):
            super().start(image)
            for host, result in zip(self._host, self.results, strict=True):
                host.copy_(result, non_blocking=True)

    def finish(self) -> Labels:
        self.stream.synchronize()
        labels: Labels = self._host[self.names.index("labels")].numpy()
        return labels

    def close(self) -> None:
        self.stream.synchronize()  # a frame may be on its way into what is freed
        super().close()


@contextlib.contextmanager
def search_algorithms() -> Iterator[None]:
    """cuDNN takes the fastest of its algorithms for each layer, by trying them once a process. One
    thread at a time: another's search would be in these times, and would restore what it found."""
    cudnn = torch.backends.cudnn
    with SEARCHING:
        before, cudnn.benchmark = cudnn.benchmark, True
        try:
            yield
        finally:
            cudnn.benchmark = before


def pinned_like(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros like a tensor, in page-locked memory, from which a GPU copies without waiting."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=True)
