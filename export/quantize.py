"""Quantization: a float graph becomes int8 or fp8, but for layers that cost too much accuracy."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process

from ..data.files import write_atomically
from ..data.letterbox import fit_frame
from ..errors import ProofError
from ..models.onnx_graph import KINDS
from ..reporting import Progress
from ..runtime.artifact import Card, Int8Facts
from . import parity, sensitivity
from .calibrate import AUTO, CalibrationFrames, as_spans, measure_ranges, silence_quantizer
from .conditions import text_of
from .float8 import to_float8
from .graph import Layer, count_macs, find_layers
from .integer_form import IntegerForm
from .reference import ReferenceOutputs
from .stored_ranges import StoredRanges

OPTIONS = {
    # What layers read is rounded, not what they give: the sums behind a layer and their ReLU work
    # on its full result, and TensorRT and OpenVINO fuse them with it.
    "OpTypesToExcludeOutputQuantization": list(KINDS),
    "ActivationSymmetric": True,  # TensorRT knows no zero point
    "WeightSymmetric": True,  # likewise
    "QuantizeBias": False,  # TensorRT reads no int32 biases
    "MatMulConstBOnly": True,  # attention's products of two activations stay in float
    "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},  # its columns are output channels
}
LEAST_SHARE = 0.5  # of the multiply-adds; below, the graph is not int8 but float with int8 in it


class QuantizeError(ProofError):
    """No rounded graph of this network holds the bar; the message says how far it came."""


class LayerFacts(TypedDict):
    """Those of Int8Facts that follow from which layers are in int8."""

    layers: int
    excluded: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class SizedGraph:
    """The float32 graph of the whole job at one size, with its card, and the float32 network's
    answers on frames that calibration does not see."""

    graph: onnx.ModelProto
    card: Card
    expected: ReferenceOutputs

    def round(self, layers: Iterable[Layer], ranges: Mapping[str, float]) -> onnx.ModelProto:
        """The graph with these layers rounded, known by name, whatever size they are of."""
        wanted = {layer.name for layer in layers}
        nodes = [layer.node for layer in find_layers(self.graph) if layer.name in wanted]
        return _round(self.graph, nodes, as_spans(ranges), self.card)

    def prove(self, rounded: onnx.ModelProto, progress: Progress) -> parity.ParityResult:
        return parity.prove_graph(rounded, self.card, self.expected, progress)


@dataclass(frozen=True)
class QuantizedGraphs:
    """The int8 or fp8 graph of each size, what the card says of them, what each layer costs, and
    the ranges of the tensors that were measured, by name: those of the graphs, and a function that
    gives those for forms whose bytes may be unsigned."""

    graphs: Sequence[onnx.ModelProto]
    facts: Int8Facts
    costs: tuple[sensitivity.LayerCost, ...]
    ranges: dict[str, float]
    find_unsigned_ranges: Callable[[], dict[str, float]]


def quantize(
    sizes: Sequence[SizedGraph],
    calibration: CalibrationFrames,
    progress: Progress = lambda step, share: None,
) -> QuantizedGraphs:
    """The int8 or fp8 form of a float32 graph, with as few layers in float as hold its bar.

    Of several sizes, ranges are the widest of all, the layers the same at each, and the bar holds
    at each.

    Args:
        sizes: one network's graph at each size, one or several; which layers are tried first is
            measured at the first.
        calibration: frames of any size, and the method.
        progress: called with what is being done and the share of it that is done, 0..1.

    Raises:
        QuantizeError: the bar does not hold while layers with half of the multiply-adds are
            rounded.
    """
    plains = [replace(each, graph=infer_shapes(each.graph)) for each in sizes]
    first, card = plains[0], plains[0].card
    found = find_layers(first.graph)
    if not found:
        raise QuantizeError(f"{card.model} has no layer that {card.precision} could hold")
    auto = calibration.method == AUTO
    method = "percentile" if auto else calibration.method
    ranges = _measure_widest(plains, calibration, method, progress)

    def find_unsigned_ranges() -> dict[str, float]:
        return _measure_widest(plains, calibration, "minmax", progress) if auto else ranges

    graphs, kept, costs = _search(plains, found, ranges, progress)
    facts = Int8Facts(
        method=method,
        frames=len(calibration.used),
        held_out=len(first.expected.reference.frames),
        **describe_layers(first.graph, found, kept),
    )
    _finish(graphs, card)
    marked = sensitivity.mark_excluded(costs, facts.excluded)
    return QuantizedGraphs(graphs, facts, marked, ranges, find_unsigned_ranges)


def _measure_widest(
    plains: Sequence[SizedGraph], calibration: CalibrationFrames, method: str, progress: Progress
) -> dict[str, float]:
    """The range of each tensor, the widest of all sizes."""
    ranges: dict[str, float] = {}
    for plain in plains:
        what = f"calibration ({method}) on {len(calibration.used)} frames"
        progress(f"{what}, {text_of(plain.card.size)}" if len(plains) > 1 else what, 0.0)
        # Fitted as the runtime will, black bars included: ranges are of what the network reads.
        card = plain.card
        frames = [fit_frame(f, card.size, card.fit, card.pad_color) for _, f in calibration.used]
        for name, span in measure_ranges(plain.graph, KINDS, frames, method).items():
            # Of shape () or (1,), by the method.
            ranges[name] = max(ranges.get(name, 0.0), float(np.max(span.range_value[1])))
    return ranges


def _search(
    plains: Sequence[SizedGraph],
    found: list[Layer],
    ranges: Mapping[str, float],
    progress: Progress,
) -> tuple[list[onnx.ModelProto], list[Layer], list[sensitivity.LayerCost]]:
    """(the graphs with as few layers in float as hold the bar, those that are not, all costs)."""
    first = plains[0]

    def build(chosen: Iterable[Layer]) -> list[onnx.ModelProto]:
        layers = list(chosen)
        return [plain.round(layers, ranges) for plain in plains]

    progress(f"sensitivity of {len(found)} layers", 0.0)
    costs = sensitivity.measure_costs(
        first.graph,
        lambda chosen: first.round(chosen, ranges),
        found,
        first.expected,
        first.card,
    )
    order = [cost.layer for cost in costs]
    worst_first = sorted(found, key=lambda layer: order.index(layer.name))
    prove = partial(_prove_all, plains)
    return *_hold_the_bar(build, prove, worst_first, first.card, progress), costs


def _round(
    plain: onnx.ModelProto, nodes: list[str], spans: TensorsData, card: Card
) -> onnx.ModelProto:
    """`plain` with what `nodes` read rounded to the card's precision."""
    made = insert_rounding(plain, nodes, spans)
    return to_float8(made, plain) if card.precision == "fp8" and nodes else made


