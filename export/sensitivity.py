"""Sensitivity to int8: all layers ranked in one pass, the worst ones tried one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..runtime.artifact import Card
from ..runtime.batches import stack_batches
from .graph import Layer, find_batch
from .parity import open_session, prove_graph
from .reference import ReferenceOutputs

FRAMES = 4  # that layers are ranked by; the bar itself is held on all of them
ALONE = 16  # layers that are tried alone, which takes a run of the network each
ROUNDED = "/int8"  # suffix of a layer's result with rounded inputs


@dataclass(frozen=True)
class LayerCost:
    """What int8 costs in one layer.

    Attributes:
        layer, macs: its name, and its multiply-adds for a frame.
        noise: root mean square error of its result over that of the result, from rounding its own
            input and weights.
        logits_error, labels_moved: of the network's answers with this layer alone in int8, for the
            noisiest layers.
        excluded: left in float.
    """

    layer: str
    macs: int
    noise: float
    logits_error: float | None = None
    labels_moved: float | None = None
    excluded: bool = False


def measure_costs(
    plain: onnx.ModelProto,
    build: Callable[[Iterable[Layer]], onnx.ModelProto],
    layers: Sequence[Layer],
    expected: ReferenceOutputs,
    card: Card,
) -> list[LayerCost]:
    """The costs of `layers`, worst first; `build` gives the graph with some of them in int8."""
    # Noise of all layers takes one pass, each trial alone a pass of its own: so the first picks
    # which.
    few = expected.sample(max(FRAMES, card.batch))
    noises = measure_noise(plain, build(layers), layers, list(few.reference.frames))
    noisiest = sorted(layers, key=lambda layer: -noises[layer.node])
    tried = []
    for layer in noisiest[:ALONE]:
        result = prove_graph(build([layer]), card, few)
        assert result.agreement is not None
        cost = LayerCost(layer.name, layer.macs, noises[layer.node])
        tried.append(
            replace(cost, logits_error=result.logits_error, labels_moved=1 - result.agreement)
        )
    rest = [LayerCost(layer.name, layer.macs, noises[layer.node]) for layer in noisiest[ALONE:]]
    return sorted(tried, key=lambda cost: -(cost.logits_error or 0)) + rest


def mark_excluded(costs: Iterable[LayerCost], excluded: Sequence[str]) -> tuple[LayerCost, ...]:
    """The costs, each saying whether its layer was left in float."""
    return tuple(replace(cost, excluded=cost.layer in excluded) for cost in costs)


def measure_noise(
    plain: onnx.ModelProto,
    rounded: onnx.ModelProto,
    layers: Sequence[Layer],
    frames: Sequence[NDArray[np.uint8]],
) -> dict[str, float]:
    """Relative error of each layer's own rounding by the layer's node, in one run a frame.

    The float graph runs, and each layer a second time beside it on the rounded form of the same
    input, so that no layer sees the errors of those before it.
    """
    nodes = [layer.node for layer in layers]
    session = open_session(_with_rounded_twins(plain, rounded, nodes))
    names = [output.name for output in session.get_outputs()]
    sums = np.zeros(len(names))
    for images in stack_batches(frames, find_batch(plain)):
        # Energies of all frames are added before the ratio, so that a dark frame does not decide
        # it.
        sums += np.array([float(v) for v in session.run(names, {"frame": images})])
    total = dict(zip(names, sums.tolist(), strict=True))
    return {
        node: float(np.sqrt(total[f"{node}/error"] / max(total[f"{node}/energy"], 1e-30)))
        for node in nodes
    }


def _with_rounded_twins(
    plain: onnx.ModelProto, rounded: onnx.ModelProto, nodes: Sequence[str]
) -> onnx.ModelProto:
    """The float graph, a rounded copy of each node, and the energies of results and errors."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    graph = model.graph
    have = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(t for t in rounded.graph.initializer if t.name not in have)
    model.ir_version = rounded.ir_version  # fp8 is of a later one
    del graph.output[:], model.opset_import[:]
    model.opset_import.extend(rounded.opset_import)
    for node in rounded.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            graph.node.add().CopyFrom(node)
    for node in rounded.graph.node:
        if node.name not in nodes:
            continue
        result, twin = node.output[0], graph.node.add()
        twin.CopyFrom(node)
        twin.name, twin.output[0] = node.name + ROUNDED, result + ROUNDED
        graph.node.append(
            helper.make_node("Sub", [result, result + ROUNDED], [f"{node.name}/difference"])
        )
        for of, name in ((f"{node.name}/difference", "error"), (result, "energy")):
            output = f"{node.name}/{name}"
            graph.node.append(helper.make_node("ReduceSumSquare", [of], [output], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, []))
    return model
