"""ONNX -> OpenVINO model, `NAME.xml` with its weights in `NAME.bin`."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import openvino

from ..data.files import find_reason
from ..runtime.backends.openvino import the_core


def to_openvino(onnx: Path, target: Path, precision: str) -> None:
    """Convert the ONNX file and write `target` (.xml) and its `.bin`."""
    model = openvino.convert_model(str(onnx))
    with find_reason(target):
        openvino.save_model(model, str(target), compress_to_fp16=precision == "fp16")


def census(path: Path) -> dict[str, int]:
    """Values held in the model's constants, by data type."""
    held: Counter[str] = Counter()
    for node in the_core().read_model(str(path)).get_ops():
        if node.get_type_name() == "Constant":
            kind = node.get_element_type().to_string()
            held[_NAMES.get(kind, kind)] += math.prod(node.get_output_shape(0))
    return dict(held)


_NAMES = {"f32": "float", "f16": "float16", "bf16": "bfloat16", "i8": "int8", "u8": "uint8"}
