"""Cases for the Triton kernels: what goes in, and the labels that PyTorch in float32 on the CPU
makes of it. `test_labels_gpu.py` runs them in Triton's interpreter, `scripts/gpu_kernels.py` on a
GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from labels_plain import KINDS, RNG, Logits, plain, random, ties
from rtseg.models import FrameToLabels, deploy
from rtseg.models.pipeline import find_last_upsample
from rtseg.models.random_weights import build_untrained
from rtseg.runtime.argmax_torch import bypass_layer, find_head


@dataclass
class Case:
    """What goes in, how, and the labels that have to come out."""

    given: Logits
    expected: Any
    how: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Logits] = field(default_factory=dict)  # weight and bias


def bilinear(
    make: Callable[..., Logits], factor: int, aligned: bool, batch: int = 1, **how: Any
) -> Case:
    # Above 128 pixels of height and width together, and with more than three channels, PyTorch
    # takes its kernel for planes.
    given = make((batch, 4, 2, 130 // factor + 2))
    size = 2 * factor, (130 // factor + 2) * factor
    if how.get("dtype", "float32") != "float32":
        given = torch.from_numpy(given).to(getattr(torch, how["dtype"])).float().numpy()
    upsampling = "bilinear_aligned" if aligned else "bilinear"
    defaults = {"dtype": "float32", "channels_last": False, "upsampling": upsampling, "size": size}
    return Case(given, plain(given, size, aligned), defaults | how)


def shuffled(
    classes: int, channels: int, factor: int, bias: bool, batch: int = 1, **how: Any
) -> Case:
    """Whole numbers, so that sums are exact in every order and ties are many."""
    shape = (batch, channels, 5, 7)
    given = RNG(1).integers(-2, 3, shape).astype(np.float32)
    weight = RNG(2).integers(-2, 3, (classes * factor**2, channels, 1, 1)).astype(np.float32)
    arrays = {"weight": weight}
    if bias:
        arrays["bias"] = RNG(3).integers(-2, 3, len(weight)).astype(np.float32)
    full = torch.nn.functional.conv2d(*map(torch.from_numpy, (given, *arrays.values())))
    expected = torch.pixel_shuffle(full, factor).argmax(1).numpy()
    defaults = {
        "dtype": "float32", "channels_last": False, "upsampling": "shuffle",
        "size": (5 * factor, 7 * factor),
    }  # fmt: skip
    return Case(given, expected, defaults | how, arrays)


def network_case() -> Case:
    """csfcn's own head on its own features."""
    network = deploy(build_untrained("csfcn", 5), (64, 96))
    assert find_last_upsample(network, (64, 96)) == "shuffle"
    name = find_head(network, (64, 96))
    assert name == "classifier"
    frame = torch.from_numpy(RNG(4).integers(0, 256, (1, 64, 96, 3), np.uint8))
    whole = FrameToLabels(network, ("coarse",)).eval()
    with torch.inference_mode():
        with bypass_layer(whole.network, name):
            (features,) = whole(frame)
        whole.outputs = ("labels",)
        (expected,) = whole(frame)
    head = network.get_submodule(name)
    case = shuffled(1, 1, 1, bias=True)
    case.given, case.expected = features.numpy(), expected.numpy()
    case.how["size"] = (64, 96)
    case.arrays = {"weight": head.weight.numpy(), "bias": head.bias.numpy()}
    return case


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for aligned in (False, True):
        end = "aligned" if aligned else "not aligned"
        for factor in range(2, 17):
            make = random if factor % 2 else ties
            found[f"factor {factor}, {end}"] = bilinear(make, factor, aligned)
        for make in KINDS:
            found[f"{make.__name__}, {end}"] = bilinear(make, 8, aligned)
        found[f"batch of 3, {end}"] = bilinear(ties, 8, aligned, batch=3)
        for dtype in ("float16", "bfloat16"):
            for make in (random, ties):
                how = {"dtype": dtype, "channels_last": True}
                found[f"{make.__name__}, {dtype}, {end}"] = bilinear(make, 8, aligned, **how)
    found["shuffled"] = shuffled(5, 24, 4, bias=True)
    found["shuffled, batch of 3"] = shuffled(5, 24, 4, bias=True, batch=3)
    found["shuffled, no bias"] = shuffled(3, 128, 8, bias=False)
    found["shuffled, odd factor"] = shuffled(4, 17, 3, bias=True)
    found["shuffled, half"] = shuffled(11, 64, 8, bias=True, dtype="float16", channels_last=True)
    found["shuffled, factor 16"] = shuffled(3, 64, 16, bias=True, dtype="float16")
    return found


CASES = cases()
NAMES = ("csfcn", *CASES)


@functools.cache
def case_of(name: str) -> Case:
    return CASES[name] if name in CASES else network_case()


def labels_on(case: Case, device: Any) -> Any:
    """The kernel's labels of a case (N, H, W) uint8, made on `device`."""
    from rtseg.runtime.argmax_triton import BilinearLabels, ShuffledLabels

    dtype, size = getattr(torch, case.how["dtype"]), case.how["size"]
    given = torch.from_numpy(case.given).to(device, dtype)
    if case.how["channels_last"]:
        given = given.to(memory_format=torch.channels_last)
    if case.arrays:
        parts = [torch.from_numpy(array).to(device, dtype) for array in case.arrays.values()]
        bias = parts[1] if len(parts) > 1 else None
        make: Any = ShuffledLabels(parts[0], bias, tuple(given.shape), size)
    else:
        make = BilinearLabels(tuple(given.shape), size, case.how["upsampling"], given.device)
    return make(given).cpu().numpy()


def count_wrong(labels: Any, case: Case, name: str) -> tuple[int, int]:
    """(pixels with another label than expected, how many of them may be)."""
    assert labels.shape == case.expected.shape
    # A network's sums are added in another order than PyTorch's: a near tie may turn.
    allowed = int(0.001 * labels.size) if name == "csfcn" else 0
    return int(np.count_nonzero(labels != case.expected)), allowed
