"""Logits read out of an artifact, whether or not it gives them as an output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

Scores = Callable[[NDArray[np.uint8]], NDArray[Any]]


def _probe_onnx(path: Path) -> Scores:
    from .graph import with_scores

    model, name = with_scores(onnx.load(path))
    session = session_of(model)
    return lambda frame: session.run([name], {"frame": frame})[0]


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _probe_openvino(path: Path, precision: str = "fp32") -> Scores:
    from ..runtime.backends.openvino import HINTS, the_core, with_positions
    from .graph import SCORES

    core = the_core()
    model = with_positions(core, path)
    outputs = {name for output in model.outputs for name in output.get_names()}
    name = SCORES
    if not any(SCORES in o.get_names() for node in model.get_ops() for o in node.outputs()):
        name = "logits"  # an output of its own, which the argmax reads
    if name not in outputs:
        model.add_outputs(name)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    return lambda frame: compiled({"frame": frame})[name]


def _probe_torch(path: Path) -> Scores:
    from ..models import FrameToLabels, build, load_checkpoint
    from ..runtime.artifact import read_card

    card = read_card(path)
    whole = FrameToLabels(load_checkpoint(build(card.model, len(card.classes)), path), ("logits",))

    def scores(frame: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            value: NDArray[Any] = whole(torch.from_numpy(frame))[0].numpy()
            return value

    return scores


PROBES: dict[str, Callable[..., Scores]] = {
    "onnxruntime": _probe_onnx,
    "openvino": _probe_openvino,
    "torch": _probe_torch,
}
