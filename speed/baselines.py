"""Baselines: the same network as others run it, without any of this pipeline."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.files import staged
from ..data.letterbox import Fit, fit_frame, restore_labels
from ..errors import ArtifactError, MissingPackage, RtsegError, UsageError
from ..resolve import export_cache
from ..runtime.segmenter import as_bgr
from .contestant import Frame, Frames, Laps, random_frame
from .result import Subject
from .timing import device_ms

if TYPE_CHECKING:
    import torch

    from ..models import Network
    from ..models.loading import Model


@contextmanager
def as_artifact_error(title: str) -> Iterator[None]:
    """Compilers and runtimes raise errors of their own; a peer that fails is only left out."""
    try:
        yield
    except RtsegError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(f"{title}: {lines[0][:300]}") from error


class Eager:
    """The network as its authors' scripts time it: PyTorch eager, float32, contiguous tensors,
    `inference_mode`, on CUDA with cuDNN's search for the fastest algorithms.

    To labels: the frame is normalized on the device, the logits enlarged to the frame and their
    argmax taken. Not deployed, fused or compiled in any way. Peers that only run the network
    otherwise derive from it and replace `_prepare`, which gives what is called with the normalized
    image, or `_compute`.

    Of a batch, frames are laid over each other and go through the network at once.

    Attributes:
        kinds: of devices that it runs on.
        package: that it needs; `install` brings it.
        by_name_only: never measured unless it is named.
    """

    backend, precision = "eager", "fp32"
    title = "PyTorch eager"
    batch = 1
    kinds: tuple[str, ...] = ("cpu", "cuda")
    package, install = "torch", 'pip install "rtseg[export]"'
    packages: tuple[str, ...] = ()  # where any of several will do
    by_name_only = False

    def __init__(
        self,
        network: Network,
        size: tuple[int, int],
        weights: str,
        macs: int,
        frames: Frames,
        device: str = "cpu",
        threads: int | None = None,
        trained: bool = False,
        fit: Fit = "letterbox",
        batch: int = 1,
    ):
        import torch

        self.fit: Fit = fit
        self.batch = batch
        self.torch, self.size, self.frames = torch, size, itertools.cycle(frames)
        self.laps: list[dict[str, float]] = []
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise ArtifactError(
                    "this build of PyTorch does not use the GPU: "
                    "see https://pytorch.org/get-started/locally"
                )
            # As authors' scripts have it: the fastest algorithm for this one shape.
            torch.backends.cudnn.benchmark = True
        self.threads = threads or torch.get_num_threads()
        self.info = network.info
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.info.mean, self.info.std)
        )
        self.model = self._prepare(network.eval().to(self.device))
        on_gpu = self.device.type == "cuda"
        self._subject = Subject(
            model=self.info.name,
            weights=weights,
            trained=trained,
            size=size,
            precision=self.precision,
            backend=self.backend,
            version=self._version(),
            device=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            threads=None,
            options={},
            macs=macs,
            artifact="",
            peer=True,
            batch=batch,
        )
        self.image: torch.Tensor | None = None
        self._noise: torch.Tensor | None = None
        self.frame_to_labels()

    def _prepare(self, network: Network) -> Any:
        """What is called with the normalized image (N, 3, H, W) and gives logits."""
        return network

    def _version(self) -> str:
        return self.torch.__version__

    @property
    def subject(self) -> Subject:
        on_cpu = self.device.type == "cpu"
        return replace(self._subject, threads=self.threads if on_cpu else None)

    def keep_faster_thread_count(self) -> None:
        """Continue with one thread if that is faster."""
        # With several, every operation ends at a barrier, and where another program holds one of
        # the cores each barrier waits for it: networks were seen twenty times slower. That says
        # nothing about PyTorch, and to compare with it would flatter everybody else.
        times = {}
        # Seen beside a busy process: csfcn_nano, 256x512, 900 ms with two threads, 40 with one.
        for threads in dict.fromkeys((self.threads, 1)):
            self.threads = threads
            self.frame_to_labels()
            # The call before it has started the new threads.
            start = time.perf_counter_ns()
            self.frame_to_labels()
            times[threads] = time.perf_counter_ns() - start
        self.threads = min(times, key=lambda threads: times[threads])

    def label(self, frame: Frame) -> NDArray[np.uint8]:
        return self._run([frame] * self.batch, lambda stage: None)[0]

    def frame_to_labels(self) -> object:
        labels = self._run(self._next_frames(), lambda stage: None)
        return labels if self.batch > 1 else labels[0]

    def _next_frames(self) -> list[Frame]:
        return list(itertools.islice(self.frames, self.batch))

    def staged(self) -> object:
        laps = Laps()

        def stop(stage: str) -> None:
            self._synchronize()
            laps.lap(stage)

        labels = self._run(self._next_frames(), stop)
        self.laps.append(laps.times)
        return labels

    def network(self) -> object:
        assert self.image is not None
        with self._settings():
            result = self._compute(self.image)
        self._synchronize()
        return result

    def device_ms(self) -> float | None:
        image = self.image
        assert image is not None
        with self._settings():
            return device_ms(lambda: self._compute(image), str(self.device))

    def take_noise(self) -> None:
        assert self.image is not None
        if self._noise is None:
            noise = self.torch.from_numpy(random_frame(self.size))
            self._noise = noise.expand(self.batch, *noise.shape).contiguous().to(self.device)
        self._synchronize()

    def queued(self, count: int) -> object:
        assert self._noise is not None
        with self._settings():
            for _ in range(count):
                # From pixels to labels, since an artifact's graph holds all of that.
                result = self._labels(self._compute(self._normalized(self._noise)))
        self._synchronize()
        return result

    def close(self) -> None:
        del self.model, self.image

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        """The part that counts as network: normalized image -> logits (N, K, h, w)."""
        logits: torch.Tensor = self.model(image)
        return logits

    def _run(self, frames: Sequence[Frame], stop: Callable[[str], None]) -> list[NDArray[np.uint8]]:
        """A batch of frames -> labels (H, W) uint8 of each; `stop(stage)` is called where a stage
        ends."""
        frames = [as_bgr(frame) for frame in frames]
        fitted = np.stack([fit_frame(frame, self.size, self.fit) for frame in frames])
        stop("preprocess")
        with self._settings():
            uploaded = self.torch.from_numpy(fitted).to(self.device)
            stop("host_to_device")
            self.image = self._normalized(uploaded)
            stop("preprocess")
            computed = self._compute(self.image)
            stop("compute")
            labels = self._labels(computed)
            stop("post")
            downloaded = labels.cpu().numpy()
        stop("device_to_host")
        mapped = [
            restore_labels(each, (frame.shape[0], frame.shape[1]), self.fit)
            for each, frame in zip(downloaded, frames, strict=True)
        ]
        stop("post")
        return mapped

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Threads are the whole process's, and another contestant may use PyTorch too."""
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(self.threads)  # of the whole process
        try:
            with self.torch.inference_mode():
                yield
        finally:
            self.torch.set_num_threads(before)

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 BGR -> (N, 3, H, W) float32 RGB as the network takes it."""
        # As authors' scripts prepare it, but on the device.
        image = frame.flip(3).permute(0, 3, 1, 2).float().contiguous()
        return image.div_(255).sub_(self.mean).div_(self.std)

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, K, h, w) -> (N, H, W) uint8."""
        if tuple(logits.shape[-2:]) != self.size:
            logits = self.torch.nn.functional.interpolate(
                logits, self.size, mode="bilinear", align_corners=self.info.align_corners
            )
        return logits.argmax(1).to(self.torch.uint8)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)


