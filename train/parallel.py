"""Distributed training: several processes started by `torchrun`, or a single one without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Place:
    """This process among all: its number, how many there are, and its device."""

    process: int
    processes: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.process == 0


@contextmanager
def join_processes() -> Iterator[Place]:
    """Join the processes that torchrun started (NCCL on GPUs, gloo on CPUs), and leave at the end.

    Alone: one process on the first GPU, or the CPU.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield Place(0, 1, device)
        return
    distributed.init_process_group("nccl" if gpu else "gloo")
    try:
        yield Place(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()


class SumOverProcesses(torch.autograd.Function):
    """A tensor added up over all processes; so are its gradients on the way back."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        # Each process's result reads the values of all, so gradients come back from all.
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes, for CPUs; on GPUs PyTorch has its own."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # Sums of squares over a batch overflow in float16 and lose their digits in bfloat16.
        x = input.float()
        # Stacked, for one exchange instead of two.
        sums = torch.stack([x.sum(dim=(0, 2, 3)), x.square().sum(dim=(0, 2, 3))])
        # Batches of all processes are of one size.
        count = x.numel() // x.shape[1] * distributed.get_world_size()
        total: Tensor = SumOverProcesses.apply(sums)  # type: ignore[no-untyped-call]
        mean, square = (total / count).unbind()
        # Rounding may leave a variance just below 0.
        variance = (square - mean.square()).clamp(min=0)
        self._follow(mean.detach(), variance.detach(), count)
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        normed: Tensor = x * scale[:, None, None] + shift[:, None, None]
        return normed.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        # PyTorch's norms keep the unbiased variance, and normalize by the biased one.
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


def share_norms(model: nn.Module) -> nn.Module:
    """Every BatchNorm2d of `model` replaced by one that counts the images of all processes."""
    if next(model.parameters()).is_cuda:
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(model)
    for module in model.modules():
        for name, child in module.named_children():
            # Not a subclass, which may norm otherwise.
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _share_norm(child))
    return model


def _share_norm(norm: nn.BatchNorm2d) -> SharedBatchNorm:
    """With the same parameters, which an optimizer may hold already."""
    shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    shared.load_state_dict(norm.state_dict())
    shared.weight, shared.bias = norm.weight, norm.bias
    return shared.train(norm.training)


def distribute(model: nn.Module, place: Place, sync_norm: bool) -> nn.Module:
    """`model` so that gradients are averaged over all processes; unchanged for a single one."""
    if place.processes == 1:
        return model
    if sync_norm:
        model = share_norms(model)
    devices = [place.device] if place.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def sum_over_processes(counts: np.ndarray, place: Place) -> np.ndarray:
    """int64 counts, added up over all processes."""
    if place.processes == 1:
        return counts
    total = torch.from_numpy(counts).to(place.device)
    distributed.all_reduce(total)
    return np.asarray(total.cpu().numpy())


def average_over_processes(value: float, place: Place) -> float:
    """The mean of a number over all processes."""
    if place.processes == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=place.device)
    distributed.all_reduce(total)
    return float(total) / place.processes


def any_process(flag: bool, place: Place) -> bool:
    """Whether the flag is set in any process; the same answer everywhere."""
    if place.processes == 1:
        return flag
    return bool(sum_over_processes(np.array([flag], np.int64), place)[0])
