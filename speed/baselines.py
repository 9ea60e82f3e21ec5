"""Peers: the same network as others run it, without anything of this pipeline."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError, MissingPackage, RtsegError, UsageError
from ..runtime.backends.backend import cuda_available
from .eager import Eager

if TYPE_CHECKING:
    import torch

    from ..models import Network


@dataclass(frozen=True)
class Peer:
    """cls: in this module, or Eager; kinds: of devices that it runs on; package: that it needs
    beside PyTorch; install: what brings that; plain: whether it runs the plain export;
    by_name_only: never measured unless it is named."""

    cls: str
    kinds: tuple[str, ...]
    title: str
    package: str = "torch"
    install: str = 'pip install "rtseg[export]"'
    plain: bool = False
    by_name_only: bool = False


PEERS = {
    "eager": Peer("Eager", ("cpu", "cuda"), "PyTorch eager"),
    "compile": Peer("Compiled", ("cpu", "cuda"), "torch.compile"),
    "onnxruntime": Peer(
        "PlainOnnxRuntime",
        ("cpu", "cuda"),
        "plain ONNX Runtime",
        "onnxruntime",
        'pip install "rtseg[cpu]"',
        plain=True,
    ),
    "openvino": Peer(
        "PlainOpenVino",
        ("cpu",),
        "plain OpenVINO",
        "openvino",
        'pip install "rtseg[openvino]"',
        plain=True,
    ),
    "openvino_bf16": Peer(
        "PlainOpenVinoBf16",
        ("cpu",),
        "plain OpenVINO in bfloat16",
        "openvino",
        'pip install "rtseg[openvino]"',
        plain=True,
    ),
    "torch_tensorrt": Peer(
        "TorchTensorRT",
        ("cuda",),
        "Torch-TensorRT",
        "torch_tensorrt",
        "pip install torch-tensorrt --extra-index-url https://download.pytorch.org/whl/cu130",
    ),
    "torch2trt": Peer(
        "Torch2Trt",
        ("cuda",),
        "torch2trt",
        "torch2trt",
        "pip install tensorrt && pip install --no-build-isolation "
        "git+https://github.com/NVIDIA-AI-IOT/torch2trt",
        by_name_only=True,
    ),
}


def check_peers(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is no peer, MissingPackage for one that is absent."""
    for name in names:
        if name == "all":
            continue
        if name not in PEERS:
            raise UsageError(f"no peer is called {name!r}: choose from {', '.join(PEERS)}")
        if importlib.util.find_spec(PEERS[name].package) is None:
            peer = PEERS[name]
            raise MissingPackage(f"the peer {peer.title} is not installed: {peer.install}")


def usual_peers(asked: Iterable[str], kind: str) -> list[str]:
    """The peers asked for that run on this kind of device; "all": each that is installed.

    Raises ArtifactError for one that is only measured by name and does not run on it.
    """
    names: dict[str, None] = {}
    for name in asked:
        if name == "all":
            names.update(dict.fromkeys(each for each in PEERS if _is_usual(each, kind)))
        elif kind in PEERS[name].kinds:
            names[name] = None
        elif PEERS[name].by_name_only:
            raise ArtifactError(f"the peer {PEERS[name].title} runs on an NVIDIA GPU only")
    return list(names)


def _is_usual(name: str, kind: str) -> bool:
    peer = PEERS[name]
    if kind not in peer.kinds or peer.by_name_only:
        return False
    if importlib.util.find_spec(peer.package) is None:
        return False
    if name == "openvino_bf16":
        from ..runtime.backends.openvino import the_core

        return "BF16" in the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return not (name == "onnxruntime" and kind == "cuda" and not cuda_available())


def peer_class(name: str) -> type[Eager]:
    found: type[Eager] = globals()[PEERS[name].cls]
    return found


@contextmanager
def _as_artifact_error(title: str) -> Iterator[None]:
    """Compilers and runtimes raise classes of their own; a peer that fails is only left out."""
    try:
        yield
    except RtsegError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(f"{title}: {lines[0][:300]}") from error


