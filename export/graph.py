"""Network -> typed ONNX graph of the whole job, uint8 frame to labels."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator

import onnx
import onnxslim
import torch
from onnx import TensorProto, helper

from ..errors import ExportError
from ..models import FrameToLabels, Network, deploy

OPSET = 18
GELU_OPSET = 20  # knows GELU as one operator, where 18 spells it out in five
SCORES = "scores"  # the tensor that the labels are the argmax of
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def to_onnx(
    network: Network, size: tuple[int, int], precision: str, outputs: tuple[str, ...]
) -> onnx.ModelProto:
    """The deployed network as a checked and simplified ONNX model, without a card.

    Input "frame" (1, H, W, 3) uint8 BGR; outputs "labels" (1, H, W) uint8 and "logits"
    (1, K, h, w), as asked for. Weights and activations are of `precision`, but for float32 islands.
    """
    deployed = deploy(network, size)
    whole = FrameToLabels(deployed, outputs).eval().to(DTYPES[precision])
    frame = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with quiet():
        traced = torch.export.export(whole, (frame,), strict=False)
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=_opset(traced),
            input_names=["frame"],
            output_names=list(outputs),
            verbose=False,
        )
        assert program is not None
        # A product and a sum would become a Gemm between two reshapes.
        model = onnxslim.slim(program.model_proto, skip_fusion_patterns=["FusionGemm"])
    return _finished(model)


def _opset(traced: torch.export.ExportedProgram) -> int:
    """The lowest that says what is needed in the fewest nodes. TensorRT reads the GridSample of
    opset 20 as nearest (NVIDIA/TensorRT #4646)."""
    called = {str(node.target) for node in traced.graph.nodes}
    gelu = any(name.startswith("aten.gelu") for name in called)
    grid_sample = any(name.startswith("aten.grid_sampler") for name in called)
    return GELU_OPSET if gelu and not grid_sample else OPSET


def _finished(model: onnx.ModelProto) -> onnx.ModelProto:
    """Names the scores, drops what only the exporter needs, and checks the result."""
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    model.graph.name = "rtseg"
    model.producer_name = "rtseg"
    _name_scores(model.graph)
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def _name_scores(graph: onnx.GraphProto) -> None:
    """Give the argmax's input the name SCORES, unless it is an output and has one already."""
    argmaxes = [node for node in graph.node if node.op_type == "ArgMax"]
    if len(argmaxes) != 1:
        return
    old = argmaxes[0].input[0]
    if old in {output.name for output in graph.output}:
        return
    rename(graph, old, SCORES)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Give a tensor another name wherever the graph speaks of it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new
    for value in graph.output:
        if value.name == old:
            value.name = new


def with_scores(model: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """(a copy that also gives what labels are the argmax of, that output's name)."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    argmax = next((node for node in probe.graph.node if node.op_type == "ArgMax"), None)
    name = argmax.input[0] if argmax else "logits"
    if name not in {output.name for output in probe.graph.output}:
        probe.graph.output.append(helper.make_empty_tensor_value_info(name))
    return probe, name


def census(model: onnx.ModelProto) -> dict[str, int]:
    """Values held in the graph's weights and constants, by data type."""
    held: Counter[str] = Counter()
    for tensor in _tensors(model.graph):
        name = TensorProto.DataType.Name(tensor.data_type).lower()
        held[name] += int(_numel(tensor))
    return dict(held)


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _numel(tensor: TensorProto) -> int:
    total = 1
    for side in tensor.dims:
        total *= side
    return total


@contextlib.contextmanager
def quiet() -> Iterator[None]:
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
