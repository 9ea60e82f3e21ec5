"""The machine's own ceilings, the least work that a network is, and how near it comes to them."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..models import Network

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}  # of a weight


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches at its best, measured.

    macs_per_s: multiply-adds a second of the fastest matrix product, by precision; by: what
    computed it; bytes_per_s: of a copy, read and written bytes together; device: "cpu" or the
    GPU's name; threads: None on a GPU.
    """

    device: str
    threads: int | None
    macs_per_s: Mapping[str, float]
    by: Mapping[str, str]
    bytes_per_s: float

    def __str__(self) -> str:
        rates = ", ".join(f"{p} {rate / 1e9:.0f}" for p, rate in self.macs_per_s.items())
        return (
            f"ceilings: {rates} GMAC/s in matrix products, copy {self.bytes_per_s / 1e9:.1f} GB/s"
        )


@dataclass(frozen=True)
class Work:
    """What a network has to do for one frame, at least.

    macs: multiply-adds; weights: trained values; pixels: of the frame; layers: (multiply-adds,
    values that go in and out, weights) of each convolution and matrix product, () if PyTorch is
    not there to tell.
    """

    macs: int
    weights: int
    pixels: int
    layers: Sequence[tuple[int, int, int]] = ()

    def minimal_bytes(self, precision: str) -> int:
        """Weights and frame are read once, labels written once, nothing else leaves the caches."""
        return self.weights * BYTES[precision] + 3 * self.pixels + self.pixels


@dataclass(frozen=True)
class Share:
    """How near a network came to the limit.

    limit_ms: the larger of arithmetic at the ceiling and minimal bytes at the copy bandwidth;
    reached: limit over measured time; layers_ms: the same bound layer by layer, where every
    convolution reads its input and writes its output through memory; it is no lower bound where
    layers are fused or stay in caches.
    """

    macs: int
    minimal_bytes: int
    ceiling_macs_per_s: float
    bytes_per_s: float
    limit_ms: float
    reached: float
    layers_ms: float | None
    layers_reached: float | None


def share(work: Work, precision: str, network_ms: float, ceilings: Ceilings) -> Share | None:
    """Of a network that takes `network_ms`; None if its precision has no measured ceiling."""
    if precision not in ceilings.macs_per_s:
        return None
    rate, bandwidth = ceilings.macs_per_s[precision], ceilings.bytes_per_s
    least = work.minimal_bytes(precision)
    limit = 1e3 * max(work.macs / rate, least / bandwidth)
    layers = None
    if work.layers:
        layers = 1e3 * sum(
            max(macs / rate, (moved + weights) * BYTES[precision] / bandwidth)
            for macs, moved, weights in work.layers
        )
    return Share(
        macs=work.macs,
        minimal_bytes=least,
        ceiling_macs_per_s=round(rate),
        bytes_per_s=round(bandwidth),
        limit_ms=round(limit, 4),
        reached=round(limit / network_ms, 4),
        layers_ms=None if layers is None else round(layers, 4),
        layers_reached=None if layers is None else round(layers / network_ms, 4),
    )


def work_of(network: Network, size: tuple[int, int]) -> Work:
    """The work of the plain network for a (height, width) frame; nothing is computed."""
    import torch

    from ..models import count

    shadow = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    layers: list[tuple[int, int, int]] = []
    with torch.no_grad(), _layer_counter(layers):
        shadow(torch.empty(1, 3, *size, device="meta"))
    cost = count(network, size)
    return Work(cost.macs, cost.params, math.prod(size), tuple(layers))


def _layer_counter(layers: list[tuple[int, int, int]]) -> Any:
    """A context in which every convolution and matrix product adds its work to `layers`."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    weight_of = {  # operation: where its weights stand, which activations lie before them
        aten.convolution.default: 1,
        aten.mm.default: 1,
        aten.addmm.default: 2,
        aten.bmm.default: None,
    }

    class Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in weight_of:
                layers.append(_layer(args, weight_of[func], result))
            return result

    return Counter()  # type: ignore[no-untyped-call]


def _layer(args: tuple[Any, ...], place: int | None, result: Any) -> tuple[int, int, int]:
    """(multiply-adds, values in and out, weights) of one operation."""
    if place is None:  # both sides of a batched product are activations
        left, right = args[0], args[1]
        return result.numel() * left.shape[-1], left.numel() + right.numel() + result.numel(), 0
    taken, weight = args[place - 1], args[place]
    transposed = len(args) > 6 and bool(args[6])  # of a convolution
    inner = weight.numel() // weight.shape[0] if weight.dim() > 2 else weight.shape[0]
    macs = (taken if transposed else result).numel() * inner
    return macs, taken.numel() + result.numel(), weight.numel()