class Compiled(Eager):
    """`torch.compile`: on a CPU in float32 with its defaults; on CUDA in float16, channels last,
    "max-autotune", which searches for the fastest kernels and replays a CUDA graph."""

    backend = title = "torch.compile"

    def _prepare(self, network: Network) -> Any:
        torch = self.torch
        if self.device.type == "cpu":
            return self._tried(torch.compile(network, dynamic=False))
        self.precision = "fp16"
        half: Any = network.half()
        half = half.to(memory_format=torch.channels_last)
        return self._tried(torch.compile(half, dynamic=False, mode="max-autotune"))

    def _tried(self, model: Any) -> Any:
        """Compiled by a first call, so that a compiler that is absent is found here."""
        with as_artifact_error("torch.compile"), self._settings():
            model(self._as_taken(self.torch.zeros(self.batch, 3, *self.size, device=self.device)))
        return model

    def _as_taken(self, image: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return image
        half: torch.Tensor = image.half().contiguous(memory_format=self.torch.channels_last)
        return half

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        return self._as_taken(super()._normalized(frame))


class PlainExport(Eager):
    """A runtime on the plain export: `torch.onnx.export` with its defaults of the network, the
    resize and the argmax, from the normalized float image to int64 labels."""

    plain: Path  # set by `of` before the class is made
    half = False  # whether the export is in float16

    @classmethod
    def of(cls, model: Model, size: tuple[int, int], batch: int = 1) -> type[PlainExport]:
        """This class for one model's file."""
        # A class, since contestants are made by calling one: the file goes along as its attribute.
        return type(
            cls.__name__, (cls,), {"plain": write_plain_export(model, size, cls.half, batch)}
        )

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        """The graph's labels (N, H, W) int64 -> uint8."""
        return logits.to(self.torch.uint8)


class PlainOnnxRuntime(PlainExport):
    """On CUDA the image and the labels are bound in device memory: a download and an upload inside
    the timed network would be this code's fault, not ONNX Runtime's."""

    backend, title = "plain onnxruntime", "plain ONNX Runtime"
    package, install = "onnxruntime", 'pip install "rtseg[cpu]"'

    def _prepare(self, network: Network) -> Any:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        # 3: errors and worse.
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device.type == "cuda":
            wanted = "CUDAExecutionProvider"
            providers.insert(0, (wanted, {"device_id": self.device.index or 0}))
        with as_artifact_error(self.backend):
            session = runtime.InferenceSession(self._file(network), options, providers=providers)
        # Where CUDA does not load, ONNX Runtime continues without it and without an error.
        if self.device.type == "cuda" and wanted not in session.get_providers():
            raise ArtifactError(
                "ONNX Runtime runs on the CPU here: its CUDA provider did not load; `rtseg doctor` "
                "says what is missing"
            )
        return session

    def _file(self, network: Network) -> str | bytes:
        return str(self.plain)

    def _version(self) -> str:
        return str(importlib.import_module("onnxruntime").__version__)

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        image = super()._normalized(frame)
        self._synchronize()  # ONNX Runtime computes in a stream of its own
        return image

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            (found,) = self.model.run(None, {"image": image.numpy()})
            computed: torch.Tensor = self.torch.from_numpy(found)
            return computed
        labels: torch.Tensor = self.torch.empty(
            (self.batch, *self.size), dtype=self.torch.int64, device=self.device
        )
        place = "cuda", self.device.index or 0
        binding = self.model.io_binding()
        shape = list(image.shape)
        binding.bind_input("image", *place, np.float32, shape, image.data_ptr())
        binding.bind_output("labels", *place, np.int64, list(labels.shape), labels.data_ptr())
        self.model.run_with_iobinding(binding)
        return labels


class OriginalFile(PlainOnnxRuntime):
    """Somebody's ONNX file as it is, with the steps around it that its user has to write: what
    eager PyTorch is to a module. A batch goes through it one frame after another, as the file need
    not take several."""

    backend, title = "original file", "the original file in ONNX Runtime"

    def _file(self, network: Network) -> str | bytes:
        from ..models.onnx_file import OnnxNetwork

        assert isinstance(network, OnnxNetwork)
        self.form, self.order = network.form, network.order
        return network.content

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.flip(1) if self.order == "bgr" else image
        found = [
            self.model.run([self.form.output], self.form.feed(each[None]))[0] for each in pixels
        ]
        # A map of ids may come without the axis of images.
        one = [each[None] if each.ndim == 2 else each[:1] for each in found]
        computed: torch.Tensor = self.torch.from_numpy(np.concatenate(one))
        return computed

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        from ..models.onnx_file import as_ids

        if self.form.tail.kind == "labels":
            ids = self.torch.from_numpy(np.stack([as_ids(each[None].numpy()) for each in logits]))
            ids = ids[:, None].float()
            if tuple(ids.shape[-2:]) != self.size:
                ids = self.torch.nn.functional.interpolate(ids, self.size)
            labels: torch.Tensor = ids[:, 0].to(self.torch.uint8)
            return labels
        if self.form.output_axis == 3:
            logits = logits.permute(0, 3, 1, 2)
        if self.form.channels == 1:
            half = 0.5 if self.form.tail.kind == "probabilities" else 0.0
            logits = self.torch.cat([self.torch.full_like(logits, half), logits], dim=1)
        return Eager._labels(self, logits)


class PlainOpenVino(PlainExport):
    """OpenVINO with its defaults except the thread count, which all contestants share."""

    backend, title = "plain openvino", "plain OpenVINO"
    kinds, package, install = ("cpu",), "openvino", 'pip install "rtseg[openvino]"'
    hint = "f32"

    def _prepare(self, network: Network) -> Any:
        from ..runtime.backends.openvino import the_core

        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.hint,
        }
        with as_artifact_error(self.backend):
            model = the_core().compile_model(str(self.plain), "CPU", settings)
        return model.create_infer_request()

    def _version(self) -> str:
        return str(importlib.import_module("openvino").__version__).split("-")[0]

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        self.model.infer({0: image.numpy()}, share_inputs=True)  # the image is not copied
        labels: torch.Tensor = self.torch.from_numpy(self.model.get_output_tensor(0).data)
        return labels


