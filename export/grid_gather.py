"""GridSample as gathers of whole pixels, which ONNX Runtime's CPU kernels do faster.

Its GridSample (1.31.1) finds the four neighbors of a position anew for every channel. Here channels
come last, so that a neighbor is one piece of memory, and positions are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..models.onnx_graph import attributes

EXACT = 2**24  # whole numbers that float32 holds
KINDS = {"mode": ("bilinear", "linear"), "padding_mode": ("zeros", "border")}


def gather_samples(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace every bilinear GridSample of images, padded with zeros or the border.

    Args:
        model: float where it samples, with inputs of known shape; left as it is.

    Returns:
        the same function up to the last bit of its sums.
    """
    made = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    shapes = {
        each.name: [side.dim_value for side in each.type.tensor_type.shape.dim]
        for each in (*made.graph.value_info, *made.graph.input)
    }
    for node in [each for each in made.graph.node if each.op_type == "GridSample"]:
        image, grid = (shapes.get(name, []) for name in node.input)
        if len(image) == len(grid) == 4 and min(*image, *grid) > 0 and _is_known(node, image):
            nodes = _Gathers(made.graph, node, (image[0], image[1], image[2], image[3])).build(grid)
            place = list(made.graph.node).index(node)
            made.graph.node.remove(node)
            for offset, each in enumerate(nodes):
                made.graph.node.insert(place + offset, each)
    del made.graph.value_info[:]
    return made


def _is_known(node: onnx.NodeProto, image: Sequence[int]) -> bool:
    if image[0] * image[2] * image[3] > EXACT:
        return False
    facts = {"mode": b"bilinear", "padding_mode": b"zeros"} | attributes(node)
    return all(facts[name].decode() in allowed for name, allowed in KINDS.items())


class _Gathers:
    """The nodes that stand for one GridSample of an image (N, C, H, W)."""

    def __init__(
        self, graph: onnx.GraphProto, node: onnx.NodeProto, image: tuple[int, int, int, int]
    ):
        self.graph, self.node, self.image = graph, node, image
        self.made: list[onnx.NodeProto] = []
        facts = attributes(node)
        self.aligned = bool(facts.get("align_corners", 0))
        self.border = facts.get("padding_mode", b"zeros") == b"border"

    def _add(self, kind: str, *inputs: str, **facts: Any) -> str:
        name = f"{self.node.name}/gather_{len(self.made)}"
        self.made.append(helper.make_node(kind, inputs, [name], name=name, **facts))
        return name

    def _keep(self, values: object) -> str:
        name = f"{self.node.name}/constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def build(self, grid: list[int]) -> list[onnx.NodeProto]:
        """grid: shape of the positions, (N, h, w, 2), x before y, -1 to 1."""
        batch, channels, height, width = self.image
        last = self._add("Transpose", self.node.input[0], perm=[0, 2, 3, 1])
        pixels = self._add("Reshape", last, self._keep(np.array([-1, channels], np.int64)))
        sides = np.array([[width, height]], np.float32)
        one = self._keep(np.float32(1))
        places = self._add("Reshape", self.node.input[1], self._keep(np.array([-1, 2], np.int64)))
        scale = (sides - 1 if self.aligned else sides) / 2
        places = self._add("Mul", self._add("Add", places, one), self._keep(scale))
        if not self.aligned:
            places = self._add("Sub", places, self._keep(np.float32(0.5)))
        ends = self._keep(sides - 1)
        zero = self._keep(np.float32(0))
        if self.border:
            places = self._add("Min", self._add("Max", places, zero), ends)
        low = self._add("Floor", places)
        share = self._add("Sub", places, low)
        starts = np.repeat(np.arange(batch, dtype=np.float32), grid[1] * grid[2]) * height * width
        start = self._keep(starts.reshape(-1, 1))
        steps = self._keep(np.array([[1, width]], np.float32))
        halves = self._keep(np.array([1, 1], np.int64))
        corners = []
        for place, weight in (
            (low, self._add("Sub", one, share)), (self._add("Add", low, one), share)
        ):  # fmt: skip
            inside = self._add("Min", self._add("Max", place, zero), ends)
            # Beside the image there is nothing: what is read there instead counts for nothing.
            known = self._add("Cast", self._add("Equal", inside, place), to=TensorProto.FLOAT)
            corners.append([
                *self._split(self._add("Mul", weight, known), halves),
                *self._split(self._add("Mul", inside, steps), halves),
            ])  # fmt: skip
        total = ""
        flat = self._keep(np.array([-1], np.int64))
        for _, down, _, row in corners:
            row = self._add("Add", row, start)
            for across, _, column, _ in corners:
                place = self._add("Reshape", self._add("Add", row, column), flat)
                place = self._add("Cast", place, to=TensorProto.INT32)
                found = self._add("Gather", pixels, place, axis=0)
                part = self._add("Mul", found, self._add("Mul", down, across))
                total = self._add("Add", total, part) if total else part
        shape = self._keep(np.array([*grid[:3], channels], np.int64))
        back = self._add("Reshape", total, shape)
        self._add("Transpose", back, perm=[0, 3, 1, 2])
        self.made[-1].output[0] = self.node.output[0]
        return self.made

    def _split(self, pairs: str, halves: str) -> tuple[str, str]:
        name = self._add("Split", pairs, halves, axis=1)
        self.made[-1].output.append(f"{name}_y")
        return name, f"{name}_y"