def _finish(graphs: Sequence[onnx.ModelProto], card: Card) -> None:
    # TensorRT looks for fp8's rounding right before the layer that reads it.
    for graph in graphs if card.precision == "int8" else ():
        move_rounding_before_pools(graph)


def _prove_all(
    plains: Sequence[SizedGraph], graphs: Sequence[onnx.ModelProto], progress: Progress
) -> parity.ParityResult:
    """The first result that failed, else the last."""
    for plain, graph in zip(plains, graphs, strict=True):
        result = plain.prove(graph, progress)
        if not result.passed:
            break
    return result


def quantize_by_stored_ranges(
    sizes: Sequence[SizedGraph],
    stored: StoredRanges,
    progress: Progress = lambda step, share: None,
) -> QuantizedGraphs:
    """The int8 or fp8 form of a float32 graph by the ranges that ship with its weights.

    For int8 nothing is searched for: it takes one proof a size, where `quantize` takes dozens.
    Which layers stay in float for fp8 is not stored, and is searched for.

    Args:
        sizes: the graph at each size, one or several.
        stored: ranges, and the layers that stay in float.
        progress: called with what is being done and the share of it that is done, 0..1.

    Raises:
        QuantizeError: the ranges are of other layers, or the bar does not hold with them.
    """
    plains = [replace(each, graph=infer_shapes(each.graph)) for each in sizes]
    first, card = plains[0], plains[0].card
    found = find_layers(first.graph)
    kept = [layer for layer in found if layer.name not in stored.in_float]
    makers = {node.name: node for node in first.graph.graph.node}
    values = {makers[layer.node].input[0] for layer in kept}
    if unknown := sorted(values - stored.ranges.keys()):
        raise QuantizeError(
            f"the ranges that ship with {card.weights_from} lack {unknown[0]} and "
            f"{len(unknown) - 1} others: calibrate on frames of your own, --calib FOLDER"
        )
    costs: list[sensitivity.LayerCost] = []
    if card.precision == "fp8":
        known = [layer for layer in found if makers[layer.node].input[0] in stored.ranges]
        graphs, kept, costs = _search(plains, known, stored.ranges, progress)
    else:
        graphs = [plain.round(kept, stored.ranges) for plain in plains]
    for plain, made in zip(plains, graphs, strict=True):
        result = plain.prove(
            made, lambda frame, share: progress(f"proof of {card.precision}, {frame}", share)
        )
        if not result.passed:
            raise QuantizeError(
                f"{card.precision} by the ranges that ship with {card.weights_from} falls below "
                f"its bar at {text_of(plain.card.size)}: {'; '.join(result.faults)}"
            )
    facts = Int8Facts(
        method=stored.method,
        frames=stored.frames,
        held_out=len(first.expected.reference.frames),
        **describe_layers(first.graph, found, kept),
    )
    _finish(graphs, card)
    marked = sensitivity.mark_excluded(costs, facts.excluded)
    return QuantizedGraphs(graphs, facts, marked, stored.ranges, lambda: stored.ranges)


