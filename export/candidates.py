"""Which layers of a graph may be int8, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx

KINDS = ("Conv", "Gemm", "MatMul")
# What may stand between a layer and the positions that GridSample reads at.
CARRIERS = (
    "Add", "Cast", "Clip", "Concat", "Div", "Max", "Min", "Mul", "Reshape", "Resize", "Slice",
    "Split", "Sub", "Tanh", "Transpose", "Unsqueeze", "Squeeze",
)  # fmt: skip
TABLE = "lifted_tensor"  # how the exporter names constants that are no weights, such as poolings


@dataclass(frozen=True)
class Layer:
    """A node with weights that can be int8. `node`: its name in the graph, `name`: of its weights
    in the network, `macs`: multiply-adds of a frame."""

    node: str
    name: str
    macs: int


def layers(graph: onnx.ModelProto) -> list[Layer]:
    """The layers that may become int8, in the graph's order.

    Tables are none, nor are layers that give the positions of a GridSample.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    kept = positions(graph)
    found: list[Layer] = []
    for node, macs in _costs(graph):
        weight = node.input[1]
        if node.name in kept or weight not in weights or TABLE in weight:
            continue
        name = _readable(weight, node.name)
        if any(layer.name == name for layer in found):  # weights that several layers share
            name = f"{name} ({node.name})"
        found.append(Layer(node.name, name, macs))
    return found


def total_macs(graph: onnx.ModelProto) -> int:
    return sum(macs for _, macs in _costs(graph))


def _costs(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, int]]:
    """(node, multiply-adds) of every node of KINDS."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    for value in (*graph.graph.value_info, *graph.graph.output, *graph.graph.input):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    costs = []
    for node in graph.graph.node:
        if node.op_type not in KINDS:
            continue
        ours, weight = shapes.get(node.output[0], ()), shapes.get(node.input[1], ())
        inner = (
            math.prod(weight[1:]) if node.op_type == "Conv" else (shapes[node.input[0]] or (1,))[-1]
        )
        costs.append((node, math.prod(ours) * inner))
    return costs


def _readable(weight: str, node: str) -> str:
    """`network.backbone.stem.0.conv.weight` -> `backbone.stem.0.conv`."""
    name = weight.removeprefix("network.").removesuffix(".weight")
    return name if name != weight else f"{node} ({weight})"


def positions(graph: onnx.ModelProto) -> set[str]:
    """Names of the nodes whose results are positions that a GridSample reads at."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    found: set[str] = set()
    todo = [n.input[1] for n in graph.graph.node if n.op_type == "GridSample"]
    while todo:
        node = makers.get(todo.pop())
        if node is None or node.name in found:
            continue
        if node.op_type in KINDS:
            found.add(node.name)
        elif node.op_type in CARRIERS:
            todo.extend(node.input)
    return found
