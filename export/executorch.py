"""PyTorch -> an ExecuTorch program (.pte) for Android and Arm Linux, lowered to XNNPACK.

A program has two methods, which share their weights: "forward" gives the card's outputs, labels as
a rule, and "coarse" what the last upsampling reads, for hosts that make the labels themselves.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ..data.files import digest_of, write_atomically
from ..errors import ExportError
from ..models import FrameToLabels, Network, deploy
from ..models.own import OwnNetwork
from ..models.pipeline import run_to_last_upsample
from ..runtime.artifact import Card, CoarseLogits, sidecar
from .trace import silence_exporter

FORWARD, COARSE = "forward", "coarse"


def with_coarse(network: Network, card: Card) -> Card:
    """The card of a network's program: it names the method that gives coarse logits."""
    with torch.inference_mode():
        head = network.forward_logits(torch.zeros(1, 3, *card.size))
        how: Any = run_to_last_upsample(network, head, *card.size)[1]
    coarse = CoarseLogits(tensor=COARSE, upsampling=how) if how else None
    return card.model_copy(update={"coarse": coarse})


def build_program(network: Network, card: Card) -> bytes:
    """Trace and lower a network; what XNNPACK does not take is left to ExecuTorch's own kernels.

    Args:
        network: in float32.
        card: names size, batch and outputs.

    Raises:
        ExportError: ExecuTorch has no form or no kernel for an operation; the message names it.
    """
    deployed = deploy(network, card.size)
    size = card.size if isinstance(network, OwnNetwork) else None
    frame = torch.zeros(card.input_shape, dtype=torch.uint8)
    ends = {FORWARD: card.outputs, COARSE: (COARSE,)}
    with _silenced():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            traced = {
                name: torch.export.export(
                    FrameToLabels(deployed, outputs, size).eval(), (frame,), strict=False
                )
                for name, outputs in ends.items()
            }
            edge = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
            program = edge.to_executorch()
        except Exception as error:  # of its passes, which share no base
            raise ExportError(f"no ExecuTorch program of {card.model}: {_reason(error)}") from error
    if missing := _list_missing(program):
        raise ExportError(
            f"no ExecuTorch program of {card.model}: its runtime has no kernel for "
            f"{', '.join(missing)}; write these otherwise, or choose onnx"
        )
    return bytes(program.buffer)


def _reason(error: Exception) -> str:
    """The operators that an error names, else its first line."""
    found = dict.fromkeys(re.findall(r"\baten::?[\w.]+|\bnode with op [\w.:]+", str(error)))
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it does not take {', '.join(found)}" if found else lines[0][:300]


def _list_missing(program: Any) -> list[str]:
    """Operators that are left to kernels which this version of the runtime does not have."""
    from executorch.runtime import Runtime

    known = Runtime.get().operator_registry.operator_names
    needed: dict[str, None] = {}
    for plan in program.executorch_program.execution_plan:
        for each in plan.operators:
            needed[f"{each.name}.{each.overload}" if each.overload else each.name] = None
    return [name for name in needed if name not in known]


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Without what its libraries print and warn of as they load and lower."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with silence_exporter():
            yield
    finally:
        logging.disable(before)


def write_executorch(network: Network, path: Path, card: Card) -> None:
    """Write a program, the first time, and its card, each time."""
    if not path.exists():
        write_atomically(path, build_program(network, card))
    tools = card.tools | {"executorch": metadata.version("executorch")}
    update = {"files": {path.name: digest_of(path)}, "tools": tools}
    write_atomically(sidecar(path), card.model_copy(update=update).to_json().encode())
