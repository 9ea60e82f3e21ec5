"""Roofline: the machine's measured ceilings, a network's minimal work, and how near it comes."""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .timing import MS, Call, Now

if TYPE_CHECKING:
    import torch

    from ..models import Network
    from .result import Subject

log = logging.getLogger("rtseg")
BYTES = {"fp32": 4, "tf32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}  # of a weight
SIDES = (512, 1024, 2048)  # of the square matrices; which one is fastest depends on the caches
GPU_SIDES = (4096, 8192)
EIGHT_BIT_FLOATS = (8, 9)  # the first compute capability that multiplies them
CHAIN = 4  # products in a row, so that converting the first input does not show
COPY_BYTES = 1 << 28
Trial = tuple[str, str, int, Call]  # precision, what computes, multiply-adds, the call


@dataclass(frozen=True)
class Ceilings:
    """What this machine reaches at its best, measured.

    macs_per_s: multiply-adds a second of the fastest matrix product, by precision, on a GPU "tf32"
    too; by: what computed it; bytes_per_s: of a copy, read and written bytes together; device:
    "cpu" or the GPU's name; threads: None on a GPU.
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
    values that go in and out, weights) of each convolution and matrix product, () without PyTorch
    to count them.
    """

    macs: int
    weights: int
    pixels: int
    layers: Sequence[tuple[int, int, int]] = ()

    def minimal_bytes(self, precision: str) -> int:
        """Weights and frame are read once, labels written once, nothing else leaves the caches."""
        # Three bytes a pixel go in and one comes out.
        return self.weights * BYTES[precision] + 3 * self.pixels + self.pixels


@dataclass(frozen=True)
class Share:
    """How near a network came to the limit.

    ceiling: the arithmetic of it, such as "fp16" or "tf32"; limit_ms: the larger of arithmetic at
    the ceiling and minimal bytes at the copy bandwidth; reached: limit over measured time;
    layers_ms: the same bound layer by layer, where every convolution reads its input and writes
    its output through memory; it is no lower bound where layers are fused or stay in caches.
    """

    macs: int
    minimal_bytes: int
    ceiling: str
    ceiling_macs_per_s: float
    bytes_per_s: float
    limit_ms: float
    reached: float
    layers_ms: float | None
    layers_reached: float | None


def share(work: Work, subject: Subject, network_ms: float, ceilings: Ceilings) -> Share | None:
    """Of a network that takes `network_ms`; None if its arithmetic has no measured ceiling."""
    precision = arithmetic_of(subject)
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
        ceiling=precision,
        ceiling_macs_per_s=round(rate),
        bytes_per_s=round(bandwidth),
        limit_ms=round(limit, 4),
        reached=round(limit / network_ms, 4),
        layers_ms=None if layers is None else round(layers, 4),
        layers_reached=None if layers is None else round(layers / network_ms, 4),
    )


def arithmetic_of(subject: Subject) -> str:
    """What the multiply-adds of a row are done in.

    In "tf32" for float32 convolutions on a GPU, but for those of TensorRT.
    """
    # PyTorch and ONNX Runtime take TF32 there by default, and held against float32 without it they
    # would reach more than 1; our engines have it off.
    on_gpu = subject.threads is None
    if on_gpu and subject.precision == "fp32" and subject.backend != "tensorrt":
        return "tf32"
    return subject.precision


def count_work(network: Network, size: tuple[int, int]) -> Work:
    """The work of the plain network for a (height, width) frame; nothing is computed."""
    import torch

    from ..models import count

    if hasattr(network, "count_cost"):  # no operations of PyTorch to look at
        cost = count(network, size)
        return Work(cost.macs, cost.params, math.prod(size))
    traced = copy.deepcopy(network).to("meta").eval().requires_grad_(False)
    layers: list[tuple[int, int, int]] = []
    with torch.no_grad(), _layer_counter(layers):
        traced(torch.empty(1, 3, *size, device="meta"))
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
            self, func: Any, types: object, args: tuple[object, ...] = (), kwargs: Any = None
        ) -> object:
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
    # What one output value takes: a convolution's weights are (outputs, ...), a matrix (inputs,
    # outputs).
    inner = weight.numel() // weight.shape[0] if weight.dim() > 2 else weight.shape[0]
    # A transposed convolution spreads each input over the kernel.
    macs = (taken if transposed else result).numel() * inner
    return macs, taken.numel() + result.numel(), weight.numel()