class PlainOpenVinoBf16(PlainOpenVino):
    """As OpenVINO runs by default on processors that have bfloat16."""

    precision, hint, title = "bf16", "bf16", "plain OpenVINO in bfloat16"

    def _prepare(self, network: Network) -> Any:
        from ..runtime.backends.openvino import the_core

        if "BF16" not in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ArtifactError("this processor does not compute in bfloat16")
        return super()._prepare(network)


class PlainTensorRT(PlainExport):
    """TensorRT with its builder's defaults on a half-precision export: float32 where its builder
    would choose is no option, since releases from 11 on, and RTX, take the graph's own types."""

    backend, title = "plain tensorrt", "plain TensorRT"
    precision, half, kinds = "fp16", True, ("cuda",)
    package, install = "tensorrt", "see `rtseg doctor`"
    packages = ("tensorrt", "tensorrt_rtx")

    def _prepare(self, network: Network) -> Any:
        from ..runtime.packages import FLAVOURS, find_package, import_package, make_log

        package = next(p for flavour in FLAVOURS if (p := find_package(flavour)))
        self.trt: Any = import_package(package.flavour)
        log = make_log(self.trt, "error")
        with as_artifact_error(self.title):
            content = self._build(log)
            self.trt_runtime = self.trt.Runtime(log)
            self.engine = self.trt_runtime.deserialize_cuda_engine(content)
            if self.engine is None:
                reason = log.errors[-1] if log.errors else "TensorRT gave no reason"
                raise ArtifactError(f"{self.title} does not load its engine: {reason}")
            return self.engine.create_execution_context()

    def _build(self, log: Any) -> bytes:
        trt = self.trt
        builder = trt.Builder(log)
        typed = trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = builder.create_network(1 << int(typed))
        parser = trt.OnnxParser(network, log)
        if not parser.parse_from_file(str(self.plain)):
            raise ArtifactError(f"{self.title} cannot parse: {parser.get_error(0).desc()}")
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        if plan is None:
            raise ArtifactError(f"{self.title} cannot build: {log.errors[-1:]}")
        return bytes(plan)

    def _version(self) -> str:
        return str(self.trt.__version__)

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        return super()._normalized(frame).half()

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        labels: torch.Tensor = self.torch.empty(
            (self.batch, *self.size), dtype=self.torch.int64, device=self.device
        )
        for name, tensor in (("image", image), ("labels", labels)):
            self.model.set_tensor_address(name, tensor.data_ptr())
        stream = self.torch.cuda.current_stream(self.device).cuda_stream
        if not self.model.execute_async_v3(stream):
            raise ArtifactError(f"{self.title} could not run its engine")
        return labels


