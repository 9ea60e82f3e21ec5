"""Wrapping of an ONNX file: from uint8 frame to labels, around the file's own graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..models.onnx_file import OnnxNetwork
from ..models.onnx_graph import (
    attributes,
    axes_of,
    find_last_resize,
    find_logits,
    list_nodes,
    tensor_shape,
)

Size = tuple[int, int]  # (height, width) in pixels
FLOAT: np.dtype[Any] = np.dtype(np.float32)


def wrap_graph(
    network: OnnxNetwork, size: Size, outputs: Sequence[str], batch: int = 1
) -> onnx.ModelProto:
    """The graph of an ONNX file with all that an artifact holds, in float32.

    Input "frame" (N, H, W, 3) uint8 BGR; outputs "labels" (N, H, W) uint8 and "logits"
    (N, K, h, w), as asked for.

    Args:
        network: the file.
        size: (height, width) of the frame in pixels.
        outputs: of "labels" and "logits", in their order.
        batch: N, frames at a time.
    """
    model = network.prepare(size, batch)
    nodes = GraphEnds(model.graph)
    image = model.graph.input[0].name
    _normalize(nodes, network, image, size, batch)
    logits = find_logits(model, network.form.tail.axis)
    coarse, _ = find_last_resize(model, logits, size)
    _end(nodes, network, coarse, size, outputs)
    nodes.finish()
    return model


class GraphEnds:
    """Nodes and constants put before and behind a graph.

    Args:
        graph: changed by `finish`.
        dtype: of the constants that nodes before it compute with.
        prefix: of the names of those nodes and their constants.
    """

    def __init__(self, graph: onnx.GraphProto, dtype: np.dtype[Any] = FLOAT, prefix: str = "frame"):
        self.graph, self.dtype, self.prefix = graph, dtype, prefix
        self.before: list[onnx.NodeProto] = []
        self.behind: list[onnx.NodeProto] = []
        self.place = self.before

    def add(self, kind: str, inputs: Sequence[str], output: str, **facts: Any) -> str:
        self.place.append(helper.make_node(kind, inputs, [output], name=output, **facts))
        return output

    def keep(self, name: str, values: NDArray[np.generic]) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def compute(self, kind: str, pixels: str, values: NDArray[np.generic], name: str) -> str:
        """A node that computes with planes (1, 3, H, W) and a value a channel."""
        planes = values.reshape(1, 3, 1, 1).astype(self.dtype)
        name = f"{self.prefix}/{name}"
        return self.add(kind, [pixels, self.keep(f"{name}_values", planes)], name)

    def finish(self, at: int = 0) -> None:
        """Put all in order, without what no output needs any more; `at`: the place of the nodes
        before it."""
        graph, needed = self.graph, {output.name for output in self.graph.output}
        kept = []
        nodes = [*graph.node[:at], *self.before, *graph.node[at:], *self.behind]
        # ONNX keeps nodes in topological order, so one pass from the end finds all that is read.
        for node in reversed(nodes):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update(_read_by(node))
        constants = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(reversed(kept))
        graph.initializer.extend(constants)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its branches and loops too."""
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from (name for each in list_nodes(attribute.g) for name in each.input)


