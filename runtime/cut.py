"""Cuts an OpenVINO model before its last enlargement, so that `argmax.py` can make the labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import openvino

from .artifact import Enlargement
from .cut_onnx import COARSE, RESIZES

BESIDE_LABELS = ("Convert", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "DepthToSpace")


@dataclass(frozen=True)
class Coarse:
    """shape (1, channels, h, w) of the logits that the model now gives, and what enlarges them."""

    shape: tuple[int, ...]
    enlarge: Enlargement


def cut_labels(
    model: openvino.Model, size: tuple[int, int], shuffled: bool = True
) -> Coarse | None:
    """Let `model` give the logits that its last enlargement reads, as the output COARSE, in place
    of its labels (1, H, W).

    None, and the model as it was, where the labels are made of something else than the argmax of a
    bilinear resize or, if `shuffled`, of pixels still to be shuffled.
    """
    result = _result(model, "labels")
    argmax = _argmax_above(result) if result is not None else None
    if result is None or argmax is None:
        return None
    found = _resized(argmax, size) or (_shuffled(argmax, size) if shuffled else None)
    if found is None:
        return None
    source, coarse = found
    source.get_tensor().add_names({COARSE})
    model.add_outputs(source)
    model.remove_result(result)
    return coarse


def _result(model: openvino.Model, name: str) -> Any:
    for result in model.get_results():
        if name in result.input_value(0).get_names():
            return result
    return None


def _argmax_above(result: Any) -> Any:
    """The node that chooses the classes, from which only type and shape change to the labels."""
    node = result.input_value(0).get_node()
    while node.get_type_name() in BESIDE_LABELS or _picks_channel(node):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "TopK" and _axis(node) == 1 else None


def _picks_channel(node: Any) -> bool:
    """Whether it takes the only channel out of (1, 1, H, W)."""
    if node.get_type_name() != "Gather":
        return False
    source, axis = node.input_value(0), node.input_value(2).get_node()
    one = len(source.get_shape()) == 4 and source.get_shape()[1] == 1
    return one and axis.get_type_name() == "Constant" and int(axis.get_data().item()) == 1


def _axis(topk: Any) -> int:
    return int(topk.get_attributes()["axis"])


def _resized(argmax: Any, size: tuple[int, int]) -> tuple[Any, Coarse] | None:
    resize = argmax.input_value(0).get_node()
    if resize.get_type_name() != "Interpolate":
        return None
    source, facts = resize.input_value(0), resize.get_attributes()
    enlarge = RESIZES.get(facts["coordinate_transformation_mode"])
    shapes = tuple(source.get_shape()), tuple(resize.output(0).get_shape())
    same = len(shapes[0]) == 4 and shapes[1] == (*shapes[0][:2], *size)
    padded = any(facts.get("pads_begin", ())) or any(facts.get("pads_end", ()))
    linear = facts["mode"] in ("linear", "linear_onnx")
    if enlarge is None or not same or padded or not linear:
        return None
    return source, Coarse(shapes[0], enlarge)


def _shuffled(argmax: Any, size: tuple[int, int]) -> tuple[Any, Coarse] | None:
    """Logits (1, K, factor^2, h, w), of which the largest of K is taken before a shuffle."""
    source = argmax.input_value(0)
    shape = tuple(source.get_shape())
    if len(shape) != 5:
        return None
    _, classes, places, height, width = shape
    factor = size[0] // height
    if places != factor**2 or (height * factor, width * factor) != size:
        return None
    return source, Coarse((1, classes * places, height, width), "shuffle")
