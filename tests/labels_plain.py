"""Coarse logits of all kinds, and their labels by the whole computation in PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rtseg.runtime import load
from rtseg.runtime.argmax import Axis
from rtseg.runtime.backends.backend import ARGMAX

Logits = NDArray[Any]
Frames = list[tuple[str, Any]]
RNG = np.random.default_rng
# Whether PyTorch's kernels round a product and a sum once here, as ours do. Its code for older
# processors (or ATEN_CPU_CAPABILITY=default) rounds both, and a tie may go to the other class.
FUSED = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def plain(logits: Logits, size: tuple[int, int], aligned: bool) -> NDArray[np.uint8]:
    """The whole computation: in PyTorch where it rounds as we do, else in NumPy."""
    return (in_torch if FUSED else in_numpy)(logits, size, aligned)


def in_numpy(logits: Logits, size: tuple[int, int], aligned: bool) -> NDArray[np.uint8]:
    """With every rounding written out."""
    height, width = (
        Axis(coarse, fine, aligned) for coarse, fine in zip(logits.shape[2:], size, strict=True)
    )
    top, bottom = (logits[:, :, places].astype(np.float32) for places in corners(height))
    left, right = corners(width)
    rows = [fused(x[..., left], width.near, x[..., right], width.far) for x in (top, bottom)]
    near, far = height.near[:, None], height.far[:, None]
    return fused(rows[0], near, rows[1], far).argmax(1).astype(np.uint8)


def corners(axis: Axis) -> NDArray[np.int64]:
    """The two input positions that each output position reads, (2, positions)."""
    return np.repeat(axis.pairs, np.diff(axis.starts), axis=0).T


def fused(a: Logits, near: Logits, b: Logits, far: Logits) -> NDArray[np.float32]:
    """a * near + b * far, of which the first product is not rounded."""
    return (a.astype(np.float64) * near + (b * far)).astype(np.float32)


def in_torch(logits: Logits, size: tuple[int, int], aligned: bool) -> NDArray[np.uint8]:
    """By PyTorch's kernel for contiguous planes."""
    tensor = torch.from_numpy(np.ascontiguousarray(logits, np.float32))
    full = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=aligned)
    return full.argmax(1).numpy().astype(np.uint8)


def random(shape: tuple[int, ...]) -> Logits:
    return RNG(0).standard_normal(shape, np.float32)


def ties(shape: tuple[int, ...]) -> Logits:
    """Few distinct values: most positions hold several largest logits."""
    return RNG(1).integers(-1, 2, shape).astype(np.float32)


def regions(shape: tuple[int, ...]) -> Logits:
    """Smooth areas with a clear winner, as a trained network gives."""
    coarse = torch.from_numpy(RNG(2).standard_normal((*shape[:2], 3, 4), np.float32))
    return torch.nn.functional.interpolate(coarse * 9, shape[2:], mode="bicubic").numpy()


def near_ties(shape: tuple[int, ...]) -> Logits:
    """One unit in the last place between classes, the higher id ahead: rounding may make a tie."""
    logits = np.broadcast_to(RNG(3).uniform(1, 2, (1, 1, *shape[2:])), shape).astype(np.float32)
    for k in range(1, shape[1]):
        logits[:, k] = np.nextafter(logits[:, k - 1], np.float32(3))
    return logits


def extremes(shape: tuple[int, ...]) -> Logits:
    """All magnitudes from 1e-38 to 1e37, both signs."""
    sign = RNG(4).choice([-1.0, 1.0], shape)
    return (sign * 10.0 ** RNG(5).uniform(-38, 37, shape)).astype(np.float32)


def tiny(shape: tuple[int, ...]) -> Logits:
    """Subnormal numbers, which round by more than their share."""
    return (RNG(6).integers(0, 50, shape) * 1e-45).astype(np.float32)


def constant(shape: tuple[int, ...]) -> Logits:
    return np.full(shape, -3.25, np.float32)


KINDS = (random, ties, regions, near_ties, extremes, tiny, constant)


def agree_in_both_ways(artifact: Path, backend: str, frames: Frames, **options: Any) -> None:
    """Assert that a backend's argmax gives its graph's labels, but for its arithmetic's last place:
    PyTorch's kernel for channels last, ONNX Runtime and OpenVINO round in another order."""
    found = {}
    for argmax in ARGMAX:
        with load(artifact, backend, "cpu", argmax=argmax, **options) as segment:
            assert dict(segment.info.options)["argmax"] == argmax
            found[argmax] = [segment(frame) for _, frame in frames]
    for ours, graphs in zip(found["runtime"], found["graph"], strict=True):
        assert (ours == graphs).mean() > 0.9999