def check_integer_form(graph: onnx.ModelProto, card: Card) -> None:
    """Ask, before anything is measured, whether ONNX Runtime's own form has enough in integers.

    Raises:
        QuantizeError: layers with half of the multiply-adds would stay in float.
    """
    plain = infer_shapes(graph)
    found = find_layers(plain)
    every = dict.fromkeys((name for node in plain.graph.node for name in node.output), 1.0)
    done = IntegerForm(plain, {layer.node for layer in found}, every).build()[1]
    share = sum(layer.macs for layer in found if layer.node in done) / max(1, count_macs(plain))
    if share < LEAST_SHARE:
        raise QuantizeError(
            f"ONNX Runtime's own form of int8 knows convolutions alone, and of {card.model} it "
            f"would hold {share:.0%} of the multiply-adds, where {LEAST_SHARE:.0%} are the least: "
            "use --to onnx or --to openvino for int8, or --precision fp32"
        )


def to_integer_form(
    graph: onnx.ModelProto,
    facts: Int8Facts,
    ranges: Mapping[str, float],
    reads_bytes: bool,
    also: Collection[str] = (),
) -> tuple[onnx.ModelProto, Int8Facts]:
    """A float32 graph in int8 as ONNX Runtime's kernels want it, and what its card says then.

    Args:
        graph: in float32.
        facts: of the graph in int8.
        ranges: largest magnitude by tensor.
        reads_bytes: whether the first layer may take the frame as it comes.
        also: tensors to round besides, of known range.
    """
    plain = infer_shapes(graph)
    found = find_layers(plain)
    nodes = {layer.node for layer in found if layer.name not in facts.excluded}
    made, done = IntegerForm(plain, nodes, ranges, reads_bytes, also).build()
    kept = [layer for layer in found if layer.node in done]
    described = describe_layers(plain, found, kept)
    return _clean(made), facts.model_copy(update=dict(described))


def describe_layers(
    plain: onnx.ModelProto, found: Sequence[Layer], kept: Sequence[Layer]
) -> LayerFacts:
    """What a card says of the layers in int8: how many, which not, and their share of the work."""
    return {
        "layers": len(kept),
        "excluded": tuple(layer.name for layer in found if layer not in kept),
        "share": sum(layer.macs for layer in kept) / max(1, count_macs(plain)),
    }


def move_rounding_before_pools(graph: onnx.ModelProto) -> None:
    """Let max poolings whose results are only read rounded take the largest of rounded values.

    The results are the same, bit for bit, since rounding keeps the order.
    """
    nodes = graph.graph.node
    for pool in [node for node in nodes if node.op_type == "MaxPool"]:
        roundings = _readers(graph, pool.output[0])
        # With the indices as a second output, or a reader in float, the pooling needs the full
        # values.
        if not roundings or len(pool.output) > 1 or not _one_rounding(roundings):
            continue
        facts = list(roundings[0].input[1:])
        rounded, early = (f"{pool.name}/{step}" for step in ("rounded", "early"))
        for kind, source, result in (
            ("QuantizeLinear", pool.input[0], rounded),
            ("DequantizeLinear", rounded, early),
        ):
            nodes.append(onnx.helper.make_node(kind, [source, *facts], [result], name=result))
        # The layer before then writes a byte for each value: at csfcn_tiny's stem a quarter of 64
        # MiB. In OpenVINO (bf16 beside int8, 512x1024, two cores) a frame took 32.0 instead of 37.4
        # ms. ONNX Runtime computes these layers in float and gains nothing.
        pool.input[0] = early
        for rounding in roundings:
            _remove_rounding(graph, rounding, pool.output[0])
    ONNXModel(graph).topological_sort()


def _readers(graph: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if value in node.input]


def _one_rounding(nodes: Sequence[onnx.NodeProto]) -> bool:
    """Whether all of them round, and alike."""
    alike = {tuple(node.input) for node in nodes}
    return len(alike) == 1 and all(node.op_type == "QuantizeLinear" for node in nodes)


