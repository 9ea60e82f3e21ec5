"""Files of others as a test needs them: any nodes, two outputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnx_files as files
from onnx import TensorProto, helper

SIZE, CLASSES = files.SIZE, files.CLASSES


Write = Callable[[Path], Path]


def nodes_to(kind: str, **facts: Any) -> list[onnx.NodeProto]:
    return [*files.body("x"), helper.make_node(kind, ["logits_4"], ["y"], **facts)]


def save(path: Path, nodes: list[onnx.NodeProto], shape: list[Any], **options: Any) -> Path:
    kind = options.pop("kind", TensorProto.FLOAT)
    more = options.pop("more", [])
    constants = files.weights(options.pop("classes", CLASSES)) | options.pop("constants", {})
    return files.save(
        path,
        nodes,
        [files.value("x", options.pop("image", [1, 3, *SIZE]), options.pop("reads", 1))],
        [files.value("y", shape, kind), *more],
        constants,
        **options,
    )


def two_outputs(path: Path) -> Path:
    nodes = [*nodes_to("Relu"), helper.make_node("Neg", ["logits_4"], ["z"])]
    return save(path, nodes, [1, 5, 16, 24], more=[files.value("z", [1, 5, 16, 24])])
