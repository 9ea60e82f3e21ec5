"""PyTorch itself, for machines that have it and for comparison; the one backend that imports it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ..models import FrameToLabels, build, deploy, digest, load_checkpoint
from .backend import Image, Info, InTurn
from .card import ArtifactError, read_card
from .ort import usable_cores

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class PyTorch(InTurn):
    """Weights with a card (`rtseg export --to torch`), run in their deployed form.

    device: "cpu" or "cuda[:N]"; by default CUDA where torch has it. On CUDA the whole graph from
    frame to labels is captured once and replayed, with pinned host buffers. On a CPU half precision
    falls back to float32, which is faster there.
    """

    def __init__(self, path: Path, device: str | None = None, threads: int | None = None):
        self.card = card = read_card(path)
        self.names = card.outputs
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ArtifactError(
                'this PyTorch has no CUDA device: load with device="cpu", or see `rtseg doctor`'
            )
        network = load_checkpoint(build(card.model, len(card.classes)), path)
        if digest(network) != card.weights:
            raise ArtifactError(f"{path} holds other weights than its card names: export it again")
        on_gpu = self.device.type == "cuda"
        precision = card.precision if on_gpu and card.precision in DTYPES else "fp32"
        threads = threads or usable_cores()
        if not on_gpu:
            torch.set_num_threads(threads)
        whole = FrameToLabels(deploy(network, card.size), card.outputs).eval()
        self.module = whole.to(self.device, DTYPES[precision], memory_format=torch.channels_last)
        shape = (1, *card.size, 3)
        self.frame = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.staging = torch.zeros(shape, dtype=torch.uint8, pin_memory=True) if on_gpu else None
        self.graph: Any = None
        self.results = self._run()
        if on_gpu:
            self._capture()
        self.info = Info(
            name="torch",
            version=torch.__version__,
            device=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            threads=None if on_gpu else threads,
            precision=precision,
        )

    def _run(self) -> tuple[torch.Tensor, ...]:
        with torch.inference_mode():
            results: tuple[torch.Tensor, ...] = self.module(self.frame)
            return results

    def _capture(self) -> None:
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose and allocate on their first runs
                self._run()
        torch.cuda.synchronize(self.device)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = self._run()

    def upload(self, image: Image) -> None:
        if self.staging is None:
            self.frame = torch.from_numpy(image)
        else:
            self.staging.numpy()[...] = image
            self.frame.copy_(self.staging, non_blocking=True)

    def compute(self) -> None:
        if self.graph is None:
            self.results = self._run()
        else:
            self.graph.replay()

    def _fetch(self, name: str) -> NDArray[Any]:
        value: NDArray[Any] = self.results[self.names.index(name)].cpu().numpy()
        return value

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def close(self) -> None:
        del self.module, self.results, self.graph
