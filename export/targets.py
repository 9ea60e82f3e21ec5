"""Predict what an NPU will make of a network, by what its maker publishes, before it is tried.

Rules are data (`npu_rules.json`), each chip's with its public source; `npu_scores.json` holds a
maker's published times, and `score` says how many of our predictions they bear out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ExportError
from ..models.loading import Model
from ..models.onnx_graph import attributes, node_macs
from .graph import find_coarse, find_layers, to_onnx

HERE = Path(__file__).parent
STEPS = 8  # fewer steps of int8 than that, and a channel's weights are hardly told apart
SHOWN = 5
# Bytes to floats in the network's layout: a camera's driver or the compiler does them, too.
BEFORE = ("Cast", "Transpose", "Sub")


@dataclass(frozen=True)
class LayerRisk:
    """Of a layer's weights in int8 with one scale a layer: the share of its output channels that
    are left less than STEPS steps, and the largest channel's magnitude over the median's."""

    layer: str
    starved: float
    spread: float | None


@dataclass(frozen=True)
class NpuReport:
    """What a chip will make of a network.

    Attributes:
        device, chip, sources: the chip's name, its maker's, and where its rules are from.
        refused: kinds of operators that it does not take, why, and the nodes' names.
        unknown: kinds that the sources do not speak of.
        cut: tensors to end the chip's part at.
        share: of the multiply-adds before the cut.
        host: kinds of what is left to the host, with their number.
        exact_labels: whether that is the last resize and the argmax alone.
        int8_faster: whether int8 is expected to be faster than float there; None: not known.
        slow: why not.
        risks: layers that lose most to one scale a layer, the worst first.
    """

    device: str
    chip: str
    sources: tuple[str, ...]
    refused: dict[str, tuple[str, tuple[str, ...]]]
    unknown: tuple[str, ...]
    cut: tuple[str, ...]
    share: float
    host: dict[str, int]
    exact_labels: bool
    int8_faster: bool | None
    slow: tuple[str, ...]
    risks: tuple[LayerRisk, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def read_rules() -> dict[str, dict[str, Any]]:
    """The rules by the name of the device."""
    rules: dict[str, dict[str, Any]] = json.loads((HERE / "npu_rules.json").read_text())
    return rules


def predict(model: Model, size: tuple[int, int], device: str) -> NpuReport:
    """What a chip will make of a network, by the rules.

    Args:
        model: the network.
        size: (height, width) in pixels.
        device: a name in the rules.

    Raises:
        ExportError: the device is unknown.
    """
    if device not in read_rules():
        raise ExportError(f"--device is {', '.join(read_rules())}, not {device!r}")
    graph = to_onnx(model.network.eval(), size, "fp32", ("labels",))
    return judge(graph, device)


def judge(graph: onnx.ModelProto, device: str) -> NpuReport:
    """`predict`, of a float32 graph from frame to labels."""
    rules = read_rules()[device]
    graph = onnx.shape_inference.infer_shapes(graph, strict_mode=True)
    coarse = find_coarse(graph)
    end = coarse.tensor if coarse is not None else graph.graph.output[0].name
    inside = _find_ancestors(graph.graph, end)
    body = [node for node in graph.graph.node if node.name in inside]
    before = {node.name for node in body if _is_before(node, graph.graph)}
    refused: dict[str, tuple[str, list[str]]] = {}
    unknown: set[str] = set()
    for node in body:
        if node.name in before:
            continue
        why = _find_refusal(node, rules)
        if why == "":
            unknown.add(node.op_type)
        elif why is not None:
            refused.setdefault(node.op_type, (why, []))[1].append(node.name)
    barred = {name for _, names in refused.values() for name in names}
    on_chip = _reach(graph.graph, body, barred, before)
    cut = (end,) if not barred else _find_frontier(graph.graph, on_chip)
    work = {node.name: macs for node, macs in node_macs(graph)}
    done = sum(work.get(name, 0) for name in on_chip)
    left = Counter(node.op_type for node in graph.graph.node if node.name not in on_chip | before)
    slow = [
        f"{kinds} x {kind}: {rules['slow_in_int8'][kind]}"
        for kind, kinds in Counter(node.op_type for node in body).items()
        if kind in rules.get("slow_in_int8", {})
    ]
    return NpuReport(
        device, rules["chip"], tuple(rules["sources"]),
        {kind: (why, tuple(names)) for kind, (why, names) in refused.items()},
        tuple(sorted(unknown)), cut, done / max(1, sum(work.values())), dict(left),
        coarse is not None and not barred,
        not slow if "slow_in_int8" in rules else None, tuple(slow),
        tuple(measure_risks(graph)),
    )  # fmt: skip


def _find_refusal(node: onnx.NodeProto, rules: Mapping[str, Any]) -> str | None:
    """Why a chip does not take a node; None: it does; "": its sources do not say."""
    kind, facts = node.op_type, attributes(node)
    if kind in rules.get("refuses", ()):
        return "refused"
    if "takes" not in rules:
        return ""
    if kind not in rules["takes"]:
        return "not in its list"
    for name, allowed in rules.get("limits", {}).get(kind, {}).items():
        given = facts.get(name)
        text = given.decode() if isinstance(given, bytes) else given
        if text is not None and text not in allowed:
            return f"{name} {text}"
    only = rules.get("only", {}).get(kind)
    return f"only {only}" if only else None


def _is_before(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether a node only brings the frame's bytes into the network's layout."""
    makers = {name: each for each in graph.node for name in each.output}
    while node.op_type in BEFORE:
        name = node.input[0]
        if name == graph.input[0].name:
            return True
        if name not in makers:
            return False
        node = makers[name]
    return False


