"""Simplifications of graphs from outside the zoo: slices that tile an axis, a normalization inside.

Both are found in the finished graph, whoever wrote it, and the proof holds what becomes of it
against the original.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..models.onnx_graph import attributes, axes_of
from .wrap import GraphEnds, find_only_convolution, fold_into

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
Constants = Mapping[str, NDArray[Any]]
Vector = NDArray[np.float64]  # (3,), a value a channel, in the order of the frame: BGR


def simplify(model: onnx.ModelProto, size: tuple[int, int], batch: int = 1) -> None:
    """Both, in place, on a graph whose input is "frame" (`batch`, H, W, 3) uint8 BGR of `size`."""
    merge_slices(model)
    fold_normalization(model, (batch, *size))


@dataclass(frozen=True)
class _Cut:
    """A Slice over one axis, in steps of one: [start, stop) of `data`."""

    data: str
    axis: int
    start: int
    stop: int
    node: onnx.NodeProto


def merge_slices(model: onnx.ModelProto) -> None:
    """One Split in place of the Slices that cut a tensor along an axis from end to end, without gap
    or overlap; others stay as they are."""
    graph, constants = model.graph, _constants(model.graph)
    shapes = _shapes(model)
    groups: dict[tuple[str, int], list[_Cut]] = {}
    for node in graph.node:
        if node.op_type == "Slice" and (cut := _read_cut(node, constants, shapes)):
            groups.setdefault((cut.data, cut.axis), []).append(cut)
    for (data, axis), cuts in groups.items():
        cuts.sort(key=lambda cut: cut.start)
        starts = [cut.start for cut in cuts] + [shapes[data][axis]]
        if len(cuts) < 2 or starts[0] or [cut.stop for cut in cuts] != starts[1:]:
            continue
        name = f"{data}/parts_{axis}"
        sizes = np.array([cut.stop - cut.start for cut in cuts], np.int64)
        graph.initializer.append(numpy_helper.from_array(sizes, name))
        outputs = [cut.node.output[0] for cut in cuts]
        split = helper.make_node("Split", [data, name], outputs, name=f"{name}/split", axis=axis)
        # Where the first of them stood: what it reads is made by then, what reads it comes later.
        place = min(list(graph.node).index(cut.node) for cut in cuts)
        for cut in cuts:
            graph.node.remove(cut.node)
        graph.node.insert(place, split)


def _read_cut(
    node: onnx.NodeProto, constants: Constants, shapes: Mapping[str, Sequence[int]]
) -> _Cut | None:
    values = [constants.get(name) for name in node.input[1:] if name]
    shape = shapes.get(node.input[0], ())
    if not shape or len(values) < 3 or any(v is None or v.size != 1 for v in values):
        return None
    start, stop, axis, *step = (int(v.flat[0]) for v in values if v is not None)
    if step not in ([], [1]):
        return None
    axis %= len(shape)
    side = shape[axis]
    # As the operator reads them: from the end if negative, and never beyond it.
    start, stop = (max(0, min(side, at + side if at < 0 else at)) for at in (start, stop))
    return _Cut(node.input[0], axis, start, stop, node) if side > 0 and start < stop else None


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """By name, of the tensors all of whose sides are known."""
    inferred = onnx.shape_inference.infer_shapes(model)
    found = {}
    for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            found[value.name] = [dim.dim_value for dim in dims]
    return found


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """By name; large ones are weights, and none of what is looked for here."""
    small = [tensor for tensor in graph.initializer if np.prod(tensor.dims) <= 64]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in small}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


@dataclass
class _Chain:
    """What becomes of a pixel on its way from the frame: `scale * pixel + shift`, channel by
    channel, then reversed if `flips`; `axis`: of the channels; `steps`: nodes that compute."""

    scale: Vector
    shift: Vector
    axis: int = 3
    flips: bool = False
    steps: int = 0

    def take(self, node: onnx.NodeProto, constants: Constants, name: str) -> bool:
        """Go on through a node that reads `name`; False if it is of another kind."""
        if node.op_type == "Identity":
            return True
        if node.op_type == "Cast":
            return attributes(node)["to"] in FLOATS  # to integers it would round
        if node.op_type == "Transpose":
            self.axis = axes_of(node).index(self.axis)
            return True
        if _reverses(node, constants, self.axis):
            self.flips = not self.flips
            return True
        return self._compute(node, constants, name)

    def _compute(self, node: onnx.NodeProto, constants: Constants, name: str) -> bool:
        found = _read_affine(node, constants, name, self.axis)
        if found is None:
            return False
        # The file's channels may be in the other order by now; these vectors are in the frame's.
        scale, shift = (values[::-1] if self.flips else values for values in found)
        self.scale, self.shift = self.scale * scale, self.shift * scale + shift
        self.steps += 1
        return True


def fold_normalization(model: onnx.ModelProto, sides: tuple[int, int, int]) -> None:
    """Let the first convolution take over all that is computed of the pixels before it, such as a
    module's or file's own `(x - mean) / std` behind the export's: the frame less a whole number is
    padded by what stands for zero, so that the result is the same at the borders too.

    Nothing is done if another node reads the pixels on their way, or if a single one computes.

    Args:
        model: changed in place.
        sides: (N, H, W) of the frames.
    """
    graph, constants = model.graph, _constants(model.graph)
    chain, name = _Chain(np.ones(3), np.zeros(3)), "frame"
    planes = ""  # (N, 3, H, W) as the frame has them, before anything is computed
    while True:
        readers = [node for node in graph.node if name in node.input]
        if len(readers) != 1 or name in {output.name for output in graph.output}:
            break
        if not chain.take(readers[0], constants, name):
            break
        name = readers[0].output[0]
        if chain.axis == 1 and not chain.steps and not chain.flips:
            planes = name
    first = find_only_convolution(graph, name) if chain.axis == 1 else None
    if first is None or not planes or chain.steps < 2 or chain.scale.min() <= 0:
        return
    mean = -chain.shift / chain.scale
    ends = GraphEnds(graph, _dtype_of(graph, first), prefix="folded")
    place = list(graph.node).index(first)
    fold_into(ends, first, planes, mean, chain.scale, chain.flips, sides)
    ends.finish(place)


def _dtype_of(graph: onnx.GraphProto, node: onnx.NodeProto) -> np.dtype[Any]:
    (weight,) = (tensor for tensor in graph.initializer if tensor.name == node.input[1])
    return helper.tensor_dtype_to_np_dtype(weight.data_type)


def _reverses(node: onnx.NodeProto, constants: Constants, axis: int) -> bool:
    """Whether it reverses the three channels."""
    values = [constants.get(name) for name in node.input[1:] if name]
    if any(value is None for value in values):
        return False
    listed = [value.flatten().tolist() for value in values if value is not None]
    if node.op_type == "Gather":
        return attributes(node).get("axis", 0) % 4 == axis and listed == [[2, 1, 0]]
    if node.op_type != "Slice" or len(listed) != 4:
        return False
    (start, *_), (stop, *_), axes, steps = listed
    return steps == [-1] and [a % 4 for a in axes] == [axis] and start in (-1, 2) and stop < -3


def _read_affine(
    node: onnx.NodeProto, constants: Constants, name: str, axis: int
) -> tuple[Vector, Vector] | None:
    """(scale, shift) of a node that computes `scale * x + shift` of `name`, a value a channel."""
    if node.op_type == "BatchNormalization" and axis == 1 and node.input[0] == name:
        held = [constants.get(each) for each in node.input[1:]]
        if any(each is None for each in held):
            return None
        gain, bias, mean, variance = (each.astype(np.float64) for each in held if each is not None)
        scale = gain / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        return scale, bias - scale * mean
    if node.op_type not in ("Sub", "Add", "Mul", "Div") or name not in node.input:
        return None
    left = node.input[0] == name
    value = _per_channel(constants.get(node.input[1 if left else 0]), axis)
    if value is None or not (left or node.op_type in ("Add", "Mul")):
        return None
    one, zero = np.ones(3), np.zeros(3)
    if node.op_type in ("Add", "Sub"):
        return one, value if node.op_type == "Add" else -value
    if node.op_type == "Div":
        return (1 / value, zero) if value.all() else None
    return value, zero


def _per_channel(value: NDArray[Any] | None, axis: int) -> Vector | None:
    """(3,) of a constant that is one number, or one for each channel of four axes."""
    if value is None or value.size not in (1, 3):
        return None
    if value.size == 3:
        shape = (1,) * (4 - value.ndim) + value.shape
        if shape[axis] != 3:
            return None
    return np.broadcast_to(value.flatten().astype(np.float64), (3,))
