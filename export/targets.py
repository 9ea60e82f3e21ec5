"""Predict what an NPU will make of a network, by what its maker publishes, before it is tried.

Rules are data (`npu_rules.json`), each chip's with its public source; `npu_scores.json` holds a
maker's published times, and `score` says how many of our predictions they bear out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..data.letterbox import fit_frame
from ..errors import ExportError
from ..models.loading import Model
from ..models.onnx_graph import attributes, node_macs
from .calibrate import Calibration, pick_frames
from .graph import find_coarse, find_layers, to_onnx
from .reference import read_shipped_frames
from .rounding_risk import LEVELS, expect_sqnr, measure_signals, spread_of, weights_of
from .stored_ranges import find_stored_ranges

HERE = Path(__file__).parent
STEPS = 8  # fewer steps of int8 than that, and a channel's weights are hardly told apart
# Bytes to floats in the network's layout: a camera's driver or the compiler does them, too.
BEFORE = ("Cast", "Transpose", "Sub")


@dataclass(frozen=True)
class LayerRisk:
    """What a layer may lose in int8.

    Attributes:
        layer: its name.
        starved: of its weights with one scale a layer, the share of output channels that are left
            less than STEPS steps.
        spread: the largest magnitude of such a channel over the median channel's.
        input_spread: likewise of what it reads, over frames; None where none were measured.
        sqnr_db: signal to rounding noise of its result that `expect_sqnr` expects; likewise.
    """

    layer: str
    starved: float
    spread: float | None
    input_spread: float | None = None
    sqnr_db: float | None = None


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
        risks: of all layers, those that lose most to one scale a layer first.
        measured: the frames that say what layers read; "" if there were none.
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
    measured: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@cache
def read_rules() -> dict[str, dict[str, Any]]:
    """The rules by the name of the device."""
    rules: dict[str, dict[str, Any]] = json.loads((HERE / "npu_rules.json").read_text())
    return rules


@dataclass(frozen=True)
class MeasuredFrames:
    """Frames (H, W, 3) uint8 BGR of the network's size; what they are; calibrated magnitudes by
    tensor, those that it lacks are the largest on the frames."""

    images: tuple[NDArray[np.uint8], ...]
    origin: str
    ranges: Mapping[str, float]


def gather_frames(model: Model, size: tuple[int, int], calib: Path | None) -> MeasuredFrames | None:
    """Real frames to measure what layers read: of a folder, or those that ship with the ranges of
    the weights; None for weights without.

    Raises:
        ExportError: the folder holds too few frames that differ.
    """
    if calib is not None:
        picked = pick_frames(Calibration(calib)).used
        named, origin, ranges = picked, f"{len(picked)} frames of {calib}", {}
    elif stored := find_stored_ranges(model):
        named, ranges = list(read_shipped_frames().frames), stored.ranges
        origin = f"ranges of {stored.source}, spread on {len(named)} shipped frames"
    else:
        return None
    images = tuple(fit_frame(image, size, model.fit, model.pad_color) for _, image in named)
    return MeasuredFrames(images, origin, ranges)


def predict(
    model: Model, size: tuple[int, int], device: str, calib: Path | None = None
) -> NpuReport:
    """What a chip will make of a network, by the rules.

    Args:
        model: the network.
        size: (height, width) in pixels.
        device: a name in the rules.
        calib: folder of real frames, that layers' ranges are measured on; by default those that
            ship with the weights.

    Raises:
        ExportError: the device is unknown, or the folder's frames are too few.
    """
    check_device(device)
    frames = gather_frames(model, size, calib)
    graph = to_onnx(model.network.eval(), size, "fp32", ("labels",))
    return judge(graph, device, frames)


def check_device(device: str) -> None:
    """Raises ExportError if there are no rules for it."""
    if device not in read_rules():
        raise ExportError(f"--device is {', '.join(read_rules())}, not {device!r}")


def judge(graph: onnx.ModelProto, device: str, frames: MeasuredFrames | None = None) -> NpuReport:
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
        tuple(measure_risks(graph, frames)), frames.origin if frames else "",
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


def measure_risks(graph: onnx.ModelProto, frames: MeasuredFrames | None = None) -> list[LayerRisk]:
    """What layers may lose in int8, those that lose most to one scale for all weights first.

    Args:
        graph: float32, with the shapes of its tensors.
        frames: that show what layers read.
    """
    layers = find_layers(graph)
    signals = measure_signals(graph, layers, frames.images) if frames else {}
    sqnr = expect_sqnr(graph, layers, frames.ranges, signals) if frames else {}
    risks = []
    for layer in layers:
        channels = np.abs(weights_of(graph, layer)).max((1, 2))
        starved = float(np.mean(channels < STEPS * float(channels.max()) / LEVELS))
        read = signals.get(layer.node)
        risks.append(LayerRisk(
            layer.name, starved, spread_of(channels), spread_of(read.peak) if read else None,
            sqnr.get(layer.node),
        ))  # fmt: skip
    return sorted(risks, key=lambda risk: (-risk.starved, -(risk.spread or math.inf)))


def pick_worst(risks: Sequence[LayerRisk], most: int = 5) -> list[LayerRisk]:
    """Those with the least expected signal to noise, and those that lose most to one scale."""
    noisy = sorted(risks, key=lambda risk: math.inf if risk.sqnr_db is None else risk.sqnr_db)
    return list(dict.fromkeys([*(r for r in noisy[:most] if r.sqnr_db is not None), *risks[:most]]))


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
