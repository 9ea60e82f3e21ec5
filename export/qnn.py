"""ONNX -> context binary for Qualcomm's HTP, compiled ahead of time, without a device.

The graph is the integer form (`integer_form.py`), cut before its resize: the HTP gives rounded
coarse logits, and the host makes exact labels of them.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..data.files import digest_of, write_atomically
from ..data.limits import read_json_object
from ..errors import ArtifactError, ExportError
from ..runtime.artifact import Card, CoarseLogits, sidecar
from .graph import find_coarse, rename

if TYPE_CHECKING:
    from collections.abc import Mapping

COARSE = "coarse"
# (QNN's number of the chip, generation of its HTP), as ExecuTorch's backends/qualcomm/serialization
# /qc_schema.py lists them. qcs8550 is the sm8550 for devices that are no phones.
SOCS: dict[str, tuple[int, int]] = {
    "qcm6490": (93, 68), "qcs8550": (43, 73), "qcs9100": (77, 73), "sa8255": (52, 73),
    "sa8295": (39, 68), "sa8797": (72, 81), "sc8380xp": (60, 73), "sm8350": (30, 68),
    "sm8450": (36, 69), "sm8475": (42, 69), "sm8550": (43, 73), "sm8650": (57, 75),
    "sm8750": (69, 79), "sm8845": (97, 81), "sm8850": (87, 81), "ssg2115p": (46, 73),
    "ssg2125p": (58, 73), "sxr1230p": (45, 73), "sxr2230p": (53, 69), "sxr2330p": (75, 79),
}  # fmt: skip


def find_soc(soc: str | None) -> dict[str, str]:
    """The plug-in's options for a chip, by its name or by QNN's number of it.

    Raises:
        ExportError: it is missing or unknown.
    """
    name = (soc or "").lower()
    if name.isdecimal() and int(name):
        return {"soc_model": name}
    if name not in SOCS:
        told = f"not {soc!r}" if soc else "a context binary is for one chip"
        raise ExportError(f"--soc is {', '.join(SOCS)} or QNN's number of the chip: {told}")
    number, generation = SOCS[name]
    return {"soc_model": str(number), "htp_arch": str(generation)}


def to_integer_logits(
    plain: onnx.ModelProto, card: Card, ranges: Mapping[str, float]
) -> tuple[onnx.ModelProto, Card]:
    """The integer form of a float32 graph that ends at its rounded coarse logits, and its card.

    Raises:
        ExportError: its labels are no argmax of bilinearly enlarged logits, or their range is not
            known.
    """
    from .quantize import to_integer_form

    found = find_coarse(plain)
    if found is None or found.upsampling == "shuffle":
        raise ExportError(
            f"qnn leaves the last resize to the host, and {card.model} does not end in a bilinear "
            "one: choose onnx, openvino or tensorrt"
        )
    if found.tensor not in ranges:
        raise ExportError(
            f"the ranges of {card.weights_from} lack its logits: calibrate on frames, --calib DIR"
        )
    assert card.int8 is not None
    whole, facts = to_integer_form(plain, card.int8, ranges, False, also=(found.tensor,))
    _read_as_rounded(whole.graph)
    held = {each.name: each for each in whole.graph.initializer}
    scale, zero = (
        numpy_helper.to_array(held[f"{found.tensor}/{part}"]).item() for part in ("scale", "zero")
    )
    typed = onnx.shape_inference.infer_shapes(whole, strict_mode=True)
    part = onnx.utils.Extractor(typed).extract_model(["frame"], [f"{found.tensor}/integer"])
    rename(part.graph, f"{found.tensor}/integer", COARSE)
    coarse = CoarseLogits(tensor=COARSE, upsampling=found.upsampling, scale=scale, zero=zero)
    return part, card.model_copy(update={"int8": facts, "coarse": coarse})


def _read_as_rounded(graph: onnx.GraphProto) -> None:
    """Give the frame's bytes as rounded values of scale 1, in place of casting them.

    onnxruntime-qnn 2.7.0 makes 1.0 of every byte but 0 that it casts to float32.
    """
    step, zero = f"{COARSE}/frame_step", f"{COARSE}/frame_zero"
    for name, value in ((step, np.float32(1)), (zero, np.uint8(0))):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] == "frame":
            output, name = node.output[0], node.name
            made = onnx.helper.make_node("DequantizeLinear", ["frame", step, zero], [output], name)
            node.CopyFrom(made)


def write_context(graph: onnx.ModelProto, path: Path, soc: str) -> None:
    """Compile a graph for a chip and write its context binary, an ONNX file of one node.

    Raises:
        ExportError: the HTP refuses operators, which the message names, or the graph.
    """
    from ..runtime.backends.qnn import open_session

    with TemporaryDirectory() as folder:
        made = Path(folder) / "context.onnx"
        trace = {"enable_framework_op_trace": "1", "framework_op_trace_dir": folder}
        entries = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(made),
            "ep.context_embed_mode": "1",  # one file, which one digest covers
        }
        try:
            open_session(graph.SerializeToString(), "the graph", find_soc(soc) | trace, entries)
        except ArtifactError as error:
            refused = _list_refused(Path(folder) / "qnn_op_trace.json")
            why = f"it refuses {refused}" if refused else str(error)
            raise ExportError(f"no context binary for the HTP of {soc}: {why}") from error
        write_atomically(path, made.read_bytes())


def _list_refused(trace: Path) -> str:
    """Kinds and names of the nodes that the plug-in left to others, "" if it says none."""
    nodes: list[dict[str, Any]] = read_json_object(trace).get("unsupported_nodes", [])
    kinds: dict[str, list[str]] = {}
    for node in nodes:
        kinds.setdefault(str(node.get("op_type")), []).append(str(node.get("node_name")))
    return "; ".join(f"{kind} ({', '.join(names[:3])})" for kind, names in kinds.items())


def write_qnn(graph: onnx.ModelProto, path: Path, card: Card) -> None:
    """Write a context binary, the first time, and its card, each time."""
    assert card.soc is not None
    if not path.exists():
        write_context(graph, path, card.soc)
    used = {name: metadata.version(name) for name in ("onnxruntime", "onnxruntime-qnn")}
    update = {"files": {path.name: digest_of(path)}, "tools": card.tools | used}
    write_atomically(sidecar(path), card.model_copy(update=update).to_json().encode())
