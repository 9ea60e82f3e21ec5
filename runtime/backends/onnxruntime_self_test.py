"""Does the installed ONNX Runtime compute convolutions right on this processor?

Version 1.27.0 was silently wrong on Arm processors with SME where the padding of the two axes
differs (k2-fsa/sherpa-onnx #3850). So one small convolution for each way of padding is run before
the first session of a process: in float32, and in integers as int8 files have it. The graph is
written by hand, so that a vehicle needs no ONNX package.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...errors import ArtifactError
from ..onnx_metadata import GRAPH, OUTPUT, encode_varint, field

Array = NDArray[Any]
PADS = ((0, 1, 0, 1), (1, 0, 1, 0), (0, 1, 2, 0), (1, 1, 1, 1))  # top, left, bottom, right
CHANNELS, FILTERS, SIDES = 8, 16, (9, 13)
TOLERANCE = 1e-4  # of values around 1; a wrong border is off by 0.1 and more
FLOAT, UINT8, INT8, INT32 = 1, 2, 3, 6  # types of onnx.proto
# Products of uint8 by uint8 in place of uint8 by int8, whose sums overflow in 16 bits where an x86
# processor has no VNNI; with it, that costs most of what int8 gains.
WIDEN = "session.x64quantprecision"
NUMPY = {np.dtype(np.float32): FLOAT, np.dtype(np.uint8): UINT8, np.dtype(np.int8): INT8,
         np.dtype(np.int32): INT32}  # fmt: skip


@cache
def self_test() -> bool:
    """Once a process: whether sessions need WIDEN here.

    Raises:
        ArtifactError: this ONNX Runtime gives wrong values here, with it too.
    """
    wrong: list[str] = []
    for widen in (False, True):
        errors = measure(widen).items()
        wrong = [f"{name} by {error:.2g}" for name, error in errors if error > TOLERANCE]
        if not wrong:
            return widen
    raise ArtifactError(
        f"ONNX Runtime {onnxruntime.__version__} is wrong on this {platform.machine()} "
        f"({', '.join(wrong)}): install another version of it, or use OpenVINO"
    )


def measure(widen: bool) -> dict[str, float]:
    """Largest error by type and padding, with WIDEN or without."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1, CHANNELS, *SIDES), np.uint8)
    weight = random.integers(-127, 128, (FILTERS, CHANNELS, 3, 3), np.int8)
    scale = np.float32(1 / 255 / 127)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors and worse
    options.intra_op_num_threads = 1
    options.add_session_config_entry(WIDEN, str(int(widen)))
    found = {}
    for pads in PADS:
        exact = convolve(image, weight, pads)
        expected = exact * float(scale)
        # Rounded to its own range, half a step is what integers are off by.
        step = np.float32(np.abs(expected).max() / 127)
        for name, model, given, allowed in (
            ("float32", in_float(weight * scale, pads), image.astype(np.float32), 0.0),
            ("int8", in_integers(weight, scale, step, pads), image, 0.501 * float(step)),
        ):
            session = onnxruntime.InferenceSession(
                model, options, providers=["CPUExecutionProvider"]
            )
            (answer,) = session.run(None, {"x": given})
            real = (answer.astype(np.float64) - 128) * step if name == "int8" else answer
            error = float(np.abs(real - expected).max()) - allowed
            found[f"{name} with padding {','.join(map(str, pads))}"] = max(0.0, error)
    return found


def convolve(image: Array, weight: Array, pads: tuple[int, ...]) -> NDArray[np.int64]:
    """(1, C, h, w) and (F, C, 3, 3) of integers -> (1, F, h', w'), exactly."""
    top, left, bottom, right = pads
    padded = np.pad(image.astype(np.int64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    found: NDArray[np.int64] = np.einsum("nchwij,fcij->nfhw", windows, weight.astype(np.int64))
    return found


def in_float(weight: Array, pads: tuple[int, ...]) -> bytes:
    """The float32 convolution as an ONNX model."""
    node = encode_node("Conv", ["x", "w"], ["y"], pads)
    return encode_model([node], {"w": weight}, (FLOAT, FLOAT))


def in_integers(weight: Array, scale: np.float32, step: np.float32, pads: tuple[int, ...]) -> bytes:
    """uint8 by int8, a scale for each filter, to uint8 with zero point 128."""
    tensors = {
        "sx": np.float32(1), "zx": np.uint8(0), "w": weight,
        "sw": np.full(FILTERS, scale), "zw": np.zeros(FILTERS, np.int8),
        "sy": step, "zy": np.uint8(128), "b": np.zeros(FILTERS, np.int32),
    }  # fmt: skip
    node = encode_node("QLinearConv", ["x", *tensors], ["y"], pads)
    return encode_model([node], tensors, (UINT8, UINT8))


def encode_node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], pads: tuple[int, ...]
) -> bytes:
    """A node whose one attribute is its padding."""
    ints = b"".join(number(8, each) for each in pads)
    attribute = field(1, b"pads") + ints + number(20, 7)
    names = [field(1, name.encode()) for name in inputs]
    names += [field(2, name.encode()) for name in outputs]
    return b"".join(names) + field(4, kind.encode()) + field(5, attribute)


def encode_model(nodes: Sequence[bytes], tensors: dict[str, Any], types: tuple[int, int]) -> bytes:
    """A model of one input x and one output y, whose ranks alone are given."""
    graph = b"".join(field(1, node) for node in nodes) + field(2, b"test")
    for name, values in tensors.items():
        array = np.asarray(values)
        dims = b"".join(number(1, side) for side in array.shape)
        graph += field(
            5,
            dims + number(2, NUMPY[array.dtype]) + field(8, name.encode())
            + field(9, array.tobytes()),
        )  # fmt: skip
    shape = field(1, number(1, 1)) + field(1, b"") * 3
    for place, value, kind in ((11, b"x", types[0]), (OUTPUT, b"y", types[1])):
        graph += field(
            place, field(1, value) + field(2, field(1, number(1, kind) + field(2, shape)))
        )
    return number(1, 8) + field(8, number(2, 13)) + field(GRAPH, graph)


def number(place: int, value: int) -> bytes:
    """A protobuf field that holds a whole number."""
    return encode_varint(place << 3) + encode_varint(value)
