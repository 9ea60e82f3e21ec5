"""The int8 graph for ONNX Runtime on CPUs: integers from layer to layer, not only inside of layers.

ONNX Runtime computes a layer in integers if what it reads, its weights, its bias and what it gives
are all rounded; TensorRT wants the bias and the sums behind a layer in float. So each has a form of
its own, of the same ranges and weights. Here activations are uint8 and weights int8, which is what
VNNI multiplies: zero point 0 for what a ReLU gave (and with it the range of one more bit), 128 for
what has both signs. Biases are int32, in steps of input times weight.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel

from ..models.onnx_graph import axes_of

# What gives values of what it reads, or means of them: rounded alike on both sides, it needs no
# arithmetic of its own.
MOVES = ("MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Split", "Slice", "Transpose")
MEANS = ("AveragePool", "Resize", "Concat")
SUMS = ("Add",)
LARGEST_BIAS = 2.0**30  # steps; more would leave no room for the products


@dataclass(frozen=True)
class Rounding:
    """Of a tensor: value = scale * (integer - zero), in uint8."""

    scale: np.float32
    zero: int


@dataclass(frozen=True)
class First:
    """A frame (N, H, W, 3) that a layer reads less its mean, which is of whole numbers; padding:
    pixels of the mean on each side; shape: (N, 3, H, W)."""

    frame: str
    mean: NDArray[np.float32]
    padding: int
    shape: tuple[int, int, int, int]


def is_never_negative(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a tensor is so by how it is made; makers: the node that gives each tensor."""
    node = makers.get(name)
    if node is None:
        return False
    if node.op_type in (*MOVES, *MEANS):
        parts = node.input if node.op_type == "Concat" else node.input[:1]
        return all(is_never_negative(part, makers) for part in parts)
    return node.op_type in ("Relu", "Sigmoid", "Softmax")


