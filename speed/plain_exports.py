"""Baselines on a plain export: each CPU's or GPU's runtime on what `torch.onnx.export` writes."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.files import stage_file
from ..errors import ArtifactError
from ..resolve import export_cache
from ..runtime.packages import preload_cuda
from .baselines import Eager, as_artifact_error

if TYPE_CHECKING:
    import torch

    from ..models import Network
    from ..models.loading import Model


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
            preload_cuda(runtime)
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

    def device_ms(self) -> float | None:
        return None  # it computes in a stream of its own, which PyTorch's events do not see

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
    with stage_file(path) as temporary, silence_exporter():
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
