"""Labels from coarse logits in PyTorch, on CPU and GPU."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArtifactError
from .argmax import LabelMaker, compiled_available
from .artifact import Upsampling

TURNS = 15  # of each way, when they are timed
Maker = Callable[[Tensor], Tensor]  # coarse logits, or a head's features -> labels (N, H, W)


class CpuLabels:
    """`LabelMaker` for tensors on the CPU. The next call overwrites the labels."""

    def __init__(
        self, shape: tuple[int, ...], size: tuple[int, int], upsampling: Upsampling, threads: int
    ):
        self.maker = LabelMaker(shape, size, upsampling, threads)
        self.labels = torch.from_numpy(self.maker.labels)

    def __call__(self, coarse: Tensor) -> Tensor:
        self.maker(coarse.numpy())
        return self.labels

    def close(self) -> None:
        self.maker.close()


def find_missing_package(device: torch.device) -> str | None:
    """What is to be installed before labels can be made of coarse logits on `device`, if any."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton: pip install triton"
    return None if compiled_available() else 'numba: pip install "rtseg[fast]"'


def make_label_maker(
    coarse: Tensor,
    size: tuple[int, int],
    upsampling: Upsampling,
    threads: int,
    head: nn.Conv2d | None = None,
) -> Maker:
    """What makes labels of tensors like `coarse`, which are what `head` reads if one is given.

    Raises ArtifactError where that is not possible.
    """
    shape = tuple(coarse.shape)
    if coarse.device.type != "cuda":
        return CpuLabels(shape, size, upsampling, threads)
    from .argmax_triton import BilinearLabels, ShuffledLabels

    if upsampling != "shuffle":
        return BilinearLabels(shape, size, upsampling, coarse.device)
    if head is None:
        raise ArtifactError(
            "on a GPU shuffled labels are made by the head, and this one is unknown"
        )
    return ShuffledLabels(head.weight, head.bias, shape, size)


def find_head(network: Any, size: tuple[int, int]) -> str | None:
    """The name of the 1x1 convolution that gives `network.forward_logits`, if one does: found by
    running a copy without data."""
    on_meta = copy.deepcopy(network).to("meta")
    made: list[tuple[str, nn.Module, object]] = []
    for name, module in on_meta.named_modules():
        module.register_forward_hook(
            lambda module, _, output, name=name: made.append((name, module, output))
        )
    dtype = next(on_meta.parameters()).dtype
    with torch.no_grad():
        coarse = on_meta.forward_logits(torch.empty(1, 3, *size, device="meta", dtype=dtype))
    for name, module, output in made:
        # By identity: a layer whose output is changed afterwards does not make the logits.
        if output is coarse and isinstance(module, nn.Conv2d):
            plain = module.kernel_size == module.stride == (1, 1) and module.groups == 1
            return name if plain and not any(module.padding) else None
    return None


@contextlib.contextmanager
def bypass_layer(network: nn.Module, name: str | None) -> Iterator[None]:
    """`network` gives what the layer `name` reads in place of what that one makes of it."""
    if name is None:
        yield
        return
    parent, _, last = name.rpartition(".")
    owner, layer = network.get_submodule(parent), network.get_submodule(name)
    setattr(owner, last, nn.Identity())
    try:
        yield
    finally:
        setattr(owner, last, layer)


def median_ms(
    runs: dict[str, Callable[[], object]],
    turns: int = TURNS,
    now: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, float]:
    """Milliseconds of each of `runs`, the median of calls in turn. Each ends before it returns."""
    times: dict[str, list[int]] = {name: [] for name in runs}
    for _ in range(turns):
        for name, run in runs.items():
            began = now()
            run()
            times[name].append(now() - began)
    return {name: float(np.median(spent)) / 1e6 for name, spent in times.items()}
