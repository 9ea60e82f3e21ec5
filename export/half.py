"""Float16: a float32 graph converted, except operations whose values float16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
# Powers and exponentials pass float16's end, and positions need more than its 11 bits.
ISLANDS = (
    "CumSum", "Exp", "GridSample", "LogSoftmax", "Pow", "Range", "ReduceL2", "ReduceSumSquare",
    "Softmax", "TopK",
)  # fmt: skip
# What follows one stays in float32 with it: the mean of squares, less, under a root.
FOLLOWERS = ("Add", "Log", "Reciprocal", "ReduceMean", "ReduceSum", "Sqrt")
# Inputs that are float32 whatever the others are.
FIXED = {("Resize", 1), ("Resize", 2)}
SMALLEST, LARGEST = 6.2e-5, 65504.0  # of float16's numbers with all their bits


def to_half(model: onnx.ModelProto, islands: set[str]) -> onnx.ModelProto:
    """The same graph with weights and activations in float16.

    Args:
        model: in float32, checked; left as it is.
        islands: names of nodes that stay in float32, beside those that ISLANDS names.

    Raises:
        ExportError: the graph has branches or loops, whose types are not followed.
    """
    for node in model.graph.node:
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(
                f"the graph has a branch or loop ({node.op_type}, {node.name}), and is sound in "
                "fp32 only: export the file for one size, which decides its branches"
            )
    return _Halving(onnx.shape_inference.infer_shapes(model), islands).run()


class _Halving:
    """A graph on its way to float16: `half` are the tensors that are there."""

    def __init__(self, model: onnx.ModelProto, islands: set[str]):
        self.model, self.islands = model, islands
        graph = model.graph
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {
            value.name: value.type.tensor_type.elem_type
            for value in (*graph.value_info, *graph.input, *graph.output)
        } | {name: tensor.data_type for name, tensor in self.constants.items()}
        self.half: set[str] = set()
        self.wide: set[str] = set()  # results of islands
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[str, str] = {}  # a tensor in the other type, by its own name

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in graph.node:
            self._convert(node)
        used = {name for node in self.nodes for name in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
            graph.initializer.remove(tensor)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        for output in graph.output:
            if output.name in self.half:
                output.type.tensor_type.elem_type = HALF
        return self.model

    def _convert(self, node: onnx.NodeProto) -> None:
        wide = self._is_island(node)
        if node.op_type != "Cast":  # it reads any type
            for place, name in enumerate(node.input):
                float_only = wide or (node.op_type, place) in FIXED
                node.input[place] = self._give(name, FLOAT if float_only else HALF)
        outputs = {name for name in node.output if self.types.get(name) == FLOAT}
        if wide:
            self.wide |= outputs
        else:
            self.half |= outputs
            for attribute in node.attribute:
                if attribute.name == "to" and attribute.i == FLOAT:
                    attribute.i = HALF
                elif attribute.HasField("t") and attribute.t.data_type == FLOAT:
                    attribute.t.CopyFrom(_halved(attribute.t))
        self.nodes.append(node)

    def _is_island(self, node: onnx.NodeProto) -> bool:
        if node.op_type in ISLANDS or node.name in self.islands:
            return True
        if node.op_type in FOLLOWERS and node.input[0] in self.wide:
            return True
        return any(self._is_beyond(name) for name in node.input if name in self.constants)

    def _is_beyond(self, name: str) -> bool:
        """Whether a number of the graph, such as 1e-12, has no place in float16."""
        tensor = self.constants[name]
        if tensor.data_type != FLOAT or len(tensor.dims) > 1 or 0 in tensor.dims:
            return False
        sizes = np.abs(numpy_helper.to_array(tensor)).ravel()
        if sizes.size != 1 or not np.isfinite(sizes[0]) or sizes[0] == 0:
            return False
        return not SMALLEST <= sizes[0] <= LARGEST

    def _give(self, name: str, wanted: int) -> str:
        """The tensor in the type that is wanted; of one that is no float, itself."""
        if self.types.get(name) != FLOAT or (name in self.half) == (wanted == HALF):
            return name
        if name not in self.made:
            other = self.made[name] = f"{name}/{'half' if wanted == HALF else 'float'}"
            if name in self.constants:
                tensor = _halved(self.constants[name])
                tensor.name = other
                self.model.graph.initializer.append(tensor)
            else:
                self.nodes.append(helper.make_node("Cast", [name], [other], other, to=wanted))
        return self.made[name]


def _halved(tensor: TensorProto) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    finite = np.where(np.isfinite(values), values.clip(-LARGEST, LARGEST), values)
    return numpy_helper.from_array(finite.astype(np.float16), tensor.name)


def find_position_makers(graph: onnx.GraphProto, carriers: tuple[str, ...]) -> set[str]:
    """Names of the nodes from the layers on that give the positions which GridSample reads at."""
    makers = {output: node for node in graph.node for output in node.output}
    found: set[str] = set()

    def walk(name: str) -> Iterator[str]:
        node = makers.get(name)
        if node is not None and node.name not in found and node.op_type in carriers:
            found.add(node.name)
            yield from node.input

    todo = [node.input[1] for node in graph.node if node.op_type == "GridSample"]
    while todo:
        todo.extend(walk(todo.pop()))
    return found
