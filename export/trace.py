"""PyTorch's exporter: a module as an ONNX graph, and errors that name the module's line."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence

import onnx
import onnxslim
import torch
from torch import Tensor, nn

from ..errors import ExportError

log = logging.getLogger("rtseg")
# The lowest that holds all we export; see `_opset` for why not simply the newest.
OPSET = 18
GELU_OPSET = 20  # knows GELU as one operator, where 18 spells it out in five
UNROLLED = 64  # nodes of one line; an attention written out takes about twenty


def trace(module: nn.Module, frame: Tensor, outputs: Sequence[str]) -> onnx.ModelProto:
    """The module's graph for a `frame`, simplified; input "frame", outputs as named.

    A line of the module that becomes UNROLLED nodes or more is named in a warning.

    Raises:
        ExportError: PyTorch's exporter has no form for one of its operations; the message names
            the operation, the line that calls it, and a way around.
    """
    with silence_exporter():
        traced = torch.export.export(module, (frame,), strict=False)
        try:
            program = torch.onnx.export(
                traced,
                dynamo=True,
                opset_version=_opset(traced),
                input_names=["frame"],
                output_names=list(outputs),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(_explain(traced, error)) from error
        assert program is not None
        model: onnx.ModelProto = program.model_proto
        unrolled = find_unrolled(model)
        # A product and a sum would become a Gemm between two reshapes.
        model = onnxslim.slim(model, skip_fusion_patterns=["FusionGemm"])
    for line in unrolled:
        log.warning("%s", line)
    return model


def _opset(traced: torch.export.ExportedProgram) -> int:
    """The lowest opset that says what is needed in the fewest nodes."""
    called = {str(node.target) for node in traced.graph.nodes}
    gelu = any(name.startswith("aten.gelu") for name in called)
    grid_sample = any(name.startswith("aten.grid_sampler") for name in called)
    # TensorRT reads the GridSample of opset 20 as nearest (NVIDIA/TensorRT #4646).
    return GELU_OPSET if gelu and not grid_sample else OPSET


def _explain(traced: torch.export.ExportedProgram, error: BaseException) -> str:
    """What of the module the exporter has no form for."""
    reason = str(error)
    cause = error.__cause__
    while cause is not None:
        reason, cause = f"{reason}\n{cause}", cause.__cause__
    found = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", reason)
    name = found[1] if found else ""
    # What PyTorch takes an operation apart into has another name, with the same in it.
    short = name.partition(".")[2].strip("_")
    for node in traced.graph.nodes:
        if short and short in str(node.target):
            place = _last_line(node.meta.get("stack_trace") or "")
            return (
                f"{short} has no form in ONNX ({place}): write it with other operations, or leave "
                "it out of the network and compute it from the labels"
            )
    first = next((line for line in reason.splitlines() if "Error:" in line), "no reason given")
    return (
        f"PyTorch's exporter fails ({first.strip()[:200]}): export an ONNX file in your own way, "
        "and give that"
    )


def find_unrolled(model: onnx.ModelProto) -> list[str]:
    """A line of text for each line of a module that became UNROLLED nodes or more, with their
    number, by the exporter's notes on each node."""
    counts: Counter[tuple[str, str]] = Counter()
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        place = _last_line(notes.get("pkg.torch.onnx.stack_trace", ""))
        scope = notes.get("namespace", "").rpartition("/")[0]
        if place and node.op_type != "Constant":
            counts[place, scope] += 1
    return [
        f"{place} becomes {count} nodes: a loop or a pooling that the exporter unrolls, each of "
        "which costs an engine time; write it for all at once, or with fixed kernels"
        for (place, _), count in counts.items()
        if count >= UNROLLED
    ]


def _last_line(stack: str) -> str:
    """FILE:LINE of the innermost call in a stack trace, of the user's code if it names any."""
    found = re.findall(r'File "([^"]+)", line (\d+)', stack)
    own = [each for each in found if "site-packages" not in each[0]] or found
    return ":".join(own[-1]) if own else ""


@contextlib.contextmanager
def silence_exporter() -> Iterator[None]:
    """Keep the exporter's progress lines and its notes on absent packages off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