def _find_ancestors(graph: onnx.GraphProto, tensor: str) -> set[str]:
    """Names of the nodes that a tensor is made by."""
    needed, found = {tensor}, set()
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            found.add(node.name)
    return found


def _reach(
    graph: onnx.GraphProto, body: Iterable[onnx.NodeProto], barred: set[str], before: set[str]
) -> set[str]:
    """Names of the nodes that need nothing of the barred ones."""
    lost: set[str] = set()
    reached: set[str] = set()
    for node in body:
        if node.name in barred or lost.intersection(node.input):
            lost.update(node.output)
        elif node.name not in before:
            reached.add(node.name)
    return reached


def _find_frontier(graph: onnx.GraphProto, on_chip: set[str]) -> tuple[str, ...]:
    made = {name for node in graph.node if node.name in on_chip for name in node.output}
    read = {name for node in graph.node if node.name not in on_chip for name in node.input}
    return tuple(sorted(made & read))


def measure_risks(graph: onnx.ModelProto) -> list[LayerRisk]:
    """The layers that lose most to one scale for all of a layer's weights, the worst first."""
    held = {each.name: each for each in graph.graph.initializer}
    nodes = {node.name: node for node in graph.graph.node}
    risks = []
    for layer in find_layers(graph):
        weight = numpy_helper.to_array(held[nodes[layer.node].input[1]])
        node = nodes[layer.node]
        if node.op_type == "MatMul" or (
            node.op_type == "Gemm" and not attributes(node).get("transB", 0)
        ):
            weight = weight.T
        channels = np.abs(weight.reshape(len(weight), -1)).max(1)
        largest, middle = float(channels.max()), float(np.median(channels))
        starved = float(np.mean(channels < STEPS * largest / 127))
        risks.append(LayerRisk(layer.name, starved, largest / middle if middle else None))
    return sorted(risks, key=lambda risk: (-risk.starved, -(risk.spread or math.inf)))[:SHOWN]


def score(size: tuple[int, int] = (256, 512)) -> list[dict[str, Any]]:
    """Predictions beside a maker's published times: is int8 faster there?"""
    from ..models.loading import load_model

    published = json.loads((HERE / "npu_scores.json").read_text())
    rows = []
    for name, ms in published["ms"].items():
        ours = predict(load_model(name), size, "qnn").int8_faster
        speedup = ms["float"] / ms["w8a8"]
        rows.append(
            {"model": name, "predicted_faster": ours, "published_speedup": speedup,
             "right": ours == (speedup > 1)}
        )  # fmt: skip
    return rows