class Compiled(Eager):
    """`torch.compile`: on a CPU in float32 with its defaults; on CUDA in float16, channels last,
    "max-autotune", which searches for the fastest kernels and replays a CUDA graph."""

    backend = "torch.compile"

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
        with _as_artifact_error("torch.compile"), self._settings():
            model(self._as_taken(self.torch.zeros(1, 3, *self.size, device=self.device)))
        return model

    def _as_taken(self, image: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return image
        half: torch.Tensor = image.half().contiguous(memory_format=self.torch.channels_last)
        return half

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        return self._as_taken(super()._normalized(frame))


class Plain(Eager):
    """A runtime on the plain export: `torch.onnx.export` with its defaults of the network, the
    resize and the argmax, from the normalized float image to int64 labels."""

    plain: Path  # set by `on` before the class is made

    @classmethod
    def on(cls, plain: Path) -> type[Plain]:
        """This class for one file."""
        return type(cls.__name__, (cls,), {"plain": plain})

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        """The graph's labels (1, H, W) int64 -> (H, W) uint8."""
        return logits[0].to(self.torch.uint8)


class PlainOnnxRuntime(Plain):
    backend = "plain onnxruntime"

    def _prepare(self, network: Network) -> Any:
        runtime = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        providers = ["CPUExecutionProvider"]
        if self.device.type == "cuda":
            providers.insert(0, "CUDAExecutionProvider")
        with _as_artifact_error(self.backend):
            return runtime.InferenceSession(str(self.plain), options, providers=providers)

    def _version(self) -> str:
        return str(importlib.import_module("onnxruntime").__version__)

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        (found,) = self.model.run(None, {"image": image.cpu().numpy()})
        labels: torch.Tensor = self.torch.from_numpy(found)
        return labels


class PlainOpenVino(Plain):
    backend = "plain openvino"
    hint = "f32"

    def _prepare(self, network: Network) -> Any:
        from ..runtime.backends.openvino import the_core

        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "INFERENCE_PRECISION_HINT": self.hint,
        }
        with _as_artifact_error(self.backend):
            model = the_core().compile_model(str(self.plain), "CPU", settings)
        return model.create_infer_request()

    def _version(self) -> str:
        return str(importlib.import_module("openvino").__version__).split("-")[0]

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        self.model.infer({0: image.numpy()}, share_inputs=True)
        labels: torch.Tensor = self.torch.from_numpy(self.model.get_output_tensor(0).data)
        return labels


class PlainOpenVinoBf16(PlainOpenVino):
    """As OpenVINO runs by default on processors that have bfloat16."""

    precision, hint = "bf16", "bf16"


class _HalfEngine(Eager):
    """A TensorRT engine that a converter makes of the PyTorch network, in float16."""

    precision = "fp16"

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        return super()._normalized(frame).half()

    def _example(self) -> torch.Tensor:
        half = self.torch.float16
        example: torch.Tensor = self.torch.zeros(1, 3, *self.size, device=self.device, dtype=half)
        return example


class TorchTensorRT(_HalfEngine):
    backend = "torch_tensorrt"

    def _prepare(self, network: Network) -> Any:
        with _as_artifact_error(self.backend):
            converter = importlib.import_module("torch_tensorrt")
            return converter.compile(
                network.half(),
                ir="dynamo",
                inputs=[self._example()],
                enabled_precisions={self.torch.float16},
            )

    def _version(self) -> str:
        return str(importlib.import_module("torch_tensorrt").__version__)


class Torch2Trt(_HalfEngine):
    backend = "torch2trt"

    def _prepare(self, network: Network) -> Any:
        with _as_artifact_error(self.backend):
            convert = importlib.import_module("torch2trt").torch2trt
            return convert(network.half(), [self._example()], fp16_mode=True)

    def _version(self) -> str:
        return str(getattr(importlib.import_module("torch2trt"), "__version__", "unknown"))