def _normalize(nodes: GraphEnds, network: OnnxNetwork, image: str, size: Size, batch: int) -> None:
    """The camera's frame in place of the file's input, as `FrameToLabels` does it."""
    graph, info = nodes.graph, network.info
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info("frame", TensorProto.UINT8, [batch, *size, 3]))
    # The frame's order, BGR, and its scale, 0..255; those of `info` are RGB in 0..1.
    mean, std = (np.array(values[::-1], np.float64) * 255 for values in (info.mean, info.std))
    # TensorRT converts uint8 to float only, and moves axes of floats only: cast first.
    pixels = nodes.add("Cast", ["frame"], "frame/float", to=TensorProto.FLOAT)
    pixels = nodes.add("Transpose", [pixels], "frame/planes", perm=[0, 3, 1, 2])
    flips = network.order == "rgb"
    last = network.form.channels_last
    if last and (source := _skip_transposes(graph, image)):
        last, image = False, source
    first = None if last else find_only_convolution(graph, image)
    if first is not None:
        fold_into(nodes, first, pixels, mean, 1 / std, flips, (batch, *size))
        return
    whole = mean.round()  # see `fold_into`
    if whole.any():
        pixels = nodes.compute("Sub", pixels, whole, "centered")
    if (whole != mean).any():
        pixels = nodes.compute("Sub", pixels, mean - whole, "exact")
    pixels = nodes.compute("Mul", pixels, 1 / std, "scaled")
    if flips:
        order = nodes.keep("frame/order", np.array([2, 1, 0], np.int64))
        pixels = nodes.add("Gather", [pixels, order], "frame/ordered", axis=1)
    if last:
        pixels = nodes.add("Transpose", [pixels], "frame/last", perm=[0, 2, 3, 1])
    _replace_input(graph, image, pixels)


def _skip_transposes(graph: onnx.GraphProto, image: str) -> str | None:
    """The planes that a channels-last graph makes of its input first of all, if it reads nothing
    else; the transpose goes."""
    readers = [node for node in graph.node if image in node.input]
    if (
        len(readers) != 1
        or readers[0].op_type != "Transpose"
        or axes_of(readers[0]) != (0, 3, 1, 2)
    ):
        return None
    planes: str = readers[0].output[0]
    graph.node.remove(readers[0])
    return planes


