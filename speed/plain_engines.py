"""Baselines on TensorRT: a plain export, and others' converters of PyTorch networks."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..errors import ArtifactError
from .baselines import Eager, as_artifact_error
from .plain_exports import PlainExport

if TYPE_CHECKING:
    import torch

    from ..models import Network


class _OnOwnStream(Eager):
    """On the default stream TensorRT synchronizes at every run, and says so in its log: a peer is
    run as its documents advise, on another."""

    _stream: Any = None

    @contextmanager
    def _settings(self) -> Iterator[None]:
        cuda = self.torch.cuda
        if self._stream is None:
            self._stream = cuda.Stream(self.device)
            self._stream.wait_stream(cuda.current_stream(self.device))  # which has made the weights
        with super()._settings(), cuda.stream(self._stream):
            yield


class PlainTensorRT(_OnOwnStream, PlainExport):
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


class _HalfEngine(_OnOwnStream):
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
