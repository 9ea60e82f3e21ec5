"""Measures the machine's ceilings: the fastest matrix product a precision, and a copy."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .roofline import Ceilings
from .timing import MS, Call, Now

SIDES = (512, 1024, 2048)  # of the square matrices; which one is fastest depends on the caches
GPU_SIDES = (4096, 8192)
CHAIN = 4  # products in a row, so that converting the first input does not show
COPY_BYTES = 1 << 28
Trial = tuple[str, str, int, Call]  # precision, what computes, multiply-adds, the call


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
    rates: dict[str, float] = {}
    by: dict[str, str] = {}
    trials = _on_gpu(device, sides or GPU_SIDES) if device != "cpu" else None
    for precision, name, macs, call in trials or _on_cpu(threads, sides or SIDES):
        rate = macs / fastest(call, seconds, now)
        if rate > rates.get(precision, 0):
            rates[precision], by[precision] = rate, name
    on_gpu = device != "cpu"
    copied = _gpu_copy(device, copy_bytes) if on_gpu else _cpu_copy(threads, copy_bytes)
    return Ceilings(
        device=_gpu_name(device) if on_gpu else "cpu",
        threads=None if on_gpu else threads,
        macs_per_s={precision: round(rate) for precision, rate in rates.items()},
        by=by,
        bytes_per_s=round(2 * copy_bytes / fastest(copied, seconds, now)),
    )


def fastest(call: Call, seconds: float, now: Now) -> float:
    """The shortest time of a call, in s, of `seconds` of them and three at least."""
    call()
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


def _tensor(values: NDArray[np.float32]) -> Any:
    import openvino

    return openvino.Tensor(values)


def _chain(side: int, quantized: bool) -> Any:
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


def _rounded(ops: Any, value: Any) -> Any:
    edges = [np.float32(-4), np.float32(4)] * 2
    return ops.fake_quantize(value, *edges, 256)


def _int8(ops: Any, weights: NDArray[np.float32]) -> Any:
    scale = np.float32(np.abs(weights).max() / 127)
    whole = np.clip(np.round(weights / scale), -127, 127).astype(np.int8)
    return ops.multiply(ops.convert(ops.constant(whole), np.float32), ops.constant(scale))


def _torch(side: int, device: str, threads: int | None) -> Iterator[Trial]:
    """PyTorch's products: float32 without TF32, half precisions, and int8 on a GPU."""
    import torch

    left, right = (torch.from_numpy(_normal(side, seed)).to(device) for seed in (0, 1))
    kinds: dict[str, Any] = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device != "cpu":
        kinds["fp16"] = torch.float16
    for precision, kind in kinds.items():
        call = _product(torch.mm, left.to(kind), right.to(kind), threads)
        yield precision, f"PyTorch {side}", side**3, call
    if device != "cpu" and hasattr(torch, "_int_mm"):
        small = [(64 * matrix).to(torch.int8) for matrix in (left, right)]
        call = _product(torch._int_mm, small[0], small[1].t().contiguous().t(), threads)
        yield "int8", f"PyTorch {side}", side**3, call


def _product(function: Callable[..., Any], left: Any, right: Any, threads: int | None) -> Call:
    """The call, which on a GPU ends when the product is there."""
    import torch

    def call() -> None:
        if threads:
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
        with torch.inference_mode():
            function(left, right)
        if left.is_cuda:
            torch.cuda.synchronize(left.device)
        if threads:
            torch.set_num_threads(before)

    return call


def _on_gpu(device: str, sides: Sequence[int]) -> Iterator[Trial]:
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        for side in sides:
            yield from _torch(side, device, None)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


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


def _gpu_name(device: str) -> str:
    import torch

    return str(torch.cuda.get_device_name(device))