def _replace_input(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == old:
                node.input[place] = new


def find_only_convolution(graph: onnx.GraphProto, image: str) -> onnx.NodeProto | None:
    """The convolution that alone reads the image, if there is one whose padding is known."""
    readers = [node for node in graph.node if image in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv" or readers[0].input[0] != image:
        return None
    facts = attributes(readers[0])
    held = {tensor.name for tensor in graph.initializer}
    if facts.get("group", 1) != 1 or not held.issuperset(readers[0].input[1:]):
        return None
    first: onnx.NodeProto = readers[0]
    return first


def fold_into(
    nodes: GraphEnds,
    first: onnx.NodeProto,
    pixels: str,
    mean: NDArray[Any],
    scale: NDArray[Any],
    flips: bool,
    sides: tuple[int, int, int],
) -> None:
    """Make `first` take the frame's planes as it took `(pixels - mean) * scale`, exactly: padding
    is by hand, since zeros would no longer stand for the mean color.

    Args:
        nodes: of the graph, which get what is to be done before `first`.
        first: a convolution that `find_only_convolution` found.
        pixels: planes (N, 3, H, W), BGR, 0..255.
        mean: (3,) in that order.
        scale: (3,) in that order.
        flips: whether `first` reads RGB.
        sides: (N, H, W) of them.
    """
    # A pixel less a whole number is exact even in bfloat16's 8 bits.
    whole = mean.round()
    if whole.any():
        pixels = nodes.compute("Sub", pixels, whole, "centered")
    shift = whole - mean
    held = {tensor.name: tensor for tensor in nodes.graph.initializer}
    # In float64, so that folding rounds every weight once.
    weight = numpy_helper.to_array(held[first.input[1]]).astype(np.float64)
    weight = (weight[:, ::-1] if flips else weight) * scale.reshape(1, 3, 1, 1)
    bias = (weight * shift.reshape(1, 3, 1, 1)).sum(axis=(1, 2, 3))
    if len(first.input) > 2:
        bias += numpy_helper.to_array(held[first.input[2]])
    facts = attributes(first)
    batch, height, width = sides
    top, left, bottom, right = _pads(facts, weight.shape[2:], (height, width))
    edge = (-shift).reshape(1, 3, 1, 1)

    def border(name: str, height: int, width: int) -> str:
        values = np.broadcast_to(edge, (batch, 3, height, width)).astype(nodes.dtype)
        return nodes.keep(f"{nodes.prefix}/{name}_border", values)

    # Concatenated, since Pad has one value for all channels, and the mean color has three.
    columns = [border("left", height, left)] if left else []
    columns += [pixels]
    columns += [border("right", height, right)] if right else []
    if len(columns) > 1:
        pixels = nodes.add("Concat", columns, f"{nodes.prefix}/wide", axis=3)
    rows = [border("top", top, left + width + right)] if top else []
    rows += [pixels]
    rows += [border("bottom", bottom, left + width + right)] if bottom else []
    if len(rows) > 1:
        pixels = nodes.add("Concat", rows, f"{nodes.prefix}/padded", axis=2)
    inputs = [
        pixels,
        nodes.keep(f"{first.name}.weight", weight.astype(nodes.dtype)),
        nodes.keep(f"{first.name}.bias", bias.astype(nodes.dtype)),
    ]
    for name in ("pads", "auto_pad"):
        facts.pop(name, None)
    place = list(nodes.graph.node).index(first)
    folded = helper.make_node("Conv", inputs, list(first.output), name=first.name, **facts)
    nodes.graph.node.remove(first)
    nodes.graph.node.insert(place, folded)


def _pads(facts: dict[str, Any], kernel: tuple[int, ...], size: Size) -> list[int]:
    """(top, left, bottom, right) of a convolution, written out or by its rule."""
    rule = facts.get("auto_pad", b"NOTSET")
    if rule == b"NOTSET":
        return list(facts.get("pads", (0, 0, 0, 0)))
    starts, ends = [], []
    for side, k, stride, dilation in zip(
        size, kernel, facts.get("strides", (1, 1)), facts.get("dilations", (1, 1)), strict=True
    ):
        # By the definition of auto_pad: the output has ceil(side / stride) positions, and the odd
        # pixel goes to the end, for SAME_LOWER to the start.
        total = max(0, (-(-side // stride) - 1) * stride + (k - 1) * dilation + 1 - side)
        total = 0 if rule == b"VALID" else total
        small, large = total // 2, total - total // 2
        starts.append(large if rule == b"SAME_LOWER" else small)
        ends.append(small if rule == b"SAME_LOWER" else large)
    return [*starts, *ends]


def _end(
    nodes: GraphEnds,
    network: OnnxNetwork,
    coarse: str,
    size: Size,
    outputs: Sequence[str],
) -> None:
    """Labels of the logits (N, K, h, w), and the logits themselves where they are asked for."""
    graph = nodes.graph
    model = helper.make_model(graph)
    shape = tensor_shape(onnx.shape_inference.infer_shapes(model), coarse)
    nodes.place = nodes.behind
    del graph.output[:]
    if network.form.channels == 1:
        # One logit against 0: softmax of (0, x) gives the second class sigmoid(x).
        zeros = nodes.keep("labels/zeros", np.zeros((shape[0], 1, *shape[2:]), np.float32))
        coarse = nodes.add("Concat", [zeros, coarse], "labels/both", axis=1)
        shape[1] = 2
    for output in outputs:
        if output == "logits":
            nodes.add("Identity", [coarse], "logits")
            graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape))
            continue
        scores = coarse
        if tuple(shape[2:]) != size:
            target = nodes.keep("labels/size", np.array([*shape[:2], *size], np.int64))
            mode = "align_corners" if network.info.align_corners else "half_pixel"
            scores = nodes.add(
                "Resize",
                [coarse, "", "", target],
                "labels/resized",
                mode="linear",
                coordinate_transformation_mode=mode,
            )
        best = nodes.add("ArgMax", [scores], "labels/best", axis=1, keepdims=0)
        # TensorRT makes uint8 of floats only; ids up to 255 are exact in half precision too.
        best = nodes.add("Cast", [best], "labels/float", to=TensorProto.FLOAT)
        nodes.add("Cast", [best], "labels", to=TensorProto.UINT8)
        graph.output.append(
            helper.make_tensor_value_info("labels", TensorProto.UINT8, [shape[0], *size])
        )
