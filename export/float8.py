"""FP8: the rounding of an int8 graph, done by eight-bit floats (E4M3FN) from the same ranges."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..models.onnx_graph import attributes

LARGEST = 448.0  # of E4M3FN
STEPS = 127.0  # of int8, to each side
OPSET, IR = 19, 9  # the first that have it; opset 20 would change GridSample
ROUNDED, ZERO = "_quantized", "/fp8_zero"  # how the quantizer names weights; a name of ours


def to_float8(rounded: onnx.ModelProto, plain: onnx.ModelProto) -> onnx.ModelProto:
    """An int8 graph with each QuantizeLinear and DequantizeLinear in float8 instead.

    Activations keep their range, which is 448 steps of the scale to each side in place of 127.
    Weights are rounded anew from their float values, with a scale for each output channel.

    Args:
        rounded: the int8 graph, without zero points.
        plain: the float graph that it was made of.
    """
    made = onnx.ModelProto()
    made.CopyFrom(rounded)
    graph = made.graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    floats = {tensor.name: tensor for tensor in plain.graph.initializer}
    scales: dict[str, NDArray[np.float32]] = {}
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        source, scale = node.input[:2]
        if source in held:
            weights = numpy_helper.to_array(floats[source.removesuffix(ROUNDED)])
            scales[scale] = _scales_of(weights, attributes(node).get("axis", 0))
            held[source].CopyFrom(_round(weights, scales[scale], node, source))
        else:
            known = numpy_helper.to_array(held[scale])
            scales[scale] = np.asarray(known * STEPS / LARGEST, np.float32)
        zeros = f"{scale}{ZERO}"
        held[zeros] = helper.make_tensor(
            zeros,
            TensorProto.FLOAT8E4M3FN,
            scales[scale].shape,
            bytes(scales[scale].size),
            raw=True,
        )
        node.input[:] = [source, scale, zeros]
    for name, values in scales.items():
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    _keep(graph, held)
    for entry in made.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = max(entry.version, OPSET)
    made.ir_version = max(made.ir_version, IR)
    onnx.checker.check_model(made, full_check=True)
    return made


def _scales_of(weights: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """(channels,): the largest magnitude of each becomes LARGEST."""
    others = tuple(place for place in range(weights.ndim) if place != axis)
    most = np.abs(weights).max(axis=others)
    return np.asarray(np.where(most > 0, most, 1) / LARGEST, np.float32)


def _round(
    weights: NDArray[np.float32], scales: NDArray[np.float32], node: onnx.NodeProto, name: str
) -> TensorProto:
    sides = [1] * weights.ndim
    sides[attributes(node).get("axis", 0)] = -1
    # Within its range by the scale; the quotient itself may be a hair above.
    shares = np.clip(weights / scales.reshape(sides), -LARGEST, LARGEST)
    values = shares.astype(ml_dtypes.float8_e4m3fn)
    return helper.make_tensor(
        name, TensorProto.FLOAT8E4M3FN, weights.shape, values.tobytes(), raw=True
    )


def _keep(graph: onnx.GraphProto, held: Mapping[str, TensorProto]) -> None:
    """The initializers that nodes read."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for name, tensor in held.items() if name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
