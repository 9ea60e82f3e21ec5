"""Float graph -> int8 graph: which layers, how exact, and what stays in float."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process

from ..errors import RtsegError
from ..runtime.artifact import Card, Int8Facts
from . import calibrate, sensitivity
from . import parity as proof
from .calibrate import Picked, silent
from .candidates import KINDS, Layer, layers, total_macs
from .expected import Expected

OPTIONS = {
    # What layers read is rounded, not what they give: the sums behind a layer and their ReLU work
    # on its full result, and TensorRT and OpenVINO fuse them with it.
    "OpTypesToExcludeOutputQuantization": list(KINDS),
    "ActivationSymmetric": True,  # TensorRT knows no zero point
    "WeightSymmetric": True,
    "QuantizeBias": False,  # TensorRT reads no int32 biases
    "MatMulConstBOnly": True,
    "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
}
LEAST_SHARE = 0.5  # of the multiply-adds; below, the graph is not int8 but float with int8 in it


class QuantizeError(RtsegError):
    """No int8 graph of this network holds the bar; the message says how far it came."""


@dataclass(frozen=True)
class Quantized:
    """An int8 graph, what its card says of it, and what each layer costs."""

    graph: onnx.ModelProto
    facts: Int8Facts
    costs: tuple[sensitivity.Cost, ...]


def quantize(
    graph: onnx.ModelProto,
    card: Card,
    picked: Picked,
    method: str,
    expected: Expected,
    progress: Callable[[str], None] = lambda step: None,
) -> Quantized:
    """The int8 form of a float32 graph, with as few layers in float as hold the bar of int8.

    picked: frames to calibrate on, of any size; expected: the float32 network's answers on frames
    that are not among them, to judge by.

    Raises QuantizeError if the bar does not hold while layers with half of the multiply-adds are in
    int8.
    """
    plain = prepared(graph)
    found = layers(plain)
    if not found:
        raise QuantizeError(f"{card.model} has no layer that int8 could hold")
    progress(f"calibration ({method}) on {len(picked.used)} frames")
    spans = calibrate.ranges(plain, KINDS, _fitted(picked.used, card.size), method)

    def build(chosen: Iterable[Layer]) -> onnx.ModelProto:
        return _quantized(plain, [layer.node for layer in chosen], spans)

    progress(f"sensitivity of {len(found)} layers")
    costs = sensitivity.measure(plain, build, found, expected, card)
    order = [cost.layer for cost in costs]
    worst_first = sorted(found, key=lambda layer: order.index(layer.name))
    graph, kept = _hold_the_bar(build, worst_first, expected, card, progress)
    facts = Int8Facts(
        method=method,
        frames=len(picked.used),
        held_out=len(expected.reference.frames),
        layers=len(kept),
        excluded=tuple(layer.name for layer in found if layer not in kept),
        share=sum(layer.macs for layer in kept) / max(1, total_macs(plain)),
    )
    pools_in_int8(graph)
    return Quantized(graph, facts, sensitivity.marked(costs, facts.excluded))


def pools_in_int8(graph: onnx.ModelProto) -> None:
    """Let max poolings whose results are only read rounded take the largest of rounded values.

    Rounding keeps the order, so the results are the same, bit for bit. The layer before the pooling
    then writes a byte for each value: at csfcn_tiny's stem that is a quarter of 64 MiB.
    """
    nodes = graph.graph.node
    for pool in [node for node in nodes if node.op_type == "MaxPool"]:
        roundings = _readers(graph, pool.output[0])
        if not roundings or len(pool.output) > 1 or not _one_rounding(roundings):
            continue
        facts = list(roundings[0].input[1:])
        rounded, early = (f"{pool.name}/{step}" for step in ("rounded", "early"))
        for kind, source, result in (
            ("QuantizeLinear", pool.input[0], rounded),
            ("DequantizeLinear", rounded, early),
        ):
            nodes.append(onnx.helper.make_node(kind, [source, *facts], [result], name=result))
        pool.input[0] = early
        for rounding in roundings:
            _skip(graph, rounding, pool.output[0])
    ONNXModel(graph).topological_sort()


def _readers(graph: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if value in node.input]


def _one_rounding(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether all of them round, and alike."""
    alike = {tuple(node.input) for node in nodes}
    return len(alike) == 1 and all(node.op_type == "QuantizeLinear" for node in nodes)