def _remove_rounding(graph: onnx.ModelProto, rounding: onnx.NodeProto, value: str) -> None:
    """Take out a rounding with what brings it back, whose readers get `value`."""
    for back in _readers(graph, rounding.output[0]):
        for reader in _readers(graph, back.output[0]):
            reader.input[list(reader.input).index(back.output[0])] = value
        graph.graph.node.remove(back)
    graph.graph.node.remove(rounding)


def infer_shapes(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes that the quantizer asks for, and otherwise unchanged."""
    with tempfile.TemporaryDirectory() as folder, silence_quantizer():
        source, target = Path(folder) / "graph.onnx", Path(folder) / "prepared.onnx"
        write_atomically(source, graph.SerializeToString())
        # Without its optimization, which would merge the casts that TensorRT needs.
        quant_pre_process(source, target, skip_optimization=True, skip_symbolic_shape=True)
        return onnx.load(target)


def insert_rounding(
    plain: onnx.ModelProto, nodes: list[str], spans: TensorsData
) -> onnx.ModelProto:
    """`plain` with QuantizeLinear and DequantizeLinear around what `nodes` read, symmetrically."""
    if not nodes:
        return plain
    with silence_quantizer():
        quantizer = quantization.QDQQuantizer(
            # The quantizer changes the model that it is given.
            copy.deepcopy(plain),
            True,  # a scale for each output channel
            False,  # all 8 bits
            quantization.QuantType.QInt8,
            quantization.QuantType.QInt8,
            spans,
            nodes,
            [],
            list(KINDS),
            dict(OPTIONS),
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    model: onnx.ModelProto = quantizer.model.model
    _restore_float_inputs(model, set(nodes))
    return _clean(model)


def _restore_float_inputs(model: onnx.ModelProto, rounded: set[str]) -> None:
    """Give layers that stay in float what they read in full: the quantizer rounds a tensor for all
    its readers if one of them is in int8."""
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type not in KINDS or node.name in rounded:
            continue
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type == "DequantizeLinear":
            node.input[0] = makers[maker.input[0]].input[0]


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.metadata_props[:]
    del model.graph.value_info[:]
    model.producer_name = "rtseg"
    onnx.checker.check_model(model, full_check=True)
    return model


def _hold_the_bar(
    build: Callable[[Iterable[Layer]], list[onnx.ModelProto]],
    prove: Callable[[list[onnx.ModelProto], Progress], parity.ParityResult],
    worst_first: list[Layer],
    card: Card,
    progress: Progress,
) -> tuple[list[onnx.ModelProto], list[Layer]]:
    """The graphs with the fewest of the worst layers in float that pass; found by doubling their
    number, then halving the gap."""
    tried: dict[int, tuple[list[onnx.ModelProto], parity.ParityResult]] = {}

    def passes(count: int) -> bool:
        if count not in tried:
            what = f"proof with {count} of {len(worst_first)} layers in float"
            progress(what, 0.0)
            graphs = build(worst_first[count:])
            result = prove(graphs, lambda frame, share: progress(f"{what}, {frame}", share))
            tried[count] = graphs, result
        return tried[count][1].passed

    most = _most_left_out(worst_first)
    # `high` passes at the end and `low` does not: -1 layers in float is less than nothing.
    low, high = -1, 0
    while not passes(high):
        if high == most:
            left_out = worst_first[:high]
            raise QuantizeError(_explain(tried[high][1], left_out, len(worst_first), card))
        low, high = high, min(most, max(1, 2 * high))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return tried[high][0], worst_first[high:]


def _most_left_out(worst_first: list[Layer]) -> int:
    """How many layers may be in float while those in int8 do LEAST_SHARE of the work."""
    left = sum(layer.macs for layer in worst_first)
    least = LEAST_SHARE * left
    for count, layer in enumerate(worst_first):
        left -= layer.macs
        if left < least:
            return count
    return len(worst_first)


def _explain(result: parity.ParityResult, left_out: list[Layer], count: int, card: Card) -> str:
    names = ", ".join(layer.name for layer in left_out[:5]) + ("..." if len(left_out) > 5 else "")
    other = "int8 or fp16" if card.precision == "fp8" else "fp16"
    tune = ", or fine-tune first: rtseg train RECIPE weights=FILE quantize=int8"
    return (
        f"{card.precision} does not hold its bar even with the {len(left_out)} costliest of "
        f"{count} layers in float ({names}): {'; '.join(result.faults)}. Use {other}, calibrate on "
        "more frames of more places, try another --calibration"
        f"{tune if card.precision == 'int8' else ''}"
    )