class _HalfEngine(Eager):
    """A TensorRT engine that a converter makes of the PyTorch network, in float16."""

    precision, kinds = "fp16", ("cuda",)

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        return super()._normalized(frame).half()

    def _example(self) -> torch.Tensor:
        half = self.torch.float16
        shape = (self.batch, 3, *self.size)
        example: torch.Tensor = self.torch.zeros(shape, device=self.device, dtype=half)
        return example


class TorchTensorRT(_HalfEngine):
    """PyTorch's own way to TensorRT, by `torch.export`."""

    backend = package = "torch_tensorrt"
    title = "Torch-TensorRT"
    install = "pip install torch-tensorrt --extra-index-url https://download.pytorch.org/whl/cu130"

    def _prepare(self, network: Network) -> Any:
        with as_artifact_error(self.backend):
            converter = importlib.import_module("torch_tensorrt")
            # The graph's own types count. `enabled_precisions`, which earlier versions wanted,
            # is an AssertionError since 2.10 (pytorch/TensorRT#4070).
            return converter.compile(
                network.half(), ir="dynamo", inputs=[self._example()], use_explicit_typing=True
            )

    def _version(self) -> str:
        return str(importlib.import_module("torch_tensorrt").__version__)


class Torch2Trt(_HalfEngine):
    """NVIDIA-AI-IOT's converter, which traces the network's calls one by one."""

    backend = title = package = "torch2trt"
    install = (
        "pip install tensorrt && pip install --no-build-isolation "
        "git+https://github.com/NVIDIA-AI-IOT/torch2trt"
    )
    by_name_only = True

    def _prepare(self, network: Network) -> Any:
        with as_artifact_error(self.backend):
            convert = importlib.import_module("torch2trt").torch2trt
            return convert(network.half(), [self._example()], fp16_mode=True)

    def _version(self) -> str:
        return str(getattr(importlib.import_module("torch2trt"), "__version__", "unknown"))


