"""Rounding noise that int8 is expected to add to each layer, from the ranges of what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..models.onnx_graph import attributes
from ..runtime.batches import stack_batches
from .graph import Layer, find_batch
from .parity import open_session

PARTS = 4  # of a `LayerSignal`
LEVELS = 127  # of int8, symmetric, on each side of zero


@dataclass(frozen=True)
class LayerSignal:
    """What a layer reads, by channel over all frames: mean of the squares, share of values that are
    not zero, and largest magnitude; result: mean of the squares of what it gives."""

    power: NDArray[np.float32]
    active: NDArray[np.float32]
    peak: NDArray[np.float32]
    result: float


def measure_signals(
    graph: onnx.ModelProto, layers: Sequence[Layer], frames: Sequence[NDArray[np.uint8]]
) -> dict[str, LayerSignal]:
    """What each layer reads and gives, by its node, in one run a frame of the float32 graph.

    Args:
        graph: input "frame", with the shapes of its tensors.
        layers: of it.
        frames: (H, W, 3) uint8 BGR of the graph's size.
    """
    session = open_session(_with_signals(graph, layers))
    runs = [
        session.run(None, {"frame": images}) for images in stack_batches(frames, find_batch(graph))
    ]
    found = {}
    for place, layer in enumerate(layers):
        powers, shares, peaks, results = zip(
            *(values[PARTS * place : PARTS * (place + 1)] for values in runs), strict=True
        )
        found[layer.node] = LayerSignal(
            np.mean(powers, axis=0), np.mean(shares, axis=0), np.max(peaks, axis=0),
            float(np.mean(results)),
        )  # fmt: skip
    return found


def _with_signals(graph: onnx.ModelProto, layers: Sequence[Layer]) -> onnx.ModelProto:
    """The graph with the PARTS of a `LayerSignal` of every layer as its outputs. The graph reduces,
    since all tensors at once may be gigabytes."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    made = model.graph
    ranks = {each.name: len(each.type.tensor_type.shape.dim) for each in made.value_info}
    nodes = {node.name: node for node in graph.graph.node}
    del made.output[:]
    for layer in layers:
        node = nodes[layer.node]
        name, given = node.input[0], node.output[0]
        # Channels of images are axis 1; of rows of vectors, as products take them, the last.
        channel = 1 if node.op_type == "Conv" else ranks[name] - 1
        rest = [axis for axis in range(ranks[name]) if axis != channel]
        axes = f"{layer.node}/risk_axes"
        made.initializer.append(numpy_helper.from_array(np.array(rest, np.int64), axes))
        square, power, size, sign, share, peak, squared, result = (
            f"{layer.node}/risk_{part}" for part in range(8)
        )
        made.node.extend([
            helper.make_node("Mul", [name, name], [square]),
            helper.make_node("ReduceMean", [square, axes], [power], keepdims=0),
            helper.make_node("Abs", [name], [size]),
            helper.make_node("Sign", [size], [sign]),
            helper.make_node("ReduceMean", [sign, axes], [share], keepdims=0),
            helper.make_node("ReduceMax", [size, axes], [peak], keepdims=0),
            helper.make_node("Mul", [given, given], [squared]),
            helper.make_node("ReduceMean", [squared], [result], keepdims=0),
        ])  # fmt: skip
        for part in (power, share, peak, result):
            made.output.append(helper.make_tensor_value_info(part, TensorProto.FLOAT, None))
    return model


def spread_of(channels: NDArray[np.float32]) -> float | None:
    """The widest channel's magnitude over the median's; None where that is 0."""
    middle = float(np.median(channels))
    return float(channels.max()) / middle if middle else None


def weights_of(graph: onnx.ModelProto, layer: Layer) -> NDArray[np.float32]:
    """A layer's weights, (channels that it gives, channels that each is made of, their kernel)."""
    node = next(each for each in graph.graph.node if each.name == layer.node)
    held = next(each for each in graph.graph.initializer if each.name == node.input[1])
    weight: NDArray[np.float32] = numpy_helper.to_array(held)
    if node.op_type == "MatMul" or (
        node.op_type == "Gemm" and not attributes(node).get("transB", 0)
    ):
        weight = weight.T
    return weight.reshape(*weight.shape[:2], -1)


def expect_sqnr(
    graph: onnx.ModelProto,
    layers: Sequence[Layer],
    ranges: Mapping[str, float],
    signals: Mapping[str, LayerSignal],
) -> dict[str, float]:
    """Expected power of each layer's result over that of its rounding noise, in dB, by its node.

    Rounding adds noise of a twelfth of a step squared to every value that is not 0, each for
    itself. Weights have a scale an output channel, inputs one.

    Args:
        graph: float32.
        layers: of it.
        ranges: largest magnitude by tensor, as calibrated; those that it lacks have their peak.
        signals: of the layers, by node.
    """
    nodes = {node.name: node for node in graph.graph.node}
    found = {}
    for layer in layers:
        name = nodes[layer.node].input[0]
        given, weight = signals[layer.node], weights_of(graph, layer).astype(np.float64)
        step = (ranges.get(name) or float(given.peak.max())) / LEVELS
        steps = np.abs(weight).max((1, 2)) / LEVELS
        # By group of a convolution: (groups, results, read, kernel).
        results = len(weight) * weight.shape[1] // len(given.power)
        weight = weight.reshape(-1, results, *weight.shape[1:])
        groups, _, read, kernel = weight.shape
        power, active = given.power.reshape(groups, read), given.active.reshape(groups, read)
        gain = np.square(weight).sum((1, 3))
        rounded = np.square(steps).reshape(groups, results).sum(1, keepdims=True) * kernel
        noise = (active * gain).sum() * step**2 + (power * rounded).sum()
        signal = max(given.result * len(steps), 1e-30)  # of all channels, as the noise
        found[layer.node] = float(-10 * np.log10(max(noise / 12 / signal, 1e-30)))
    return found
