"""The int8 graph for OpenVINO: rounded as TensorRT's, but finer where its kernels can.

What is never negative is in bytes without a sign, which hold a range in twice as many steps; the
largest value seen then fits, and none is cut. The layers that read the frame stay in float: around
its mean a frame takes nine bits, and rounding it to eight costs more than all layers behind it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from ..models.onnx_graph import KINDS
from ..runtime.artifact import Int8Facts
from .calibrate import as_spans
from .graph import count_macs, find_layers
from .integer_form import is_never_negative
from .quantize import (
    LEAST_SHARE,
    describe_layers,
    infer_shapes,
    insert_rounding,
    move_rounding_before_pools,
)


def to_unsigned_form(
    graph: onnx.ModelProto, facts: Int8Facts, ranges: Mapping[str, float]
) -> tuple[onnx.ModelProto, Int8Facts]:
    """A float32 graph in int8 as OpenVINO takes it, and what its card says then.

    Args:
        graph: in float32.
        facts: of the graph in int8.
        ranges: largest magnitude by tensor.
    """
    plain = infer_shapes(graph)
    found = find_layers(plain)
    kept = [layer for layer in found if layer.name not in facts.excluded]
    first = find_frame_readers(plain)
    behind = [layer for layer in kept if layer.node not in first]
    if sum(layer.macs for layer in behind) >= LEAST_SHARE * count_macs(plain):
        kept = behind
    made = insert_rounding(plain, [layer.node for layer in kept], as_spans(ranges))
    makers = {name: node for node in plain.graph.node for name in node.output}
    held = {each.name: each for each in made.graph.initializer}
    rounded = {n.input[0]: n.input[1:] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    for name, (scale, zero) in rounded.items():
        if is_never_negative(name, makers):
            step = numpy_helper.to_array(held[scale]) * np.float32(127 / 255)
            for each, value in ((scale, step), (zero, np.uint8(0))):
                held[each].CopyFrom(numpy_helper.from_array(np.asarray(value), each))
    move_rounding_before_pools(made)
    onnx.checker.check_model(made, full_check=True)
    described = describe_layers(plain, found, kept)
    return made, facts.model_copy(update=dict(described))


def find_frame_readers(graph: onnx.ModelProto) -> set[str]:
    """Names of the layers that read the frame, or what no layer made of it."""
    reached = {each.name for each in graph.graph.input}
    readers = set()
    for node in graph.graph.node:  # in topological order
        if not reached.isdisjoint(node.input):
            if node.op_type in KINDS:
                readers.add(node.name)
            else:
                reached.update(node.output)
    return readers