def _skip(graph: onnx.ModelProto, rounding: onnx.NodeProto, value: str) -> None:
    """Take out a rounding with what brings it back, whose readers get `value`."""
    for back in _readers(graph, rounding.output[0]):
        for reader in _readers(graph, back.output[0]):
            reader.input[list(reader.input).index(back.output[0])] = value
        graph.graph.node.remove(back)
    graph.graph.node.remove(rounding)


def prepared(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes that the quantizer asks for, and otherwise unchanged: ONNX Runtime's
    own rewriting would merge the casts that TensorRT needs."""
    with tempfile.TemporaryDirectory() as folder, silent():
        source, target = Path(folder) / "graph.onnx", Path(folder) / "prepared.onnx"
        onnx.save(graph, source)
        quant_pre_process(source, target, skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(target)


def _fitted(
    frames: Sequence[tuple[str, NDArray[np.uint8]]], size: tuple[int, int]
) -> list[NDArray[np.uint8]]:
    """Frames of the artifact's size, brought there as the runtime brings them."""
    height, width = size
    return [
        np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR))
        for _, image in frames
    ]


def _quantized(plain: onnx.ModelProto, nodes: list[str], spans: Any) -> onnx.ModelProto:
    """`plain` with QuantizeLinear and DequantizeLinear around what `nodes` read."""
    if not nodes:
        return plain
    with silent():
        quantizer = quantization.QDQQuantizer(
            copy.deepcopy(plain),
            True,  # a scale for each output channel
            False,  # all 8 bits
            quantization.QuantType.QInt8,
            quantization.QuantType.QInt8,
            spans,
            nodes,
            [],
            list(KINDS),
            dict(OPTIONS),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    model: onnx.ModelProto = quantizer.model.model
    _unround(model, set(nodes))
    return _cleaned(model)


def _unround(model: onnx.ModelProto, rounded: set[str]) -> None:
    """Give layers that stay in float what they read in full: the quantizer rounds a tensor for all
    its readers if one of them is in int8."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in KINDS or node.name in rounded:
            continue
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            node.input[0] = makers[maker.input[0]].input[0]


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.producer_name = "rtseg"
    onnx.checker.check_model(model, full_check=True)
    return model


def _hold_the_bar(
    build: Callable[[Iterable[Layer]], onnx.ModelProto],
    worst_first: list[Layer],
    expected: Expected,
    card: Card,
    progress: Callable[[str], None],
) -> tuple[onnx.ModelProto, list[Layer]]:
    """The graph with the fewest of the worst layers in float that passes; found by doubling their
    number, then halving the gap."""
    tried: dict[int, tuple[onnx.ModelProto, proof.Verdict]] = {}

    def passes(count: int) -> bool:
        if count not in tried:
            progress(f"trial with {count} of {len(worst_first)} layers in float")
            graph = build(worst_first[count:])
            tried[count] = graph, proof.trial(graph, card, expected)
        return tried[count][1].passed

    most = _most_left_out(worst_first)
    low, high = -1, 0
    while not passes(high):
        if high == most:
            raise QuantizeError(_why(tried[high][1], worst_first[:high], len(worst_first)))
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return tried[high][0], worst_first[high:]


def _most_left_out(worst_first: list[Layer]) -> int:
    """How many layers may be in float while those in int8 do LEAST_SHARE of the work."""
    left = sum(layer.macs for layer in worst_first)
    least = LEAST_SHARE * left
    for count, layer in enumerate(worst_first):
        left -= layer.macs
        if left < least:
            return count
    return len(worst_first)


def _why(verdict: proof.Verdict, left_out: list[Layer], count: int) -> str:
    names = ", ".join(layer.name for layer in left_out[:5]) + ("..." if len(left_out) > 5 else "")
    return (
        f"int8 does not hold its bar even with the {len(left_out)} costliest of {count} layers in "
        f"float ({names}): {'; '.join(verdict.faults)}. Use fp16, calibrate on more frames of more "
        "places, try another --calibration, or fine-tune first: rtseg train RECIPE weights=FILE "
        "quantize=int8"
    )
