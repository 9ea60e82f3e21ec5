"""ONNX files as others' exporters write them, of a network small enough to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

SIZE = (64, 96)
CLASSES = 5


class Net(nn.Module):
    """Three convolutions, logits at 1/`stride` of the size or resized to it."""

    def __init__(
        self,
        classes: int = CLASSES,
        ends: str = "logits",
        corners: bool = False,
        width: int = 8,
        stride: int = 4,
    ):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.body = nn.Conv2d(width, width, 3, stride=stride // 2, padding=1)
        self.head = nn.Conv2d(width, classes, 1)
        self.ends, self.corners = ends, corners
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def forward(self, image: Tensor) -> Any:
        x = self.head(torch.relu(self.body(torch.relu(self.stem(image)))))
        if self.ends in ("logits", "ids"):
            return x if self.ends == "logits" else x.argmax(1)
        x = F.interpolate(x, size=image.shape[-2:], mode="bilinear", align_corners=self.corners)
        if self.ends == "softmax":
            return x.softmax(1)
        if self.ends == "argmax":
            return x.argmax(1)
        if self.ends == "sigmoid":
            return x.sigmoid()
        return x


def write_torch(path: Path, net: nn.Module, dynamo: bool = True, dynamic: bool = False) -> Path:
    """As `torch.onnx.export` writes it, by either of its exporters."""
    from rtseg.export.trace import silence_exporter

    image = torch.zeros(1, 3, *SIZE)
    options: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    if dynamo and dynamic:
        dim = torch.export.Dim
        options["dynamic_shapes"] = (
            {0: dim("n", min=1, max=8), 2: 16 * dim("h", max=64), 3: 16 * dim("w", max=64)},
        )
        image = torch.zeros(2, 3, *SIZE)
    elif dynamic:
        options["dynamic_axes"] = {"input": {0: "n", 2: "h", 3: "w"}, "output": {0: "n"}}
    if not dynamo:
        options["opset_version"] = 11
    with silence_exporter():
        torch.onnx.export(net.eval(), (image,), str(path), dynamo=dynamo, **options)
    return path


def weights(classes: int = CLASSES) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.numpy() for name, value in Net(classes).state_dict().items()}


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray[Any, Any]],
    opset: int = 13,
    domains: tuple[str, ...] = (),
) -> Path:
    graph = helper.make_graph(
        nodes,
        "main",
        inputs,
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def body(image: str, auto_pad: bool = False) -> list[onnx.NodeProto]:
    """The network from planes to logits at a quarter of the size."""
    pads: dict[str, Any] = {"auto_pad": "SAME_UPPER"} if auto_pad else {"pads": [1, 1, 1, 1]}
    node = helper.make_node
    return [
        node("Conv", [image, "stem.weight", "stem.bias"], ["s"], strides=[2, 2], **pads),
        node("Relu", ["s"], ["r"]),
        node("Conv", ["r", "body.weight", "body.bias"], ["b"], strides=[2, 2], **pads),
        node("Relu", ["b"], ["q"]),
        node("Conv", ["q", "head.weight", "head.bias"], ["logits_4"]),
    ]


def write_paddle(path: Path) -> Path:
    """Paddle's way: a dynamic batch and size, the resize's size computed from the input's shape,
    int32 class ids by ArgMax and Cast, opset 11."""
    node = helper.make_node
    nodes = [
        *body("x"),
        node("Shape", ["x"], ["shape"]),
        node("Slice", ["shape", "two", "four"], ["plane"]),
        node("Cast", ["plane"], ["plane64"], to=TensorProto.INT64),
        node("Shape", ["logits_4"], ["shape_4"]),
        node("Slice", ["shape_4", "zero", "two"], ["front"]),
        node("Concat", ["front", "plane64"], ["sizes"], axis=0),
        node(
            "Resize",
            ["logits_4", "roi", "roi", "sizes"],
            ["bilinear_interp_v2_0.tmp_0"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("ArgMax", ["bilinear_interp_v2_0.tmp_0"], ["am"], axis=1, keepdims=0),
        node("Cast", ["am"], ["argmax_0.tmp_0"], to=TensorProto.INT32),
    ]
    constants = {
        **weights(),
        "zero": np.array([0], np.int64),
        "two": np.array([2], np.int64),
        "four": np.array([4], np.int64),
        "roi": np.array([], np.float32),
    }
    return save(
        path,
        nodes,
        [value("x", ["n", 3, "h", "w"])],
        [value("argmax_0.tmp_0", ["n", "h", "w"], TensorProto.INT32)],
        constants,
        opset=11,
    )


def write_tensorflow(path: Path, ends: str = "softmax") -> Path:
    """TensorFlow's way by tf2onnx: channels last in and out, a transpose behind the input, SAME
    padding, a resize by a factor, softmax over the last axis."""
    node = helper.make_node
    nodes = [
        node("Transpose", ["serving_default_input:0"], ["planes"], perm=[0, 3, 1, 2]),
        *body("planes", auto_pad=True),
        node(
            "Resize",
            ["logits_4", "", "scales"],
            ["big"],
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("Transpose", ["big"], ["last"], perm=[0, 2, 3, 1]),
    ]
    shape: list[Any] = ["n", *SIZE, CLASSES]
    kind = TensorProto.FLOAT
    if ends == "softmax":
        nodes.append(node("Softmax", ["last"], ["StatefulPartitionedCall:0"], axis=-1))
    else:
        nodes.append(node("ArgMax", ["last"], ["ids"], axis=3, keepdims=0))
        nodes.append(node("Cast", ["ids"], ["StatefulPartitionedCall:0"], to=TensorProto.INT64))
        shape, kind = ["n", *SIZE], TensorProto.INT64
    constants = {**weights(), "scales": np.array([1, 1, 4, 4], np.float32)}
    return save(
        path,
        nodes,
        [value("serving_default_input:0", ["n", *SIZE, 3])],
        [value("StatefulPartitionedCall:0", shape, kind)],
        constants,
    )


def write_ultralytics(path: Path, ends: str = "logits") -> Path:
    """Ultralytics' way: "images" in 0..1, "output0" logits at a quarter, or a class map there."""
    node = helper.make_node
    nodes = body("images")
    nodes[-1].output[0] = "output0" if ends == "logits" else "logits_4"
    shape, kind = [1, CLASSES, SIZE[0] // 4, SIZE[1] // 4], TensorProto.FLOAT
    if ends == "labels":
        nodes.append(node("ArgMax", ["logits_4"], ["ids"], axis=1, keepdims=1))
        nodes.append(node("Cast", ["ids"], ["output0"], to=TensorProto.UINT8))
        shape, kind = [1, 1, *shape[2:]], TensorProto.UINT8
    return save(
        path,
        nodes,
        [value("images", [1, 3, *SIZE])],
        [value("output0", shape, kind)],
        weights(),
        opset=17,
    )
