"""Network -> typed ONNX graph of the whole job, uint8 frame to labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from ..data.files import write_atomically
from ..errors import ExportError, UsageError
from ..models import FrameToLabels, Network, deploy
from ..models.onnx_file import OnnxNetwork
from ..models.onnx_graph import KINDS, attributes, node_macs
from ..models.own import OwnNetwork
from ..runtime.artifact import Card, CoarseLogits, Upsampling, append_card
from ..runtime.onnx_metadata import GRAPH, field
from .half import find_position_makers, to_half
from .simplify import simplify
from .trace import trace
from .wrap import wrap_graph

SCORES = "scores"  # the tensor that the labels are the argmax of
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# What may stand between a layer and the positions that GridSample reads at.
CARRIERS = (
    "Add", "Cast", "Clip", "Concat", "Div", "Max", "Min", "Mul", "Reshape", "Resize", "Slice",
    "Split", "Sub", "Tanh", "Transpose", "Unsqueeze", "Squeeze",
)  # fmt: skip
TABLE = "lifted_tensor"  # how the exporter names constants that are no weights, such as poolings
FLOAT16_MAX = 65504.0
# An activation may grow so many times on other frames before it becomes infinite in float16.
HEADROOM = 4


def to_onnx(
    network: Network,
    size: tuple[int, int],
    precision: str,
    outputs: tuple[str, ...],
    batch: int = 1,
) -> onnx.ModelProto:
    """The deployed network as a checked and simplified ONNX model, without a card.

    Input "frame" (N, H, W, 3) uint8 BGR, N frames a `batch`; outputs "labels" (N, H, W) uint8 and
    "logits" (N, K, h, w), as asked for. Weights and activations are of `precision`, but for float32
    islands.
    """
    if isinstance(network, OnnxNetwork):
        model = wrap_graph(network, size, outputs, batch)
        simplify(model, size, batch)
        if precision == "fp16":
            model = to_half(model, find_position_makers(model.graph, CARRIERS))
        return _finish(model)
    # With the size: constants that depend on it are made before the trace, and stay out of the
    # graph.
    deployed = deploy(network, size)
    own = isinstance(network, OwnNetwork)
    whole = FrameToLabels(deployed, outputs, size if own else None).eval()
    frame = torch.zeros(batch, *size, 3, dtype=torch.uint8)
    try:
        model = trace(whole.to(DTYPES[precision]), frame, outputs)
        converted = True
    except (UsageError, ExportError):
        if not own or precision == "fp32":
            raise
        # What a module makes itself, such as a grid, is float32 and meets halves: its graph is
        # converted instead. What else is wrong with it is told of the float32 module.
        whole = FrameToLabels(deployed, outputs, size).eval()
        model, converted = trace(whole, frame, outputs), False
    if own:  # those of the zoo are written so that nothing is left
        simplify(model, size, batch)
    if not converted:
        model = to_half(model, find_position_makers(model.graph, CARRIERS))
    return _finish(model)


def _finish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Names the scores, drops what only the exporter needs, and checks the result."""
    # The exporter's notes on each node hold stack traces, with the paths of this machine.
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    model.graph.name = "rtseg"
    model.producer_name = "rtseg"
    _name_scores(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def _name_scores(graph: onnx.GraphProto) -> None:
    """Give the argmax's input the name SCORES, unless it is an output and has one already."""
    argmaxes = [node for node in graph.node if node.op_type == "ArgMax"]
    # A network with an argmax of its own: which one makes the labels is not for a name to say.
    if len(argmaxes) != 1:
        return
    old = argmaxes[0].input[0]
    if old in {output.name for output in graph.output}:
        return
    rename(graph, old, SCORES)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a tensor another name wherever the graph speaks of it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in graph.output:
        if value.name == old:
            value.name = new


# What may stand between the argmax and the labels: it moves no class to another pixel.
BESIDE_LABELS = ("Cast", "Squeeze", "Unsqueeze", "Identity")
RESIZES: dict[bytes, Upsampling] = {
    b"align_corners": "bilinear_aligned",
    b"half_pixel": "bilinear",
    b"pytorch_half_pixel": "bilinear",
}


def find_coarse(model: onnx.ModelProto) -> CoarseLogits | None:
    """What the labels of a graph are made of; None if not by an argmax of classes.

    A resize to the frame's size is left out of it. Without one, "shuffle" is right only if that is
    (N, K, factor^2, h, w), or has the frame's size already.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    node, shuffled = makers.get("labels"), False
    while node is not None:
        if node.op_type == "DepthToSpace" and not shuffled:
            shuffled = True
        # Of one plane, which it takes away; of more, it would put rows or planes in other places.
        elif not (node.op_type in BESIDE_LABELS or _takes_only_plane(node, held)):
            break
        node = makers.get(node.input[0])
    if node is None or node.op_type != "ArgMax" or attributes(node).get("axis", 0) != 1:
        return None
    # Ties would go to the last class; the runtime's loops give them to the first, as PyTorch does.
    if attributes(node).get("select_last_index", 0):
        return None
    resize = makers.get(node.input[0])
    if resize is None or resize.op_type != "Resize":
        return CoarseLogits(tensor=node.input[0], upsampling="shuffle")
    if shuffled:  # of labels that have the frame's size already
        return None
    facts = attributes(resize)
    upsampling = RESIZES.get(facts.get("coordinate_transformation_mode", b"half_pixel"))
    plain = facts.get("mode") == b"linear" and not facts.get("antialias", 0)
    to_size = len(resize.input) == 4 and resize.input[3]  # not by a factor, which may round
    if not (upsampling and plain and to_size):
        return None
    return CoarseLogits(tensor=resize.input[0], upsampling=upsampling)


def _takes_only_plane(node: onnx.NodeProto, held: Mapping[str, TensorProto]) -> bool:
    """Whether it is `x[:, 0]`, as the exporter writes it."""
    index = held.get(node.input[1]) if node.op_type == "Gather" else None
    # A list of indices would put rows or planes in another order.
    return index is not None and not index.dims and attributes(node).get("axis", 0) == 1


def write_artifact(path: Path, model: onnx.ModelProto, card: Card) -> None:
    """Write an ONNX file with its card. Nodes that only the labels need come last in it, behind
    all else of the graph, so that the runtime can leave them out."""
    coarse = find_coarse(model)
    if coarse is None:
        write_atomically(path, append_card(model.SerializeToString(), card))
        return
    # Backwards, so that a node's readers are known before the node itself.
    needed = {coarse.tensor, *(each.name for each in model.graph.output if each.name != "labels")}
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
    rest = onnx.ModelProto()
    rest.CopyFrom(model)
    graph, end = rest.graph, onnx.GraphProto()
    kept = [node for node in graph.node if needed.intersection(node.output)]
    end.node.extend(node for node in graph.node if not needed.intersection(node.output))
    end.output.extend(graph.output)
    del graph.node[:], graph.output[:]
    graph.node.extend(kept)
    # protobuf messages that follow each other are merged as they are read: the graph field may be
    # cut at a byte into what the runtime always reads and the end that it may leave out.
    core, ending = graph.SerializeToString(), end.SerializeToString()
    rest.ClearField("graph")
    head = rest.SerializeToString()
    content = head + field(GRAPH, core + ending)
    # From the end: how long the field's header is depends on the graph's length.
    start = len(content) - len(core) - len(ending)
    parts = len(head), start, start + len(core)
    coarse = coarse.model_copy(update={"parts": parts})
    write_atomically(path, append_card(content, card.model_copy(update={"coarse": coarse})))


def with_scores(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """(a copy that also gives what labels are the argmax of, that output's name)."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    argmax = next((node for node in probe.graph.node if node.op_type == "ArgMax"), None)
    name = argmax.input[0] if argmax else "logits"
    if name not in {output.name for output in probe.graph.output}:
        probe.graph.output.append(helper.make_empty_tensor_value_info(name))
    return probe, name


def census(model: onnx.ModelProto) -> dict[str, int]:
    """Values held in the graph's weights and constants, by data type."""
    held: Counter[str] = Counter()
    for tensor in _tensors(model.graph):
        name = TensorProto.DataType.Name(tensor.data_type).lower()
        held[name] += math.prod(tensor.dims)
    return dict(held)


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


@dataclass(frozen=True)
class Layer:
    """A node with weights that can be int8. `node`: its name in the graph, `name`: of its weights
    in the network, `macs`: multiply-adds of a frame."""

    node: str
    name: str
    macs: int


def find_layers(graph: onnx.ModelProto) -> list[Layer]:
    """The layers that may become int8, in the graph's order.

    Tables are none, nor are layers that give the positions of a GridSample.
    """
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    kept = find_positions(graph)
    found: list[Layer] = []
    batch = find_batch(graph)
    for node, macs in node_macs(graph):
        weight = node.input[1]
        if node.name in kept or weight not in weights or TABLE in weight:
            continue
        name = _readable_name(weight, node.name)
        if any(layer.name == name for layer in found):  # weights that several layers share
            name = f"{name} ({node.name})"
        found.append(Layer(node.name, name, macs // batch))
    return found


def count_macs(graph: onnx.ModelProto) -> int:
    """Multiply-adds of a frame."""
    return sum(macs for _, macs in node_macs(graph)) // find_batch(graph)


def find_batch(graph: onnx.ModelProto) -> int:
    """How many frames an exported graph takes at once."""
    return int(graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value)


def _readable_name(weight: str, node: str) -> str:
    """`network.backbone.stem.0.conv.weight` -> `backbone.stem.0.conv`."""
    name = weight.removeprefix("network.").removesuffix(".weight")
    return name if name != weight else f"{node} ({weight})"


def find_positions(graph: onnx.ModelProto) -> set[str]:
    """Names of the nodes whose results are positions that a GridSample reads at."""
    makers = {output: node for node in graph.graph.node for output in node.output}
    found: set[str] = set()
    # Upwards from the positions, through what only moves or scales them, to the layers that made
    # them: int8 there would move whole pixels.
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


def with_peaks(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """(a copy that gives the largest magnitude of every float16 result; the result by output)."""
    # ONNX Runtime computes float16 graphs in float32 on CPUs: what overflows on a GPU comes out
    # right here, and only its magnitude tells.
    probe = onnx.shape_inference.infer_shapes(model)
    graph = probe.graph
    half = {
        value.name
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }
    results = [
        output
        for node in graph.node
        # Constants and what only moves values have no new peaks.
        if node.op_type not in ("Constant", "Shape", "Reshape", "Transpose", "Slice", "Identity")
        for output in node.output
        if output in half
    ]
    del graph.output[:]
    peaks: dict[str, str] = {}
    for number, result in enumerate(results):
        name = f"peak_{number}"
        graph.node.extend(
            [
                # In float32, where 65504 and what is beyond it are different numbers.
                helper.make_node("Cast", [result], [f"{name}/float"], to=TensorProto.FLOAT),
                helper.make_node("Abs", [f"{name}/float"], [f"{name}/size"]),
                helper.make_node("ReduceMax", [f"{name}/size"], [name], keepdims=0),
            ]
        )
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, []))
        peaks[name] = result
    return probe, peaks
