"""What tests of limits share: a small model, and what a reader says of a content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import helper, numpy_helper
from rtseg.errors import UsageError

BOUND_S = 5.0  # for the worst that fits the limits


def make_model(*extra: Any) -> bytes:
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "weights")
    node = helper.make_node("Identity", ["weights"], ["out"])
    graph = helper.make_graph([node, *extra], "g", [], [], [weights])
    return bytes(helper.make_model(graph).SerializeToString())


def refusal(read: Callable[[Any, str], object], content: Any) -> str:
    """What is said of it, "" where it is read."""
    try:
        read(content, "it")
    except UsageError as error:
        return str(error)
    return ""
