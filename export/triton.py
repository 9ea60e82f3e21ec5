"""Artifacts as a model repository of the Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..data.files import copy_file, replace_folder, scratch_folder, write_atomically
from ..errors import ArtifactError
from ..runtime.artifact import Card, read_card, sidecar, verify_artifact
from ..runtime.verify import is_proven_here
from .conditions import text_of

LABELS = "labels.txt"
VERSION = "1"
TYPES = {  # ONNX element type: Triton's
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output, as config.pbtxt names it; dims with the batch of one."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    labels: bool = False  # its values are class ids, named in labels.txt

    def text(self) -> str:
        dims = ", ".join(map(str, self.dims))
        lines = [f'name: "{self.name}"', f"data_type: {self.data_type}", f"dims: [ {dims} ]"]
        if self.labels:
            lines.append(f'label_filename: "{LABELS}"')
        return "  {\n" + "".join(f"    {line}\n" for line in lines) + "  }"


def write_model(
    artifact: Path, repository: Path, tensorrt: bool = False, gpus: int | None = None
) -> Path:
    """Add an ONNX artifact or a TensorRT engine to a model repository, in place of an older model
    of its name.

    Args:
        artifact: a proven file; the model is named as it is.
        repository: of the Triton server.
        tensorrt: the server's ONNX Runtime makes TensorRT engines of the ONNX file where it runs.
        gpus: instances on that many GPUs each; None leaves it to the server.

    Returns:
        The model's folder.

    Raises:
        ArtifactError: another kind of file, one that was not proven, or an engine of TensorRT-RTX,
            which Triton cannot load.
    """
    card = read_card(artifact)
    verify_artifact(artifact, card)
    _check(artifact, card)
    is_engine = artifact.suffix != ".onnx"
    if is_engine and tensorrt:
        raise ArtifactError(f"{artifact.name} is an engine already: leave tensorrt out")
    outputs = _labels(card) if is_engine else _outputs(artifact)
    with scratch_folder(repository, "new") as scratch:
        made, folder = scratch / artifact.stem, repository / artifact.stem
        (made / VERSION).mkdir(parents=True)
        name = "model.plan" if is_engine else "model.onnx"
        copy_file(artifact, made / VERSION / name)
        if is_engine:
            copy_file(sidecar(artifact), made / VERSION / f"{name}.json")
        write_atomically(made / LABELS, "".join(f"{c}\n" for c in card.classes).encode())
        config = _config(artifact.stem, card, outputs, is_engine, tensorrt, gpus)
        write_atomically(made / "config.pbtxt", config.encode())
        for each in (made, made / VERSION):  # the server may run as another user
            each.chmod(0o755)
        replace_folder(made, folder)
    return folder


def _check(artifact: Path, card: Card) -> None:
    if artifact.suffix not in (".onnx", ".engine", ".plan"):
        raise ArtifactError(
            f"Triton serves .onnx and .engine artifacts, not {artifact.name}: export one of those"
        )
    if card.sizes:
        raise ArtifactError(
            f"{artifact.name} is right at {' and '.join(map(text_of, card.sizes))} only, and "
            "Triton would take frames of any size: export a file for each, without --one-file"
        )
    if card.engine is not None and card.engine.flavour == "tensorrt_rtx":
        raise ArtifactError(
            f"{artifact.name} is a TensorRT-RTX engine, and Triton loads only TensorRT engines: "
            "export where the package tensorrt is installed, or serve the ONNX file, from which "
            "the server builds an engine itself"
        )
    if "coarse" in card.outputs:
        raise ArtifactError(
            f"{artifact.name} leaves its labels to a kernel that Triton does not run: export it "
            "without --label-kernel"
        )
    proven = card.proof is not None and card.proof.passed
    if not proven and not is_proven_here(artifact, card):
        raise ArtifactError(
            f"{artifact.name} has not been proven, and Triton cannot do it: load it once with "
            "rtseg on a machine with the GPU it is for"
        )


def _labels(card: Card) -> list[TensorSpec]:
    return [TensorSpec("labels", "TYPE_UINT8", card.label_shape, labels=True)]


def _outputs(artifact: Path) -> list[TensorSpec]:
    """As the graph declares them."""
    graph = onnx.load(artifact).graph
    outputs = []
    for value in graph.output:
        kind = value.type.tensor_type
        dims = tuple(dim.dim_value for dim in kind.shape.dim)
        labels = value.name == "labels"
        outputs.append(TensorSpec(value.name, TYPES[kind.elem_type], dims, labels))
    return outputs


def _config(
    name: str,
    card: Card,
    outputs: Sequence[TensorSpec],
    is_engine: bool,
    tensorrt: bool,
    gpus: int | None,
) -> str:
    """config.pbtxt. The batch is in the shapes, so the server's own batching is off (0)."""
    frame = TensorSpec("frame", "TYPE_UINT8", card.input_shape)
    backend = "tensorrt" if is_engine else "onnxruntime"
    parts = [f'name: "{name}"', f'backend: "{backend}"', "max_batch_size: 0"]
    if is_engine:
        parts.insert(2, 'default_model_filename: "model.plan"')
    parts.append("input [\n" + frame.text() + "\n]")
    parts.append("output [\n" + ",\n".join(each.text() for each in outputs) + "\n]")
    if gpus:
        parts.append(f"instance_group [\n  {{ count: {gpus}\n    kind: KIND_GPU }}\n]")
    if tensorrt:
        parts.append(_accelerated(card.precision))
    parts.append(_warm_up(frame))
    parts.append(_parameter("rtseg", card.to_json()))
    return "\n".join(parts) + "\n"


def _accelerated(precision: str) -> str:
    """TensorRT inside ONNX Runtime. FP16 is let in only where the graph itself is of FP16."""
    # The provider's switch lowers precision by itself, which the graph was not proven with.
    mode = "FP16" if precision == "fp16" else "FP32"
    return (
        "optimization {\n  execution_accelerators {\n    gpu_execution_accelerator [\n      {\n"
        '        name: "tensorrt"\n'
        f'        parameters {{ key: "precision_mode" value: "{mode}" }}\n'
        "      }\n    ]\n  }\n}"
    )


def _warm_up(frame: TensorSpec) -> str:
    """One frame of noise before the server calls the model ready: the first call is slow."""
    dims = ", ".join(map(str, frame.dims))
    return (
        'model_warmup [\n  {\n    name: "one frame"\n    batch_size: 0\n    inputs {\n'
        f'      key: "{frame.name}"\n      value {{\n        data_type: {frame.data_type}\n'
        f"        dims: [ {dims} ]\n        random_data: true\n      }}\n    }}\n  }}\n]"
    )


def _parameter(key: str, value: str) -> str:
    # A JSON string literal with ASCII escapes is a protobuf text literal, but for \\u.
    literal = json.dumps(value, ensure_ascii=False)
    return f'parameters {{\n  key: "{key}"\n  value {{ string_value: {literal} }}\n}}'
