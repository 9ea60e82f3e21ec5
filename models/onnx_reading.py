"""Reads other people's ONNX files: within limits, whole, and of operators that can be exported."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import inliner
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ..data.limits import check_limit, read_limited
from ..data.onnx_scan import scan_onnx
from ..errors import UsageError
from .onnx_graph import STANDARD, list_nodes

QUANTIZED = ("QuantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")


def read_onnx(path: Path) -> bytes:
    """A file with all of its weights inside, its local functions written out.

    Raises:
        UsageError: it is absent, damaged, an artifact, quantized, of other runtimes' operators, or
            its weights lie elsewhere and are missing.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    content = read_limited(path, "model_bytes")
    scan_onnx(content, path, UsageError, alone=False)
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's own
        raise UsageError(f"{path} is damaged or no ONNX file: fetch or export it again") from error
    if not model.graph.node:
        raise UsageError(f"{path} holds no graph: fetch or export it again")
    if any(entry.key == "rtseg" for entry in model.metadata_props):
        raise UsageError(f"{path} is an artifact already: rtseg.load runs it, as do the commands")
    check_limit("model_bytes", len(content) + _external_bytes(model, path.parent), path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # absent, too short, or outside of the folder
        lost = next(_external_files(model), "another file")
        raise UsageError(
            f"{path.name} keeps its weights in {lost}, which cannot be read: put it beside the "
            "file, or export with all in one"
        ) from error
    if model.functions:
        model = inliner.inline_local_functions(model)
    _check_operators(model, path.name)
    try:
        return bytes(model.SerializeToString())
    except Exception as error:
        raise UsageError(f"{path.name} is above 2 GB, more than one ONNX file holds") from error


def _external_files(model: onnx.ModelProto) -> Iterator[str]:
    return (each.location for each in _external_parts(model))


def _external_parts(model: onnx.ModelProto) -> Iterator[ExternalDataInfo]:
    for tensor in model.graph.initializer:
        if uses_external_data(tensor):
            yield ExternalDataInfo(tensor)


def _external_bytes(model: onnx.ModelProto, folder: Path) -> int:
    """How much would be read of other files, where every tensor may name a whole one."""
    total = 0
    for part in _external_parts(model):
        with contextlib.suppress(OSError, ValueError):  # the reader that comes next tells it
            size = (folder / part.location).stat().st_size
            total += min(size, part.length or size)
    return total


def _check_operators(model: onnx.ModelProto, name: str) -> None:
    for node in list_nodes(model.graph):
        if node.domain not in STANDARD:
            raise UsageError(
                f"{name} uses {node.domain}::{node.op_type} ({node.name or node.output[0]}), an "
                "operator that only some runtimes know: export it in standard ONNX, before any "
                "tool optimizes it"
            )
        if node.op_type in QUANTIZED:
            raise UsageError(
                f"{name} is quantized already ({node.op_type}): give the float32 file that it was "
                "made of, and --precision int8"
            )
        if node.op_type in ("NonMaxSuppression", "RoiAlign"):
            raise UsageError(
                f"{name} detects objects ({node.op_type} in its graph) and gives no class for "
                "every pixel: only semantic segmentation can be exported"
            )
