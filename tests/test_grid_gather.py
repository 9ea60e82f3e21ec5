"""GridSample as gathers: the values of ONNX Runtime's own kernel, wherever positions are."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from rtseg.export.grid_gather import gather_samples
from rtseg.export.parity import open_session


def sampler(**facts: object) -> onnx.ModelProto:
    node = helper.make_node("GridSample", ["image", "grid"], ["y"], name="sample", **facts)
    shapes = {"image": (2, 5, 7, 9), "grid": (2, 4, 6, 2), "y": (2, 5, 4, 6)}
    image, grid, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    graph = helper.make_graph([node], "sampler", [image, grid], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("aligned", [0, 1])
def test_values_are_those_of_the_kernel(padding: str, aligned: int) -> None:
    model = sampler(mode="bilinear", padding_mode=padding, align_corners=aligned)
    made = gather_samples(model)
    onnx.checker.check_model(made, full_check=True)
    kinds = [node.op_type for node in made.graph.node]
    assert "GridSample" not in kinds
    assert kinds.count("Gather") == 4
    rng = np.random.default_rng(0)
    given = {
        "image": rng.standard_normal((2, 5, 7, 9)).astype(np.float32),
        "grid": rng.uniform(-1.6, 1.6, (2, 4, 6, 2)).astype(np.float32),  # beside it, too
    }
    given["grid"][0, 0, :3] = [[-1, -1], [1, 1], [0, 0]]
    (expected,), (found,) = (open_session(each).run(None, given) for each in (model, made))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(expected).max() > 1
    assert not np.allclose(expected[0], expected[1])


@pytest.mark.parametrize("facts", [{"mode": "nearest"}, {"padding_mode": "reflection"}])
def test_other_kinds_stay(facts: dict[str, str]) -> None:
    assert [node.op_type for node in gather_samples(sampler(**facts)).graph.node] == ["GridSample"]
