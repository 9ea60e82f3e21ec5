"""`rtseg.labels` against exact rationals, and against PyTorch in float64."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import rtseg.labels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rtseg import UsageError, exact_labels

Logits = NDArray[Any]
KINDS = ("int8", "uint8", "int16", "uint16", "float16", "float32")


@pytest.fixture(params=["numba", "numpy"], autouse=True, scope="module")
def way(request: pytest.FixtureRequest) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rtseg.labels, "_compiled_available", lambda: request.param == "numba")
        yield


def read_axis(coarse: int, fine: int, aligned: bool) -> list[list[tuple[int, Fraction]]]:
    """For each output position, the input positions and their weights, by the formulas of PyTorch's
    documentation."""
    found = []
    for place in range(fine):
        if aligned:
            source = Fraction(place * (coarse - 1), fine - 1) if fine > 1 else Fraction(0)
        else:
            half = Fraction(1, 2)
            source = max(Fraction(0), (place + half) * Fraction(coarse, fine) - half)
        low = min(int(source), coarse - 1)
        far = source - low
        found.append([(low, 1 - far), (min(low + 1, coarse - 1), far)])
    return found


def exactly(
    logits: Logits, size: tuple[int, int], aligned: bool, scales: list[float], zeros: list[int]
) -> NDArray[np.uint8]:
    """Labels (H, W) of logits (K, h, w): dequantized, enlarged and compared in rationals."""
    rows, columns = (read_axis(a, b, aligned) for a, b in zip(logits.shape[1:], size, strict=True))
    real = [
        [[(Fraction(x) - zero) * Fraction(scale) for x in line] for line in plane.tolist()]
        for plane, scale, zero in zip(logits, scales, zeros, strict=True)
    ]
    labels = np.empty(size, np.uint8)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            values = [sum(p * v * plane[i][j] for i, p in row for j, v in column) for plane in real]
            labels[y, x] = values.index(max(values))
    return labels


@st.composite
def cases(draw: Any) -> tuple[Logits, tuple[int, int], bool]:
    """Logits (K, h, w) of few and of many distinct values, and any size."""
    kind = np.dtype(draw(st.sampled_from(KINDS)))
    shape = tuple(draw(st.integers(1, most)) for most in (4, 4, 4))
    size = tuple(side * draw(st.integers(1, 5)) + draw(st.integers(0, 2)) for side in shape[1:])
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if kind.kind == "f":
        # float32 of 8 bits, whose sums are exact in float64; float16 of all magnitudes.
        whole = random.integers(-128, 128, shape)
        power = random.integers(-10, 5, shape) if draw(st.booleans()) else 0
        logits = np.ldexp(whole.astype(np.float64), power).astype(kind)
    else:
        span = np.iinfo(kind)
        low = draw(st.sampled_from([span.min, span.max - 2]))
        logits = random.integers(low, span.max, shape, kind, endpoint=True)
    return logits, size, draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(cases())
def test_labels_are_those_of_exact_rationals(case: Any) -> None:
    logits, size, aligned = case
    classes = len(logits)
    expected = exactly(logits, size, aligned, [1.0] * classes, [0] * classes)
    assert (exact_labels(logits, size, align_corners=aligned) == expected).all()
    last = np.ascontiguousarray(logits.transpose(1, 2, 0))
    assert (exact_labels(last, size, layout="NHWC", align_corners=aligned) == expected).all()


@settings(max_examples=60, deadline=None)
@given(
    cases().filter(lambda case: case[0].dtype in (np.int8, np.uint8)),
    st.lists(st.integers(1, 4095), min_size=4, max_size=4),
    st.lists(st.integers(-3, 3), min_size=4, max_size=4),
    st.lists(st.integers(-128, 255), min_size=4, max_size=4),
)
def test_a_scale_and_a_zero_point_for_each_class(
    case: Any, whole: list[int], powers: list[int], zeros: list[int]
) -> None:
    logits, size, aligned = case
    classes = len(logits)
    scales = [float(np.ldexp(a, b - 12)) for a, b in zip(whole, powers, strict=True)][:classes]
    found = exact_labels(
        logits, size, scale=scales, zero_point=zeros[:classes], align_corners=aligned
    )
    assert (found == exactly(logits, size, aligned, scales, zeros[:classes])).all()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_pytorchs_in_float64(kind: str, aligned: bool) -> None:
    """Where that is exact: factors that are powers of two; with corners aligned, sides of one more
    than a power of two."""
    random = np.random.default_rng(1)
    coarse, size = ((9, 17), (65, 129)) if aligned else ((9, 16), (72, 128))
    for values in (2, 30, 250):
        logits = random.integers(0, values, (2, 11, *coarse)).astype(kind)
        if kind == "float32":  # many bits: nothing is exact, and nothing ties
            logits += random.standard_normal(logits.shape, np.float32)
        real = (torch.from_numpy(logits.astype(np.float64)) - 7) * float(np.float32(0.0371))
        full = torch.nn.functional.interpolate(real, size, mode="bilinear", align_corners=aligned)
        found = exact_labels(
            logits, size, align_corners=aligned, **({} if kind[0] == "f" else {"zero_point": 7})
        )
        assert (found == full.argmax(1).numpy()).all()


def test_views_batches_and_room_for_labels() -> None:
    logits = np.random.default_rng(2).integers(-9, 9, (3, 5, 6, 8), np.int8)
    expected = np.stack([exact_labels(frame, 4) for frame in logits])
    assert expected.shape == (3, 24, 32)
    assert (exact_labels(logits, (24, 32)) == expected).all()
    assert (exact_labels(np.repeat(logits, 2, 3)[..., ::2], 4) == expected).all()
    room = np.full_like(expected, 255)
    assert exact_labels(logits, 4, out=room) is room
    assert (room == expected).all()
    assert (exact_labels(logits[1], 4, out=room[0]) == room[1]).all()


def test_what_does_not_fit() -> None:
    logits = np.zeros((3, 4, 4), np.int8)
    for message, arguments, named in (
        ("not int32: convert", (logits.astype(np.int32), 4), {}),
        ('"NCHW" or "NHWC"', (logits, 4), {"layout": "CHW"}),
        (r"not of shape \(4, 4\)", (logits[0], 4), {}),
        ("smaller than logits", (logits, (3, 8)), {}),
        ("256 classes are more than 255; is the layout", (np.zeros((256, 2, 2), np.int8), 2), {}),
        ("2 scales for 3 classes", (logits, 4), {"scale": [1, 2]}),
        ("above 0", (logits, 4), {"scale": [1, 2, -1]}),
        ("above 0", (logits, 4), {"scale": np.nan}),
        ("too far apart", (logits, 4), {"scale": [1, 2**-60, 3]}),
        ("whole numbers", (logits, 4), {"zero_point": 0.5}),
        ("no zero point", (logits.astype(np.float32), 4), {"zero_point": 3}),
        ("not finite", (np.full((3, 4, 4), np.nan, np.float32), 4), {}),
        ("labels are uint8", (logits, 4), {"out": np.zeros((16, 16), np.int8)}),
    ):
        with pytest.raises(UsageError, match=message):
            exact_labels(*arguments, **named)


def test_importing_and_labeling_loads_numpy_alone() -> None:
    code = (
        "import sys, numpy, rtseg.labels; rtseg.labels._compiled_available = lambda: False;"
        "rtseg.labels.exact_labels(numpy.zeros((2, 3, 3), 'int8'), 8);"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & set(sys.argv[1:])))"
    )
    heavy = ["torch", "onnx", "onnxruntime", "cv2", "pydantic", "numba", "openvino", "typer"]
    done = subprocess.run(
        [sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