def write_plain_export(
    model: Model, size: tuple[int, int], half: bool = False, batch: int = 1
) -> Path:
    """An ONNX file as anybody would write it: `torch.onnx.export` with its defaults of the network,
    the resize to the image and the argmax; "image" (N, 3, H, W), normalized, to "labels" (N, H, W)
    int64. From the cache, or exported into it.

    Args:
        model: the network.
        size: (height, width) in pixels.
        half: in float16, weights and image, instead of float32.
        batch: N.
    """
    import torch

    from ..export.trace import silence_exporter

    name = model.network.info.name
    end = ("plain_half" if half else "plain") + (f"_b{batch}" if batch > 1 else "")
    path = export_cache(model) / f"{name}_{size[0]}x{size[1]}_{end}.onnx"
    if path.exists():
        return path
    network, image = model.network, torch.zeros(batch, 3, *size)
    if half:
        network, image = copy.deepcopy(network).half(), image.half()
    with staged(path) as temporary, silence_exporter():
        torch.onnx.export(
            _add_argmax(network, size),
            (image,),
            str(temporary),
            input_names=["image"],
            output_names=["labels"],
            external_data=False,
        )
    return path


def _add_argmax(network: Network, size: tuple[int, int]) -> torch.nn.Module:
    import torch

    class Labels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            # A module as it is: what our export does better is no part of the comparison.
            logits = self.network.answer(image)[0]
            if tuple(logits.shape[-2:]) != size:
                corners = network.info.align_corners
                logits = torch.nn.functional.interpolate(
                    logits, size, mode="bilinear", align_corners=corners
                )
            labels: torch.Tensor = logits.argmax(1)
            return labels

    return Labels().eval()


PEERS: dict[str, type[Eager]] = {
    "eager": Eager,
    "compile": Compiled,
    "onnxruntime": PlainOnnxRuntime,
    "openvino": PlainOpenVino,
    "openvino_bf16": PlainOpenVinoBf16,
    "tensorrt": PlainTensorRT,
    "torch_tensorrt": TorchTensorRT,
    "torch2trt": Torch2Trt,
}


def check_peers(names: Iterable[str]) -> None:
    """Raises UsageError for a name that is no peer, MissingPackage for one that is absent."""
    for name in names:
        if name == "all":
            continue
        if name not in PEERS:
            raise UsageError(f"no peer is called {name!r}: choose from {', '.join(PEERS)}")
        if name != "eager":
            _check_installed(PEERS[name])


def _check_installed(peer: type[Eager]) -> None:
    if not any(map(importlib.util.find_spec, peer.packages or (peer.package,))):
        raise MissingPackage(f"the peer {peer.title} is not installed: {peer.install}")


def choose_peers(asked: Iterable[str], kind: str) -> list[str]:
    """Those asked for by name, and for "all" each that runs on this kind of device ("cpu" or
    "cuda"): one that is not installed becomes a row that says so."""
    names: dict[str, None] = {}
    for name in asked:
        usual = (each for each, peer in PEERS.items() if kind in peer.kinds)
        names.update(dict.fromkeys(usual if name == "all" else [name]))
    return list(names)


def peer_class(name: str, kind: str, asked_for: bool = True) -> type[Eager]:
    """The class that runs a peer.

    Args:
        name: one of PEERS.
        kind: "cpu" or "cuda".
        asked_for: by its name, not as one of all.

    Raises:
        ArtifactError: it does not run on such devices, or only where it is asked for.
        MissingPackage: it is not installed.
    """
    peer = PEERS[name]
    if kind not in peer.kinds:
        where = "an NVIDIA GPU" if peer.kinds == ("cuda",) else "a CPU"
        raise ArtifactError(f"the peer {peer.title} runs on {where} only")
    if name != "eager":
        _check_installed(peer)
    if peer.by_name_only and not asked_for:
        raise ArtifactError(f"it is measured where it is named: --peer {name}")
    return peer