def measure_ceilings(
    threads: int,
    device: str = "cpu",
    seconds: float = 0.3,
    sides: Sequence[int] = (),
    copy_bytes: int = COPY_BYTES,
    now: Now = time.perf_counter_ns,
) -> Ceilings:
    """The best of every precision and way that is installed, each tried for about `seconds`.

    device: "cpu" or "cuda[:N]". sides: of the matrices, by default SIDES or GPU_SIDES.
    """
    on_gpu = device != "cpu"
    trials: Iterator[Trial]
    rates: dict[str, float] = {}
    by: dict[str, str] = {}
    if on_gpu:
        import torch

        name = torch.cuda.get_device_name(device)
        trials = (t for side in sides or GPU_SIDES for t in _torch(side, device, None))
        copied = _gpu_copy(device, copy_bytes)
    else:
        name, trials = "cpu", _on_cpu(threads, sides or SIDES)
        copied = _cpu_copy(threads, copy_bytes)
    for precision, what, macs, call in trials:
        try:
            rate = macs / fastest(call, seconds, now)
        except RuntimeError as error:
            if not on_gpu:
                raise
            # cuBLAS has not every product on every GPU; the others are ceilings all the same.
            log.warning("no ceiling in %s by %s: %s", precision, what, str(error).split("\n")[0])
            continue
        if rate > rates.get(precision, 0):
            rates[precision], by[precision] = rate, what
    return Ceilings(
        device=name,
        threads=None if on_gpu else threads,
        macs_per_s={precision: round(rate) for precision, rate in rates.items()},
        by=by,
        # A copy reads and writes every byte.
        bytes_per_s=round(2 * copy_bytes / fastest(copied, seconds, now)),
    )


def measure_copies(
    device: str, seconds: float = 0.3, size: int = COPY_BYTES, now: Now = time.perf_counter_ns
) -> dict[str, int]:
    """Bytes a second between host and GPU, each way, from pinned and from pageable memory."""
    import torch

    there = torch.ones(size, dtype=torch.uint8, device=device)
    rates: dict[str, int] = {}
    for kind in ("pinned", "pageable"):
        here = torch.ones(size, dtype=torch.uint8, pin_memory=kind == "pinned")
        for way, target, source in (("upload", there, here), ("download", here, there)):

            def call(target: torch.Tensor = target, source: torch.Tensor = source) -> None:
                target.copy_(source, non_blocking=True)
                torch.cuda.synchronize(device)

            rates[f"{way}, {kind}"] = round(size / fastest(call, seconds, now))
    return rates


def fastest(call: Call, seconds: float, now: Now) -> float:
    """The shortest time of a call, in s, of `seconds` of them and three at least."""
    call()
    # The fastest, not the median: a ceiling is what the machine can do, undisturbed.
    start, best, runs = now(), float("inf"), 0
    while runs < 3 or (now() - start) * MS < 1e3 * seconds:
        began = now()
        call()
        best = min(best, (now() - began) * MS / 1e3)
        runs += 1
    return best


def _on_cpu(threads: int, sides: Sequence[int]) -> Iterator[Trial]:
    for side in sides:
        if importlib.util.find_spec("openvino"):
            yield from _openvino(side, threads)
        if importlib.util.find_spec("torch"):
            yield from _torch(side, "cpu", threads)
        yield "fp32", f"NumPy {side}", side**3, _numpy(side)


def _numpy(side: int) -> Call:
    left, right = (_normal(side, seed) for seed in (0, 1))
    out = np.empty_like(left)
    return lambda: np.matmul(left, right, out=out)


def _normal(side: int, seed: int) -> NDArray[np.float32]:
    """(side, side), of a scale that a chain of products keeps."""
    values = np.random.default_rng(seed).standard_normal((side, side)) / side**0.5
    return np.asarray(values, np.float32)


def _openvino(side: int, threads: int) -> Iterator[Trial]:
    """OpenVINO's products, which use matrix units (AMX) in bfloat16 and int8 where there are."""
    from ..runtime.backends.openvino import HINTS, the_core

    able = the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
    for precision, capability in names.items():
        if capability not in able:
            continue
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINTS.get(precision, "f32"),
        }
        model = the_core().compile_model(_chain(side, precision == "int8"), "CPU", settings)
        request = model.create_infer_request()
        request.set_input_tensor(_tensor(_normal(side, 9)))
        yield precision, f"OpenVINO {side}", CHAIN * side**3, request.infer


