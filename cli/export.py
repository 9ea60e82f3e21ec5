"""`rtseg export`: turns a network into artifacts and proves each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import JobFailed, note, show, working
from ._options import (
    NETWORK,
    CameraFormat,
    ExportClasses,
    Fit,
    Json,
    Method,
    Outputs,
    Precision,
    Sizes,
    Target,
    Weights,
    complete_models,
    in_group,
    parse_color,
    parse_size,
    parse_sizes,
)

PROOF = "Proof"
INT8 = "int8 and fp8"
CAMERA = "The camera's frames, straight into the graph"
ENGINES = "TensorRT engines"
NPUS = "NPUs"
OWN = "A network of your own"
ZOO = "The whole zoo"


def export(
    model: Annotated[
        str | None,
        Argument(
            help="A name that `rtseg models` lists, NAME:WEIGHTS, a checkpoint, or your own: "
            "package.module:callable, file.py:callable, program.pt2, anybody's network.onnx.",
            autocompletion=complete_models,
        ),
    ] = None,
    size: Sizes = None,
    batch: Annotated[
        int, Option(help="Frames that a file takes at once, one of each of several cameras.")
    ] = 1,
    one_file: Annotated[
        bool, Option("--one-file", help="One file for all sizes, in place of a file for each.")
    ] = False,
    to: Annotated[
        list[Target] | None,
        Option(
            help="What to write, by default onnx; onnxruntime: in int8 a graph of its own for that "
            "runtime; may be repeated."
        ),
    ] = None,
    precision: Annotated[
        Precision | None,
        Option(
            help="Precision inside the graph: by default auto, the fastest that passes here, for "
            "weights that ship; fp32 for others, --one-file and --to triton; with --all fp16 and "
            "fp32."
        ),
    ] = None,
    out: Annotated[Path, Option("-o", "--out", help="Folder for the artifacts.")] = Path(
        "artifacts"
    ),
    output: Annotated[Outputs, Option(help="Outputs of the graph.")] = Outputs.labels,
    fit: Annotated[
        Fit | None,
        Option(help="How frames of another aspect ratio are fitted."),
    ] = None,
    pad_color: Annotated[
        str | None,
        Option(help="R,G,B beside letterboxed frames, such as 114,114,114; by default black."),
    ] = None,
    input: Annotated[
        CameraFormat,
        in_group(CAMERA, help="Format of the frames that the graph takes."),
    ] = CameraFormat.bgr,
    camera_size: Annotated[
        str | None,
        in_group(CAMERA, help="HxW of the camera's picture, which the graph resizes to --size."),
    ] = None,
    weights: Weights = None,
    ignore_keys: Annotated[
        list[str] | None,
        in_group(
            NETWORK, help='Entries that a checkpoint may lack or have too many, such as "aux.*".'
        ),
    ] = None,
    classes: ExportClasses = None,
    frames: Annotated[
        Path | None,
        in_group(PROOF, help="Folder of images to prove it on; by default shipped or drawn ones."),
    ] = None,
    proof_frames: Annotated[
        int, in_group(PROOF, min=1, help="How many of those images to take, spread over them.")
    ] = 24,
    labels: Annotated[
        Path | None,
        in_group(PROOF, help="Label PNGs of the frames, with the same names; proves the mIoU too."),
    ] = None,
    calib: Annotated[
        Path | None, in_group(INT8, help="Folder of real frames to calibrate int8 or fp8 on.")
    ] = None,
    calibration: Annotated[
        Method, in_group(INT8, help="How ranges are derived from them.")
    ] = Method.auto,
    calib_frames: Annotated[
        int, in_group(INT8, min=8, help="How many of them to calibrate on.")
    ] = 32,
    compute_capability: Annotated[
        list[str] | None,
        in_group(ENGINES, help="GPU generation, such as 8.6; may be repeated."),
    ] = None,
    gpu: Annotated[
        str | None,
        in_group(ENGINES, help="The GPU that it shall run on, such as h100, if not this one's."),
    ] = None,
    label_kernel: Annotated[
        bool,
        in_group(ENGINES, "--label-kernel", help="Make labels by a GPU kernel behind the engine."),
    ] = False,
    soc: Annotated[
        str | None,
        in_group(NPUS, help="Qualcomm chip that --to qnn is for: sm8550, qcm6490, ..."),
    ] = None,
    optimization_level: Annotated[
        int | None, in_group(ENGINES, min=0, max=5, help="How long the builder searches: 0 to 5.")
    ] = None,
    workspace: Annotated[
        int | None, in_group(ENGINES, min=1, help="Most MiB that a layer may use as it runs.")
    ] = None,
    version_compatible: Annotated[
        bool,
        in_group(ENGINES, "--version-compatible", help="For newer releases of TensorRT too."),
    ] = False,
    hardware_compatible: Annotated[
        bool,
        in_group(ENGINES, "--hardware-compatible", help="For all GPUs of 8.0 and later."),
    ] = False,
    timing_cache: Annotated[
        Path | None, in_group(ENGINES, help="File that keeps the times of kernels.")
    ] = None,
    dla: Annotated[
        int | None, in_group(ENGINES, min=0, max=1, help="Core of a Jetson's DLA that runs it.")
    ] = None,
    log: Annotated[str, in_group(ENGINES, help="Level of the build log.")] = "warning",
    normalize: Annotated[
        str | None, in_group(OWN, help="Normalization: imagenet, unit (0..1) or none (0..255).")
    ] = None,
    mean: Annotated[
        str | None,
        in_group(OWN, help="Instead of that: mean of each channel in 0..1, such as 0.5,0.5,0.5."),
    ] = None,
    std: Annotated[str | None, in_group(OWN, help="With --mean: standard deviations.")] = None,
    order: Annotated[
        str | None, in_group(OWN, help="Channel order of its input: rgb (the default) or bgr.")
    ] = None,
    logits: Annotated[
        str | None, in_group(OWN, help="Key or position of the logits in its output.")
    ] = None,
    preprocess: Annotated[
        str | None,
        in_group(
            OWN,
            help="Your own, package.module:callable or file.py:callable, from a camera's frame to "
            "the network's input; the export is proven from there on.",
        ),
    ] = None,
    whole_zoo: Annotated[
        bool, in_group(ZOO, "--all", help="Export every variant, with a table: zoo.md, zoo.json.")
    ] = False,
    only: Annotated[
        list[str] | None,
        in_group(ZOO, help='Variants such as "sfnet_*"; may be repeated.'),
    ] = None,
    scenes: Annotated[int, in_group(ZOO, min=1, help="Drawn scenes to prove each variant on.")] = 1,
    keep: Annotated[bool, in_group(ZOO, help="Keep the files, tens of GB.")] = True,
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, TensorRT or OpenVINO, and prove it.

    rtseg export csfcn_tiny --size 512x1024 --to openvino
    rtseg export csfcn_tiny --size 512x1024 --to onnx --to tensorrt --precision fp16
    rtseg export csfcn_nano --size 512x1024 --batch 4 --to tensorrt
    rtseg export csfcn_nano --size 512x1024 --size 768x1536 --one-file --to tensorrt
    rtseg export csfcn_nano --to openvino --precision int8 --calib drives/frames
    rtseg export csfcn_nano --size 360x480 --to qnn --soc sm8550
    rtseg export csfcn_tiny --size 512x1024 --input nv12 --camera-size 1080x1920
    rtseg export nets.py:make --classes cityscapes --normalize imagenet --size 512x1024
    rtseg export nets.py:make --preprocess nets.py:prepare --classes cityscapes \
        --normalize imagenet --size 512x1024
    rtseg export theirs.onnx --classes classes.yaml --normalize imagenet --precision fp16
    rtseg export --all --size 512x1024 --no-keep -o zoo
    """
    if (model is None) != whole_zoo:
        raise UsageError("name a model, or give --all for every variant: one of the two")
    targets = [target.value for target in to or ()]
    sizes = parse_sizes(size)
    if model is None:
        if weights or classes or frames or labels or calib or label_kernel or batch != 1:
            raise UsageError(
                "--all takes the variants as they come: leave out --weights, --classes, --frames, "
                "--labels, --calib, --label-kernel and --batch"
            )
        if precision is Precision.auto:
            raise UsageError("--all makes a table of forms to compare: name one or leave it out")
        from ..export.export_zoo import TABLE, build_table, export_all, list_faults, select_variants

        if len(sizes) > 1:
            raise UsageError("--all exports at one size: give one, and another folder for the next")
        wanted = {"targets": targets, "precisions": [precision.value] if precision else []}
        with working() as step:
            rows = export_all(
                select_variants(only or ()),
                sizes[0] if sizes else (512, 1024),
                out,
                frames=scenes,
                keep=keep,
                progress=step,
                # What was not asked for is left out, so that the function's own defaults count.
                **{name: tuple(value) for name, value in wanted.items() if value},
            )
        show(json.dumps([row.as_dict() for row in rows], indent=2), build_table(rows), as_json)
        for fault in list_faults(rows):
            note(fault)
        if failed := [row.key for row in rows if row.faults]:
            table = (out / TABLE).with_suffix(".md")
            named = ", ".join(failed)
            raise JobFailed(f"{len(failed)} of {len(rows)} failed: {named}; why: {table}")
        return
    from ..export import export as run
    from ..export.artifacts import build_table as build_artifact_table
    from ..export.artifacts import describe_next, list_notes
    from ..export.calibrate import Calibration
    from ..export.export import AUTO
    from ..export.fastest import announce, pick_default
    from ..export.tensorrt import BuilderOptions
    from ..resolve import load_source, read_own_options

    color = parse_color(pad_color) if pad_color else None
    own = read_own_options(
        *(sizes, normalize, mean, std, order, logits, preprocess, fit.value if fit else None, color)
    )
    source = load_source(model, weights, classes, ignore_keys or (), **own)
    note(
        f"{source.network.info.name}, {len(source.classes)} classes ({source.classes.name}), "
        f"weights: {source.weights_from}"
        + (f", license: {source.license}" if source.license else "")
    )
    asked = precision.value if precision else None
    if (asked or pick_default(source, targets, one_file)[0]) == AUTO:
        for line in announce(source, targets):
            note(line)
    with working() as step:
        artifacts = run(
            source,
            sizes or None,
            targets or "onnx",
            asked,
            batch=batch,
            one_file=one_file,
            out=out,
            output=output.value,
            fit=fit.value if fit else None,
            pad_color=color,  # type: ignore[arg-type]
            input=input.value,
            camera_size=parse_size(camera_size) if camera_size else None,
            frames=frames,
            labels=labels,
            proof_frames=proof_frames,
            calib=Calibration(calib, calibration.value, calib_frames) if calib else None,
            compute_capability=compute_capability or (),
            gpu=gpu,
            label_kernel=label_kernel,
            soc=soc,
            builder=BuilderOptions(
                optimization_level,
                workspace,
                version_compatible,
                hardware_compatible,
                timing_cache,
                dla,
            ),
            log=log,
            progress=step,
        )
    show(
        json.dumps([a.as_dict() | {"file": str(a.path)} for a in artifacts], indent=2),
        build_artifact_table(artifacts),
        as_json,
    )
    for line in list_notes(artifacts):
        note(line)
    note(describe_next(artifacts, out))
