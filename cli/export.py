"""Artifacts, proven."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import JobFailed, need, note, show, working
from ._export_all import export_zoo
from ._options import (
    Classes,
    Fit,
    Json,
    Method,
    Outputs,
    Precision,
    Sizes,
    Target,
    Weights,
    class_set,
    parse_sizes,
)

if TYPE_CHECKING:
    from ..export import Artifact


def export(
    model: Annotated[
        str | None, Argument(help="A name that `rtseg models` lists, or a checkpoint.")
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    size: Sizes = None,
    to: Annotated[list[Target] | None, Option(help="What to write; may be repeated.")] = None,
    precision: Annotated[
        Precision | None,
        Option(help="Precision inside the graph: by default fp32, with --all fp16 and fp32."),
    ] = None,
    output: Annotated[Outputs, Option(help="What the graph gives.")] = Outputs.labels,
    fit: Annotated[
        Fit, Option(help="How frames of another aspect come to the size.")
    ] = Fit.letterbox,
    frames: Annotated[Path | None, Option(help="Images to prove it on; else drawn scenes.")] = None,
    proof_frames: Annotated[
        int, Option(min=1, help="How many of those images to take, spread over them.")
    ] = 24,
    labels: Annotated[
        Path | None, Option(help="Label PNGs of the frames, by the same names: proves the mIoU.")
    ] = None,
    calib: Annotated[
        Path | None, Option(help="Folder of real frames that int8 is calibrated on.")
    ] = None,
    calibration: Annotated[
        Method, Option(help="How int8 takes its ranges from them.")
    ] = Method.percentile,
    calib_frames: Annotated[int, Option(min=8, help="How many of them it takes.")] = 32,
    compute_capability: Annotated[
        list[str] | None, Option(help="GPU generation for TensorRT, such as 8.6; may be repeated.")
    ] = None,
    label_kernel: Annotated[
        bool, Option("--label-kernel", help="Engine: labels by a GPU kernel behind it, not in it.")
    ] = False,
    log: Annotated[str, Option(help="Level of the TensorRT build log.")] = "warning",
    whole_zoo: Annotated[
        bool, Option("--all", help="Every variant instead, and a table: zoo.md, zoo.json.")
    ] = False,
    only: Annotated[
        list[str] | None, Option(help='With --all: variants such as "sfnet_*"; may be repeated.')
    ] = None,
    scenes: Annotated[int, Option(min=1, help="With --all: drawn scenes to prove each on.")] = 1,
    keep: Annotated[bool, Option(help="With --all: keep the files, tens of GB.")] = True,
    folder: Annotated[Path, Option("-o", "--out", help="Folder for the artifacts.")] = Path(
        "artifacts"
    ),
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, a TensorRT engine or OpenVINO, and prove that it is still right.

    rtseg export csfcn_tiny --size 512x1024 --to onnx --to tensorrt --precision fp16 -o artifacts
    rtseg export csfcn_nano --to openvino --precision int8 --calib drives/frames
    rtseg export --all --size 512x1024 --no-keep -o zoo
    """
    if (model is None) != whole_zoo:
        raise UsageError("name a model, or give --all for every variant: one of the two")
    targets = [target.value for target in to or []]
    if model is None:
        if weights or classes or frames or labels or calib or label_kernel:
            raise UsageError(
                "--all takes the variants as they come: leave out --weights, --classes, --frames, "
                "--labels, --calib and --label-kernel"
            )
        chosen = [precision.value] if precision else []
        export_zoo(size, only or [], targets, chosen, scenes, keep, folder, as_json)
        return
    need("torch", "PyTorch", "export", "export")
    from ..errors import ProofError
    from ..export import export as run
    from ..export.artifacts import build_table, list_notes
    from ..export.calibrate import Calibration
    from ..models.loading import open_source

    sizes = parse_sizes(size)
    source = open_source(model, weights, class_set(classes))
    targets = targets or [Target.onnx.value]
    for_triton = Target.triton.value in targets
    if for_triton:  # it serves artifacts, and always has the ONNX one
        targets = list(dict.fromkeys("onnx" if t == Target.triton.value else t for t in targets))
    note(
        f"{source.network.info.name}, {len(source.classes)} classes ({source.classes.name}), "
        f"weights: {source.weights_from}"
    )
    try:
        with working() as step:
            artifacts = run(
                source,
                sizes or None,
                targets,
                (precision or Precision.fp32).value,
                out=folder,
                output=output.value,
                fit=fit.value,
                frames=frames,
                labels=labels,
                proof_frames=proof_frames,
                engine={"compute_capabilities": tuple(compute_capability or ()), "log_level": log},
                label_kernel=label_kernel,
                calibration=Calibration(calib, calibration.value, calib_frames) if calib else None,
                progress=step,
            )
    except ProofError as error:
        raise JobFailed(str(error)) from error
    if for_triton:
        _write_repository(artifacts, folder / "triton")
    show(
        json.dumps([a.as_dict() | {"file": str(a.path)} for a in artifacts], indent=2),
        build_table(artifacts),
        as_json,
    )
    for line in list_notes(artifacts):
        note(line)
    note(f"written to {folder}; next: rtseg bench {artifacts[0].path}")


def _write_repository(artifacts: Sequence[Artifact], repository: Path) -> None:
    """A model of every ONNX file and engine; an engine that Triton cannot serve is told of."""
    from ..errors import ArtifactError
    from ..export.triton import write_model

    for artifact in artifacts:
        if artifact.target == "onnx":
            note(f"Triton model: {write_model(artifact.path, repository)}")
        elif artifact.target == "tensorrt":
            try:
                note(f"Triton model: {write_model(artifact.path, repository)}")
            except ArtifactError as error:
                note(f"not for Triton: {error}")
