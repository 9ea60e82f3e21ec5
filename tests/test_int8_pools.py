"""Max poolings inside an int8 graph: on rounded values where that changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from rtseg.export.quantize import move_rounding_before_pools

FACTS = ["scale", "zero"]
RNG = np.random.default_rng(5)


def convolution(name: str, source: str, result: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, f"{name}.weight"], [result], name=name, pads=[1] * 4)


def graph(*, float_reader: bool = False, other_scale: bool = False) -> onnx.ModelProto:
    """Convolution, pooling, and two convolutions of what it gives, rounded."""
    pool = helper.make_node(
        "MaxPool", ["a"], ["b"], name="pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4
    )
    nodes = [convolution("one", "x", "a"), pool]
    for place, scale in enumerate(("scale", "wide" if other_scale else "scale")):
        q, d = f"q{place}", f"d{place}"
        nodes.append(helper.make_node("QuantizeLinear", ["b", scale, "zero"], [q], name=q))
        nodes.append(helper.make_node("DequantizeLinear", [q, scale, "zero"], [d], name=d))
        nodes.append(convolution(f"two{place}", d, f"y{place}"))
    nodes.append(helper.make_node("Add", ["y0", "b" if float_reader else "y1"], ["y"], name="sum"))
    tensors = {
        f"{name}.weight": RNG.normal(size=(4, 4, 3, 3)).astype(np.float32)
        for name in ("one", "two0", "two1")
    }
    tensors |= {"scale": np.float32(0.07), "wide": np.float32(0.2), "zero": np.int8(0)}
    made = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 18, 22])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 9, 11])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, x: Any) -> Any:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    ).run(None, {"x": x})[0]


def maker_of_what_the_pool_reads(model: onnx.ModelProto) -> str:
    pool = next(node for node in model.graph.node if node.op_type == "MaxPool")
    return next(node.op_type for node in model.graph.node if pool.input[0] in node.output)


def test_a_pool_takes_the_largest_of_rounded_values_and_gives_the_same() -> None:
    model = graph()
    frames = [RNG.normal(size=(1, 4, 18, 22)).astype(np.float32) for _ in range(3)]
    before = [run(model, x) for x in frames]
    move_rounding_before_pools(model)
    assert maker_of_what_the_pool_reads(model) == "DequantizeLinear"
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1
    for x, expected in zip(frames, before, strict=True):
        np.testing.assert_array_equal(run(model, x), expected)


@pytest.mark.parametrize("option", ["float_reader", "other_scale"])
def test_a_pool_that_is_also_read_otherwise_stays_as_it_was(option: str) -> None:
    model = graph(**{option: True})
    before = sorted(node.SerializeToString() for node in model.graph.node)
    move_rounding_before_pools(model)
    assert sorted(node.SerializeToString() for node in model.graph.node) == before