def _tensor(values: NDArray[np.float32]) -> object:
    import openvino

    return openvino.Tensor(values)


def _chain(side: int, quantized: bool) -> object:
    """CHAIN products with constant weights; `quantized`: between int8 values, as QDQ writes it."""
    import openvino
    from openvino import opset13 as ops

    frame = ops.parameter([side, side], np.float32)
    value = _rounded(ops, frame) if quantized else frame
    for layer in range(CHAIN):
        weights = _normal(side, layer)
        constant = _int8(ops, weights) if quantized else ops.constant(weights)
        value = ops.matmul(value, constant, False, False)
        value = _rounded(ops, value) if quantized else value
    return openvino.Model([value], [frame])


def _rounded(ops: Any, value: object) -> object:
    edges = [np.float32(-4), np.float32(4)] * 2
    return ops.fake_quantize(value, *edges, 256)


def _int8(ops: Any, weights: NDArray[np.float32]) -> object:
    scale = np.float32(np.abs(weights).max() / 127)
    whole = np.clip(np.round(weights / scale), -127, 127).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(whole), np.float32), ops.constant(scale))


def _torch(side: int, device: str, threads: int | None) -> Iterator[Trial]:
    """PyTorch's products; on a GPU float32 with and without TF32, both halves, and int8."""
    import torch

    left, right = (torch.from_numpy(_normal(side, seed)).to(device) for seed in (0, 1))
    kinds: dict[str, Any] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device != "cpu":
        kinds |= {"tf32": torch.float32, "fp16": torch.float16}
    for precision, kind in kinds.items():
        call = _product(torch.mm, left.to(kind), right.to(kind), threads, precision == "tf32")
        yield precision, f"PyTorch {side}", side**3, call
    if device != "cpu" and hasattr(torch, "_int_mm"):
        # cuBLASLt takes int8 only where the right side is stored by columns.
        small = [(64 * matrix).to(torch.int8) for matrix in (left, right)]
        call = _product(torch._int_mm, small[0], small[1].t().contiguous().t(), threads)
        yield "int8", f"PyTorch {side}", side**3, call
    if device != "cpu" and torch.cuda.get_device_capability(device) >= EIGHT_BIT_FLOATS:
        # As int8, by columns; one scale for each side.
        eight = [to_eight_bits(matrix) for matrix in (left, right)]
        multiply = partial(multiply_eight_bits, scale=torch.ones((), device=device))
        call = _product(multiply, eight[0], eight[1].t().contiguous().t(), threads)
        yield "fp8", f"PyTorch {side}", side**3, call


def to_eight_bits(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix in the 8-bit float of four exponent bits."""
    import torch

    return matrix.to(torch.float8_e4m3fn)


def multiply_eight_bits(
    left: torch.Tensor, right: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """The product in bfloat16 of 8-bit floats, the right side stored by columns."""
    import torch

    product: torch.Tensor = torch._scaled_mm(
        left, right, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16
    )
    return product


def _product(
    function: Any, left: Any, right: object, threads: int | None, tf32: bool = False
) -> Call:
    """The call, which on a GPU ends when the product is there."""
    import torch

    matmul = torch.backends.cuda.matmul

    def call() -> None:
        before = torch.get_num_threads(), matmul.allow_tf32
        torch.set_num_threads(threads or before[0])
        matmul.allow_tf32 = tf32
        with torch.inference_mode():
            function(left, right)
        if left.is_cuda:
            torch.cuda.synchronize(left.device)
        torch.set_num_threads(before[0])
        matmul.allow_tf32 = before[1]

    return call


def _cpu_copy(threads: int, size: int) -> Call:
    """A copy of `size` bytes, a part a thread; NumPy lets go of the interpreter meanwhile."""
    source, target = (np.ones(size, np.uint8) for _ in range(2))
    edges = np.linspace(0, size, threads + 1).astype(int)
    parts = [slice(a, b) for a, b in pairwise(edges)]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(lambda part: np.copyto(target[part], source[part]), parts))


def _gpu_copy(device: str, size: int) -> Call:
    import torch

    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))

    def call() -> None:
        target.copy_(source)
        torch.cuda.synchronize(device)

    return call