class IntegerForm:
    """Makes the integer form of a float graph.

    Args:
        plain: the float32 graph, with shapes.
        layers: names of the nodes that may be in int8.
        ranges: largest magnitude by tensor, of what layers read and give.
        reads_bytes: whether the first layer may read the frame's bytes as they come.
        also: tensors to round besides, of known range.
    """

    def __init__(
        self,
        plain: onnx.ModelProto,
        layers: Collection[str],
        ranges: Mapping[str, float],
        reads_bytes: bool = True,
        also: Collection[str] = (),
    ):
        self.model = copy.deepcopy(plain)
        self.graph = self.model.graph
        self.layers, self.ranges, self.reads_bytes = set(layers), ranges, reads_bytes
        self.also = tuple(also)
        self.makers: dict[str, onnx.NodeProto] = {
            name: node for node in self.graph.node for name in node.output
        }
        self.constants = {each.name: each for each in self.graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.graph.node:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)

    def build(self) -> tuple[onnx.ModelProto, set[str]]:
        """(the graph, the layers in it that are computed in integers)."""
        points = self._find_points()
        roundings = self._choose(points)
        done = {
            node.name: roundings[node.input[0]]
            for node in self.graph.node
            if self._is_layer(node) and node.input[0] in roundings and self._end(node) in roundings
        }
        means = {}
        for node in self.graph.node:
            if (
                self.reads_bytes
                and node.name in done
                and (first := self._find_first(node)) is not None
            ):
                means[node.name] = first
        for node in self.graph.node:
            if node.name in means:
                del roundings[node.input[0]]
        for name, rounding in roundings.items():
            self._round(name, rounding)
        for node in list(self.graph.node):
            if node.name in means:
                done[node.name] = Rounding(np.float32(1), 0)
                self._read_bytes(node, means[node.name])
            if node.name in done:
                self._round_weights(node, done[node.name], means.get(node.name))
        self._drop_unread()
        ONNXModel(self.model).topological_sort()
        return self.model, set(done)

    def _is_layer(self, node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" and node.name in self.layers

    def _end(self, node: onnx.NodeProto) -> str:
        """What is rounded of what a node gives: behind its ReLU, if that alone reads it."""
        readers = self.readers.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            return str(readers[0].output[0])
        return str(node.output[0])

    def _begin(self, name: str) -> onnx.NodeProto | None:
        """The node whose end a tensor is."""
        node = self.makers.get(name)
        if node is not None and node.op_type == "Relu":
            before = self.makers.get(node.input[0])
            if before is not None and self._end(before) == name:
                return before
        return node

    def _find_points(self) -> set[str]:
        """Tensors that are rounded: what layers read, and what that is made of."""
        waiting = [node.input[0] for node in self.graph.node if self._is_layer(node)]
        waiting += self.also
        found: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in found or self._range(name) is None:
                continue
            found.add(name)
            node = self._begin(name)
            if node is None:
                continue
            if node.op_type in SUMS or node.op_type in (*MOVES, *MEANS):
                parts = [each for each in node.input if each in self.makers]
                if node.op_type not in SUMS and node.op_type != "Concat":
                    parts = parts[:1]
                if all(self._range(part) is not None for part in parts):
                    waiting += parts
        return found

    def _range(self, name: str) -> float | None:
        """The largest magnitude of a tensor; what only moves has that of what it reads."""
        if name in self.ranges:
            return float(self.ranges[name])
        node = self.makers.get(name)
        if node is None or node.op_type not in (*MOVES, *MEANS, "Relu"):
            return None
        parts = node.input if node.op_type == "Concat" else node.input[:1]
        known = [self._range(part) for part in parts]
        return None if None in known else max(known)  # type: ignore[type-var]

    def _choose(self, points: Iterable[str]) -> dict[str, Rounding]:
        """One rounding for all that only moves between."""
        chief = {name: name for name in points}

        def find(name: str) -> str:
            while chief[name] != name:
                name = chief[name]
            return name

        for name in chief:
            node = self._begin(name)
            if node is not None and node.op_type in (*MOVES, *MEANS):
                parts = node.input if node.op_type == "Concat" else node.input[:1]
                for part in parts:
                    if part in chief:
                        chief[find(part)] = find(name)
        groups: dict[str, list[str]] = {}
        for name in chief:
            groups.setdefault(find(name), []).append(name)
        found: dict[str, Rounding] = {}
        for names in groups.values():
            largest = max(self._range(name) or 0.0 for name in names) or 1.0
            positive = all(is_never_negative(name, self.makers) for name in names)
            rounding = Rounding(
                np.float32(largest / (255 if positive else 127)), 0 if positive else 128
            )
            found |= dict.fromkeys(names, rounding)
        return found

    def _round(self, name: str, rounding: Rounding) -> None:
        """QuantizeLinear and DequantizeLinear behind a tensor, for all its readers."""
        scale, zero = f"{name}/scale", f"{name}/zero"
        self._add(scale, rounding.scale)
        self._add(zero, np.uint8(rounding.zero))
        integer, back = f"{name}/integer", f"{name}/rounded"
        for reader in self.readers.get(name, []):
            for place, given in enumerate(reader.input):
                if given == name:
                    reader.input[place] = back
        for kind, source, result in (
            ("QuantizeLinear", name, integer),
            ("DequantizeLinear", integer, back),
        ):
            node = helper.make_node(kind, [source, scale, zero], [result], name=result)
            self.graph.node.append(node)
            self.makers[result] = node

    def _find_first(self, node: onnx.NodeProto) -> First | None:
        """The frame that a layer reads less its whole mean, framed by hand or not."""
        before = self.makers.get(node.input[0])
        sides = 0
        while before is not None and before.op_type == "Concat" and len(before.input) == 3:
            before, sides = self.makers.get(before.input[1]), sides + 1
        chain = []
        for kind in ("Sub", "Transpose", "Cast"):
            if before is None or before.op_type != kind:
                return None
            chain.append(before)
            before = self.makers.get(before.input[0])
        sub, transpose, cast = chain
        whole = self.constants.get(sub.input[1])
        if sides not in (0, 2) or whole is None or cast.input[0] != self.graph.input[0].name:
            return None
        mean = numpy_helper.to_array(whole).reshape(-1)
        if len(mean) != 3 or np.any(mean != np.rint(mean)) or axes_of(transpose) != (0, 3, 1, 2):
            return None
        batch, height, width, _ = (
            each.dim_value for each in self.graph.input[0].type.tensor_type.shape.dim
        )
        shapes = {each.name: each for each in self.graph.value_info}
        if sides and node.input[0] not in shapes:
            return None
        padding = 0
        if sides:
            framed = shapes[node.input[0]].type.tensor_type.shape.dim[3].dim_value
            padding = (framed - width) // 2
        return First(cast.input[0], mean, padding, (batch, 3, height, width))

    def _read_bytes(self, node: onnx.NodeProto, first: First) -> None:
        """Let a layer read the frame's bytes as they come; its bias takes the mean out."""
        # By the layer: several may read the frame, and an adopted file's wrapper says frame/planes.
        step, zero, rounded = (f"{node.name}/frame_{end}" for end in ("step", "zero", "rounded"))
        planes = f"{node.name}/frame_planes"
        made = [helper.make_node("Transpose", [first.frame], [planes], perm=[0, 3, 1, 2])]
        if p := first.padding:
            batch, channels, height, width = first.shape
            color = first.mean.reshape(1, 3, 1, 1).astype(np.uint8)
            for name, axis, size in (
                (f"{node.name}/frame_side", 3, (batch, channels, height, p)),
                (f"{node.name}/frame_end", 2, (batch, channels, p, width + 2 * p)),
            ):
                self._add(name, np.broadcast_to(color, size).copy())
                framed = f"{name}/framed"
                made.append(helper.make_node("Concat", [name, planes, name], [framed], axis=axis))
                planes = framed
        self._add(step, np.float32(1))
        self._add(zero, np.uint8(0))
        made.append(helper.make_node("DequantizeLinear", [planes, step, zero], [rounded]))
        for each in made:
            each.name = each.output[0]
        self.graph.node.extend(made)
        node.input[0] = rounded

    def _round_weights(
        self, node: onnx.NodeProto, read: Rounding, first: First | None = None
    ) -> None:
        """int8 weights, a scale for each output channel, and an int32 bias."""
        weight = numpy_helper.to_array(self.constants[node.input[1]])
        bias = None
        if len(node.input) > 2 and node.input[2]:
            bias = numpy_helper.to_array(self.constants[node.input[2]]).astype(np.float64)
        rows = np.abs(weight.reshape(len(weight), -1)).max(1).astype(np.float64) / 127
        if bias is not None:  # of a channel without weight to speak of
            rows = np.maximum(rows, np.abs(bias) / (float(read.scale) * LARGEST_BIAS))
        scales = np.where(rows > 0, rows, 1.0).astype(np.float32)
        shaped = scales.reshape(-1, *[1] * (weight.ndim - 1))
        integers = np.clip(np.rint(weight / shaped), -127, 127).astype(np.int8)
        node.input[1] = self._constant(f"{node.name}/weight", integers, scales)
        if first is not None:
            # By the rounded weights, so that a frame of the mean color gives the bias alone.
            sums = integers.astype(np.float64).sum((2, 3)) @ first.mean * scales
            bias = (0.0 if bias is None else bias) - sums
            del node.input[2:]
            node.input.append("")
        if bias is not None:
            steps = scales * read.scale
            whole = np.rint(bias / steps.astype(np.float64)).astype(np.int32)
            node.input[2] = self._constant(f"{node.name}/bias", whole, steps)

    def _constant(
        self, name: str, integers: NDArray[np.generic], scales: NDArray[np.generic]
    ) -> str:
        """A constant in integers, and its name behind DequantizeLinear."""
        names = [f"{name}/{part}" for part in ("integer", "scale", "zero")]
        zeros = np.zeros(len(scales), integers.dtype)
        for each, values in zip(names, (integers, scales, zeros), strict=True):
            self._add(each, values)
        back = f"{name}/rounded"
        node = helper.make_node("DequantizeLinear", names, [back], name=back, axis=0)
        self.graph.node.append(node)
        self.makers[back] = node
        return back

    def _drop_unread(self) -> None:
        """Take out nodes and constants that nothing reads any more."""
        used = {output.name for output in self.graph.output}
        while True:
            read = used.union(*(node.input for node in self.graph.node))
            idle = [node for node in self.graph.node if read.isdisjoint(node.output)]
            if not idle:
                break
            for node in idle:
                self.graph.node.remove(node)
        for tensor in [each for each in self.graph.initializer if each.name not in read]:
            self.graph.initializer.remove(tensor)

    def _add(self, name: str, values: object) -> None:
        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.graph.initializer.append(tensor)
