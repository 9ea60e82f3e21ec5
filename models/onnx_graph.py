"""Graphs of other people's ONNX files: how their output is made, and their form for one size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import onnx
import onnxslim
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from ..errors import UsageError

Size = tuple[int, int]  # (height, width) in pixels
OPSET = 18
PREFIX = "network."  # of a file's own names in ours
STANDARD = ("", "ai.onnx")  # domains whose operators every runtime knows
KINDS = ("Conv", "Gemm", "MatMul")  # of nodes whose work is counted
# What may stand between an argmax and the class ids that a file gives.
BESIDE_IDS = ("Cast", "Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten")
RESIZES = {b"half_pixel": False, b"pytorch_half_pixel": False, b"align_corners": True}


@dataclass(frozen=True)
class Tail:
    """What a graph's output is made of.

    Attributes:
        kind: of the output: "logits", "probabilities" or "labels".
        scores: the tensor that its labels are the argmax of, as early as the graph allows.
        axis: of the classes in `scores`; None where only its shape can tell.
    """

    kind: Literal["logits", "probabilities", "labels"]
    scores: str
    axis: int | None


def list_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from list_nodes(attribute.g)


def axes_of(node: onnx.NodeProto) -> tuple[int, ...]:
    """A Transpose's permutation; empty where it reverses the axes."""
    return tuple(attributes(node).get("perm", ()))


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """A node's attributes by name, as Python has them."""
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def find_tail(model: onnx.ModelProto, output: str) -> Tail:
    """What an output is made of, walking back from it."""
    makers = {result: node for node in model.graph.node for result in node.output}
    node = makers.get(output)
    while node is not None and node.op_type in BESIDE_IDS:
        node = makers.get(node.input[0])
    if node is not None and node.op_type == "ArgMax" and not _takes_last(node):
        name, axis = _before_moves(makers, node.input[0], attributes(node).get("axis", 0) % 4)
        found = _before_softmax(model, makers, name, axis) or (name, axis)
        return Tail("labels", *found)
    node = makers.get(output)
    if node is not None and node.op_type == "Sigmoid":
        return Tail("probabilities", node.input[0], None)
    if made := _before_softmax(model, makers, output, None):
        return Tail("probabilities", *made)
    return Tail("logits", output, None)


def _takes_last(argmax: onnx.NodeProto) -> bool:
    return bool(attributes(argmax).get("select_last_index", 0))


def _before_softmax(
    model: onnx.ModelProto, makers: Mapping[str, onnx.NodeProto], name: str, axis: int | None
) -> tuple[str, int] | None:
    """(what a softmax reads, the axis that it is over), if that is the one of the classes: the
    order of probabilities is that of the logits. None if there is none."""
    if axis is None:  # the result itself may be a softmax's with its axes moved
        while (node := makers.get(name)) is not None and node.op_type in ("Transpose", "Identity"):
            name = node.input[0]
    node = makers.get(name)
    if node is None or node.op_type not in ("Softmax", "LogSoftmax"):
        return None
    opset = find_opset(model)
    over = attributes(node).get("axis", -1 if opset >= 13 else 1) % 4
    flattens = opset < 13 and over != 3  # it takes all axes from there on as one
    if flattens or axis not in (None, over):
        return None
    return _before_moves(makers, node.input[0], over)


def _before_moves(makers: Mapping[str, onnx.NodeProto], name: str, axis: int) -> tuple[str, int]:
    """A tensor and its axis of the classes before its axes were moved."""
    while (node := makers.get(name)) is not None:
        if node.op_type == "Transpose" and len(axes_of(node)) == 4:
            axis = axes_of(node)[axis]
        elif node.op_type != "Identity":
            break
        name = node.input[0]
    return name, axis


