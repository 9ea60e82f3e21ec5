"""Several sizes in one graph: the graphs of each size, laid over each other.

The exporter writes the same nodes at every size, and what depends on the size (targets of resizes
and reshapes, borders, sampling grids, pooling matrices) as constants. So one graph with open height
and width is made of them: nodes and weights once, and in place of each constant that differs a
table of its values, out of which the frame's own size picks. Nothing is computed from the size
that was a constant before, and every network whose graphs have the same nodes can have it, whatever
its constants are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..errors import ExportError
from ..models.onnx_graph import attributes
from .conditions import text_of

Size = tuple[int, int]  # (height, width) in pixels
Array = NDArray[np.generic]
STEP = 1 << 14  # above any side: height * STEP + width tells sizes apart
PICK = "sizes"  # names of what picks begin with it


def merge_sizes(graphs: Sequence[onnx.ModelProto], sizes: Sequence[Size]) -> onnx.ModelProto:
    """One graph that takes a frame of any of `sizes`, and gives what that size's own graph does.

    Args:
        graphs: of one network, as `to_onnx` gives them, one a size.
        sizes: (height, width) of each, no two alike.

    Raises:
        ExportError: the graphs have other nodes at one size than at another.
    """
    # Ascending, so that a frame's place is the number of sizes that are not beyond it.
    order = sorted(range(len(sizes)), key=lambda place: sizes[place])
    return _Merger([graphs[place] for place in order], [sizes[place] for place in order]).run()


class _Merger:
    """Graphs on their way into one: the first one's nodes, names and equal constants stay."""

    def __init__(self, graphs: Sequence[onnx.ModelProto], sizes: Sequence[Size]):
        self.sizes = sizes
        self.graphs = [graph.graph for graph in graphs]
        self.model = onnx.ModelProto()
        self.model.CopyFrom(graphs[0])
        self.held = [{t.name: t for t in graph.initializer} for graph in self.graphs]
        # A tensor of each graph -> its name in the first.
        self.names: list[dict[str, str]] = [{"frame": "frame", "": ""} for _ in graphs]
        self.made: dict[tuple[str, ...], str] = {}  # constants of all graphs -> the one for them
        self.nodes: list[onnx.NodeProto] = []
        self.tables: list[TensorProto] = []

    def run(self) -> onnx.ModelProto:
        if len({len(graph.node) for graph in self.graphs}) > 1:
            counts = ", ".join(
                f"{len(graph.node)} at {text_of(size)}"
                for graph, size in zip(self.graphs, self.sizes, strict=True)
            )
            raise self._refusal(f"it has other nodes at each: {counts}")
        merged = [self._merge(nodes) for nodes in zip(*(g.node for g in self.graphs), strict=True)]
        graph = self.model.graph
        used = {name for node in (*merged, *self.nodes) for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend([*(self._picking_nodes() if self.made_any else []), *self.nodes, *merged])
        graph.initializer.extend([*kept, *self.tables])
        self._open_sides()
        onnx.checker.check_model(self.model, full_check=True)
        return self.model

    @property
    def made_any(self) -> bool:
        return bool(self.nodes)

    def _merge(self, nodes: Sequence[onnx.NodeProto]) -> onnx.NodeProto:
        first = nodes[0]
        for node, size in zip(nodes[1:], self.sizes[1:], strict=True):
            alike = node.op_type == first.op_type and len(node.input) == len(first.input)
            if not alike or len(node.output) != len(first.output):
                raise self._refusal(f"{node.op_type} ({node.name}) is at {text_of(size)} only")
        made = onnx.NodeProto()
        made.CopyFrom(first)
        if first.op_type == "Constant":
            raise self._refusal(f"{first.name} is a constant that no table holds")
        for node, size in zip(nodes[1:], self.sizes[1:], strict=True):
            if attributes(node) != attributes(first):
                raise self._refusal(
                    f"{node.op_type} ({node.name}) has other attributes at {text_of(size)}"
                )
        for place in range(len(first.input)):
            made.input[place] = self._merge_input([node.input[place] for node in nodes], first)
        for place, name in enumerate(first.output):
            for node, known in zip(nodes, self.names, strict=True):
                known[node.output[place]] = name
        return made

    def _merge_input(self, given: Sequence[str], reader: onnx.NodeProto) -> str:
        constants = [held.get(name) for held, name in zip(self.held, given, strict=True)]
        if all(tensor is None for tensor in constants):
            names = {known.get(name) for known, name in zip(self.names, given, strict=True)}
            if len(names) > 1 or None in names:
                raise self._refusal(f"{reader.op_type} ({reader.name}) reads other tensors at each")
            return str(names.pop())
        values = [numpy_helper.to_array(t) for t in constants if t is not None]
        if len(values) < len(given):
            raise self._refusal(f"{reader.op_type} ({reader.name}) reads a constant at one only")
        if all(_same(values[0], each) for each in values[1:]):
            return given[0]
        key = tuple(given)
        if key not in self.made:
            if len({(each.dtype, each.ndim) for each in values}) > 1:
                raise self._refusal(f"{reader.op_type} ({reader.name}) reads other types at each")
            self.made[key] = self._pick(f"{PICK}/{len(self.made)}", values)
        return self.made[key]

    def _pick(self, name: str, values: Sequence[Array]) -> str:
        """The value of the frame's size, out of a table of all of them."""
        if len({each.shape for each in values}) == 1:
            return self._gather(name, np.stack(values))
        # Of other shapes: one after another, cut out and brought to shape.
        ends = np.cumsum([each.size for each in values])
        flat = self._keep(f"{name}/flat", np.concatenate([each.ravel() for each in values]))
        starts = np.array([[0], *ends[:-1, None]], np.int64)
        start = self._gather(f"{name}/start", starts)
        end = self._gather(f"{name}/end", ends[:, None].astype(np.int64))
        shape = self._gather(f"{name}/shape", np.array([v.shape for v in values], np.int64))
        part = f"{name}/part"
        self._add("Slice", [flat, start, end], part)
        return self._add("Reshape", [part, shape], name)

    def _gather(self, name: str, table: Array) -> str:
        return self._add("Gather", [self._keep(f"{name}/table", table), f"{PICK}/place"], name)

    def _keep(self, name: str, values: Array) -> str:
        self.tables.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def _add(self, kind: str, inputs: Sequence[str], output: str) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output))
        return output

    def _picking_nodes(self) -> list[onnx.NodeProto]:
        """The frame's place among the sizes: how many of them, but the first, are not beyond it.

        With sums, products and limits alone, which TensorRT computes on shapes as it plans.
        """
        before, self.nodes = self.nodes, []
        keys = [height * STEP + width for height, width in self.sizes]
        for name, value in (("step", STEP), ("zero", 0), ("one", 1), ("rows", 1), ("columns", 2)):
            self._keep(f"{PICK}/{name}", np.array(value, np.int64))
        shape = self._add("Shape", ["frame"], f"{PICK}/frame")
        height = self._add("Gather", [shape, f"{PICK}/rows"], f"{PICK}/height")
        width = self._add("Gather", [shape, f"{PICK}/columns"], f"{PICK}/width")
        scaled = self._add("Mul", [height, f"{PICK}/step"], f"{PICK}/scaled")
        key = self._add("Add", [scaled, width], f"{PICK}/key")
        total = ""
        for number, value in enumerate(keys[1:]):
            name = f"{PICK}/reached_{number}"
            least = self._keep(f"{name}/least", np.array(value - 1, np.int64))
            over = self._add("Sub", [key, least], f"{name}/over")
            some = self._add("Max", [over, f"{PICK}/zero"], f"{name}/some")
            one = self._add("Min", [some, f"{PICK}/one"], name)
            total = self._add("Add", [total, one], f"{name}/sum") if total else one
        self._add("Identity", [total], f"{PICK}/place")
        made, self.nodes = self.nodes, before
        return made

    def _open_sides(self) -> None:
        """Sides that differ between the sizes have names in place of numbers."""
        named = {"frame": (1, 2), "labels": (1, 2), "logits": (2, 3), "coarse": (2, 3)}
        for value in (*self.model.graph.input, *self.model.graph.output):
            for place, side in zip(named.get(value.name, ()), ("H", "W"), strict=False):
                dim = value.type.tensor_type.shape.dim[place]
                dim.dim_param = side if value.name in ("frame", "labels") else side.lower()

    def _refusal(self, why: str) -> ExportError:
        sizes = " and ".join(map(text_of, self.sizes))
        return ExportError(
            f"the network's graph is not the same at {sizes} ({why}): export a file for each, "
            "without --one-file"
        )


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
