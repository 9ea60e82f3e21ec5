"""The Triton kernels' labels are those of PyTorch in float32 on the CPU: in Triton's interpreter
everywhere, on a GPU where there is one."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from labels_plain import KINDS, RNG, Logits, plain, random, ties
from rtseg.models import FrameToLabels, deploy
from rtseg.models.pipeline import find_last_upsample
from rtseg.models.random_weights import build_untrained
from rtseg.runtime.argmax_torch import bypass_layer, find_head

pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")


@dataclass
class Case:
    """What goes in, how, and the labels that have to come out."""

    given: Logits
    expected: Any
    how: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Logits] = field(default_factory=dict)  # weight and bias


def bilinear(make: Callable[..., Logits], factor: int, aligned: bool, **how: Any) -> Case:
    # Above 128 pixels of height and width together, and with more than three channels, PyTorch
    # takes its kernel for planes.
    given = make((1, 4, 2, 130 // factor + 2))
    size = 2 * factor, (130 // factor + 2) * factor
    if how.get("dtype", "float32") != "float32":
        given = torch.from_numpy(given).to(getattr(torch, how["dtype"])).float().numpy()
    enlarge = "bilinear_aligned" if aligned else "bilinear"
    defaults = {"dtype": "float32", "channels_last": False, "enlarge": enlarge, "size": size}
    return Case(given, plain(given, size, aligned), defaults | how)


def shuffled(classes: int, channels: int, factor: int, bias: bool, **how: Any) -> Case:
    """Whole numbers, so that sums are exact in every order and ties are many."""
    shape = (1, channels, 5, 7)
    given = RNG(1).integers(-2, 3, shape).astype(np.float32)
    weight = RNG(2).integers(-2, 3, (classes * factor**2, channels, 1, 1)).astype(np.float32)
    arrays = {"weight": weight}
    if bias:
        arrays["bias"] = RNG(3).integers(-2, 3, len(weight)).astype(np.float32)
    full = torch.nn.functional.conv2d(*map(torch.from_numpy, (given, *arrays.values())))
    expected = torch.pixel_shuffle(full, factor).argmax(1).numpy()
    defaults = {
        "dtype": "float32", "channels_last": False, "enlarge": "shuffle",
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
        for dtype in ("float16", "bfloat16"):
            for make in (random, ties):
                how = {"dtype": dtype, "channels_last": True}
                found[f"{make.__name__}, {dtype}, {end}"] = bilinear(make, 8, aligned, **how)
    found["shuffled"] = shuffled(5, 24, 4, bias=True)
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


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The labels of all cases, from one process in which Triton interprets."""
    folder = tmp_path_factory.mktemp("interpreted")
    arrays: dict[str, Any] = {}
    for name in NAMES:
        case = case_of(name)
        named = {part: f"{name}.{part}" for part in case.arrays}
        arrays |= {named[part]: array for part, array in case.arrays.items()}
        arrays[name] = case.given
        arrays[f"{name}.how"] = json.dumps(
            {**case.how, "weight": named.get("weight"), "bias": named.get("bias")}
        )
    np.savez(folder / "cases.npz", **arrays)
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, script, folder / "cases.npz", folder / "answers.npz"],
        capture_output=True, text=True, check=False, cwd=ROOT.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answers.npz") as answers:
        return dict(answers)


@pytest.mark.parametrize("name", NAMES)
def test_labels_in_the_interpreter(name: str, interpreted: dict[str, Any]) -> None:
    assert_same(interpreted[name], case_of(name), name)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_labels_on_the_gpu(name: str) -> None:
    from rtseg.runtime.argmax_triton import BilinearLabels, ShuffledLabels

    if not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")
    case = case_of(name)
    dtype, size = getattr(torch, case.how["dtype"]), case.how["size"]
    given = torch.from_numpy(case.given).to("cuda", dtype)
    if case.how["channels_last"]:
        given = given.to(memory_format=torch.channels_last)
    if case.arrays:
        parts = [torch.from_numpy(array).to("cuda", dtype) for array in case.arrays.values()]
        make: Any = ShuffledLabels(*parts, *[None] * (2 - len(parts)), tuple(given.shape), size)
    else:
        make = BilinearLabels(tuple(given.shape), size, case.how["enlarge"], given.device)
    assert_same(make(given).cpu().numpy(), case, name)


def assert_same(labels: Any, case: Case, name: str) -> None:
    assert labels.shape == case.expected.shape
    wrong = np.count_nonzero(labels != case.expected)
    # A network's sums are added in another order than PyTorch's: a near tie may turn.
    allowed = 0.001 * labels.size if name == "csfcn" else 0
    assert wrong <= allowed, f"{wrong} of {labels.size} pixels"