def find_opset(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators."""
    return next(each.version for each in model.opset_import if each.domain in STANDARD)


def prepare(content: bytes, dims: list[int], scores: str) -> onnx.ModelProto:
    """A file's graph from its input, an image of shape `dims`, to a tensor `scores`: in float32,
    with all shapes known, in a current opset, simplified; its names begin with PREFIX.

    Raises:
        UsageError: if the graph cannot be brought to that.
    """
    model = onnx.load_from_string(content)
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    (image,) = [value for value in graph.input if value.name not in weights]
    # A uint8 input becomes a float one, which the casts that read it leave as it is.
    image.CopyFrom(helper.make_tensor_value_info(image.name, TensorProto.FLOAT, dims))
    del graph.output[:], graph.value_info[:]
    graph.output.append(helper.make_empty_tensor_value_info(scores))
    graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model = compose.add_prefix(model, PREFIX)
    try:
        if find_opset(model) < OPSET:
            model = version_converter.convert_version(model, OPSET)
        model = onnxslim.slim(model)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except Exception as error:  # each of them has its own
        raise UsageError(str(error).strip().splitlines()[0][:200]) from error
    made = tensor_shape(model, model.graph.output[0].name)
    if made and made[0] != dims[0]:  # a reshape that was written down for another number
        raise UsageError(f"its scores are {made}, of another number of images than {dims[0]}")
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{PREFIX}{node.op_type}_{number}"
    return model


def find_logits(model: onnx.ModelProto, axis: int | None) -> str:
    """The tensor (1, K, h, w) of a prepared graph's scores: made, if its classes are last."""
    scores: str = model.graph.output[0].name
    if axis == 1:
        return scores
    maker = find_maker(model, scores)
    if maker is not None and maker.op_type == "Transpose" and axes_of(maker) == (0, 2, 3, 1):
        return maker.input[0]
    made = f"{scores}/channels_first"
    model.graph.node.append(
        helper.make_node("Transpose", [scores], [made], name=made, perm=[0, 3, 1, 2])
    )
    return made


def find_last_resize(model: onnx.ModelProto, logits: str, size: Size) -> tuple[str, bool | None]:
    """(what a bilinear resize to the frame's size reads, whether it aligns corners), so that the
    argmax can be taken of the coarse logits; (`logits`, None) if they are made in another way."""
    resize = find_maker(model, logits)
    if resize is None or resize.op_type != "Resize":
        return logits, None
    facts = attributes(resize)
    mode = facts.get("coordinate_transformation_mode", b"half_pixel")
    read, made = (tensor_shape(model, name) for name in (resize.input[0], logits))
    if facts.get("mode") != b"linear" or facts.get("antialias", 0) or mode not in RESIZES:
        return logits, None
    if not read or not made or tuple(made[2:]) != size or read[:2] != made[:2]:
        return logits, None
    if len(resize.input) > 2 and resize.input[2]:  # by a factor: the same, if it does not round
        scales = read_constant(model, resize.input[2])
        sized = len(resize.input) > 3 and resize.input[3]
        if scales is None or (
            not sized and any(a * s != b for a, s, b in zip(read, scales, made, strict=True))
        ):
            return logits, None
    return resize.input[0], RESIZES[mode]


def tensor_shape(model: onnx.ModelProto, name: str) -> list[int]:
    """The dimensions that shape inference found, [] if none."""
    for value in (*model.graph.value_info, *model.graph.output, *model.graph.input):
        if value.name == name:
            return [d.dim_value for d in value.type.tensor_type.shape.dim]
    return []


def read_constant(model: onnx.ModelProto, name: str) -> NDArray[Any] | None:
    """A tensor's values, None if it is computed."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    maker = find_maker(model, name)
    if maker is not None and maker.op_type == "Constant" and maker.attribute[0].HasField("t"):
        return numpy_helper.to_array(maker.attribute[0].t)
    return None


def find_maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The node that gives a tensor; None for inputs and weights."""
    return next((node for node in model.graph.node if name in node.output), None)


def node_macs(graph: onnx.ModelProto) -> list[tuple[onnx.NodeProto, int]]:
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
