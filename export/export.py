"""The export: network -> ONNX graph -> targets -> proof -> files under their final names.

Files are made in a scratch folder inside the output folder and moved out of it once they have
their proof and card, the artifact itself last. An export that is killed leaves only the scratch
folder, which the next one removes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from numbers import Integral
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.camera_formats import CameraFormat, check_format
from ..data.classes import ClassSet
from ..data.files import check_writable, scratch_folder
from ..data.letterbox import Color, Fit, check_fit, is_letterbox
from ..errors import ArtifactError, ExportError, ProofError
from ..models import VARIANTS, Network, count, digest
from ..models.loading import Model, is_shipped, load_model
from ..models.onnx_file import OnnxNetwork
from ..models.preprocessing import check_sizes
from ..reporting import Progress
from ..runtime.artifact import (
    LARGEST,
    MOST_BATCH,
    MOST_SIZES,
    ROUNDED,
    Card,
)
from ..runtime.backends.backend import BACKENDS, is_installed
from ..runtime.support import find_capability, find_support
from .artifacts import Artifact, publish, write_report
from .calibrate import Calibration, CalibrationFrames
from .fastest import export_fastest, pick_default
from .graph import DTYPES
from .job import TARGETS, WITHOUT_GRAPH, ExportJob
from .reference import MOST_FRAMES, Frames, draw_frames, gather_frames
from .stored_ranges import find_stored_ranges, pick_calibration
from .tensorrt import BuilderOptions
from .triton import write_model

OUTPUTS = {"labels": ("labels",), "logits": ("logits",), "both": ("labels", "logits")}
PRECISIONS = (*DTYPES, *ROUNDED)
AUTO = "auto"  # the fastest that passes on this machine
TRITON = "triton"  # no target of its own: it serves ONNX files and engines
DRAWN = 3  # scenes, where no frames are given
Size = tuple[int, int]  # (height, width) in pixels
logger = logging.getLogger("rtseg")


def export(
    model: str | os.PathLike[str] | Network | Model,
    size: Size | Sequence[Size] | None = None,
    to: str | Sequence[str] = "onnx",
    precision: str | None = None,
    *,
    batch: int = 1,
    one_file: bool = False,
    weights: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | ClassSet | None = None,
    out: str | os.PathLike[str] = "artifacts",
    output: str = "labels",
    fit: Fit | None = None,
    pad_color: Color | None = None,
    input: CameraFormat = "bgr",
    camera_size: Size | None = None,
    frames: str | os.PathLike[str] | Frames | None = None,
    labels: str | os.PathLike[str] | None = None,
    proof_frames: int = MOST_FRAMES,
    calib: str | os.PathLike[str] | Calibration | None = None,
    compute_capability: Sequence[str] = (),
    gpu: str | None = None,
    label_kernel: bool = False,
    soc: str | None = None,
    builder: BuilderOptions | None = None,
    log: str = "warning",
    progress: Progress = lambda step, share: None,
) -> list[Artifact]:
    """Export a network at each size to each target, and prove every file.

    Files are `VARIANT_HxW_PRECISION` plus the target's ending, in `out` (with `_bN` before the
    ending where they take a batch of N), where `report.json` keeps
    the report of every artifact. An engine that cannot run on this machine carries its reference
    and is proven on the first machine that loads it.

    Args:
        model: what `load_model` gives, or takes; plain, not deployed.
        size: (height, width) in pixels, or several; by default that of the training.
        to: "onnx", "onnxruntime" (in int8 a form of its own), "openvino", "tensorrt", "torch",
            "qnn" (Qualcomm's NPU), "executorch" (Android, Arm Linux), or several of them; "triton"
            puts those of them that it serves, ONNX at least, into a model repository in `out`.
        precision: "fp32", "fp16", "int8" or "fp8", of the graph, or "auto", the fastest of the
            first three that passes on this machine; int8 and fp8 need `calib`, and are proven on
            the frames that this holds out; for weights that ship they need nothing. fp8 is for
            engines, on GPUs of compute capability 8.9 and later. By default "auto" for weights that
            ship, "fp32" for others, for Triton and with `one_file`; `Artifact.chosen` says which
            and why.
        batch: how many frames a file takes at once, each in a slot of its own, for as many cameras;
            proven with another frame in every slot.
        one_file: one file for all sizes, each proven; see `load` for which one a frame runs at. By
            default a file a size.
        weights: of a variant that is named, as `load_model` takes them.
        classes: of a network, as `load_model` takes them.
        out: folder for the artifacts.
        output: "labels", "logits" or "both".
        fit: "letterbox", "letterbox_center", "crop" or "stretch", how frames of another aspect
            come to the size; by default the model's own.
        pad_color: RGB, 0..255, of what is beside letterboxed frames; by default the model's own,
            black where it names none.
        input: format of the frames that the graph takes: "bgr", "nv12", "nv21", "yuyv", "uyvy" or
            "bayer_rggb", "bayer_bggr", "bayer_gbrg", "bayer_grbg"; its name joins the files'.
        camera_size: (height, width) in pixels of the camera's picture, which the graph brings to
            the size; by default the size itself. It joins the files' names too.
        frames: a folder, or (name, (H, W, 3) uint8 BGR) each, to prove it on; by default
            shipped ones for weights that ship, else drawn scenes.
        labels: folder with label PNGs of those frames, by the same names.
        proof_frames: how many of the folder's frames to take, spread over it.
        calib: folder of real frames for int8, or which of them and how.
        compute_capability: GPU generations that an engine is for, such as "8.6".
        gpu: that an engine shall run on, by its name ("h100"), if that is not this machine's; one
            that it cannot run on is warned of.
        label_kernel: engines end before their last upsampling, and a GPU kernel beside them makes
            the labels; their names end in `_kernel`.
        soc: the chip that a context binary for Qualcomm's HTP is for ("sm8550"), or QNN's number of
            it.
        builder: options of TensorRT's builder, which the card keeps.
        log: level of the log of TensorRT's builder.
        progress: called with what is being done and the share of it that is done, 0..1.

    Returns:
        One for each file, with its path, card and proof.

    Raises:
        ExportError: before anything is written, for a bad size, batch, target, precision, class
            set or calibration frames.
        UsageError: likewise, for a bad `fit`, `pad_color`, `input` or `camera_size`.
        ProofError: an artifact falls below the bar (the report is written), or no int8 graph
            reaches it.
    """
    model, out = load_model(model, weights, classes), Path(out)
    sizes = [model.trained_size] if size is None else _as_list(size, int)
    wanted = _as_list(to, str)
    # Triton serves what another target wrote; alone it asks for an ONNX file.
    targets = list(dict.fromkeys("onnx" if name == TRITON else name for name in wanted))
    engine = {
        "compute_capabilities": tuple(compute_capability), "gpu": gpu, "log_level": log,
        "options": builder,
    }  # fmt: skip
    if gpu is not None:
        find_capability(gpu)  # an unknown one is told before anything is written
    reason = ""
    if precision is None:
        precision, reason = pick_default(model, wanted, one_file)
    _check(model, sizes, targets, precision, output)
    if precision == AUTO and TRITON in wanted:
        raise ExportError("a model for Triton runs on another machine: name its precision")
    if ("qnn" in targets) != (soc is not None):
        raise ExportError("--soc names the chip of --to qnn: give both, or neither")
    if "qnn" in targets:
        _check_qnn(soc, precision, output, input != "bgr" or camera_size is not None)
    if "executorch" in targets:
        _check_executorch(model, precision, input != "bgr" or camera_size is not None)
    if precision == "fp8":
        _check_fp8([*compute_capability, *([gpu] if gpu else [])])
    _check_batch(batch)
    if one_file:
        converts = input != "bgr" or camera_size is not None
        ranged = precision == AUTO and find_stored_ranges(model) is not None
        integer = "onnxruntime" in targets and (precision == "int8" or ranged)
        integer = integer or "qnn" in targets
        _check_one_file(sizes, TRITON in wanted, converts, integer, "executorch" in targets)
    fit = fit or model.fit
    pad_color = pad_color or (model.pad_color if is_letterbox(fit) else None)
    check_fit(fit, pad_color)
    # As it was loaded it was compared already.
    loaded = (model.trained_size, model.fit, model.pad_color)
    others = [size for size in sizes if (size, fit, pad_color) != loaded]
    if model.preprocess is not None and others:
        check_sizes(model.preprocess, model.network, others, fit, pad_color, model.trained_size)
    for each in [camera_size] if camera_size else sizes:
        check_format(input, each)
    if label_kernel and ("tensorrt" not in targets or output != "labels"):
        raise ExportError("a label kernel is for engines that give labels only: add --to tensorrt")
    if isinstance(calib, (str, os.PathLike)):
        calib = Calibration(Path(calib))
    picked = pick_calibration(model, precision, calib)
    held_out = picked.held_out if isinstance(picked, CalibrationFrames) else None
    given = gather_frames(frames, labels, proof_frames, held_out, is_shipped(model), batch)
    if given is not None and len(given.frames) < batch:
        raise ExportError(
            f"a batch of {batch} is proven with another frame in every slot, and "
            f"{len(given.frames)} are {given.origin}: give more of them, or export a smaller batch"
        )
    # Only now: a wish that cannot be met has raised above, and left nothing behind.
    check_writable(out)
    if precision == AUTO:
        return export_fastest(
            export, model, sizes, targets, out, progress, batch=batch, output=output, fit=fit,
            pad_color=pad_color, input=input, camera_size=camera_size, frames=frames,
            labels=labels, proof_frames=proof_frames, compute_capability=compute_capability,
            gpu=gpu, label_kernel=label_kernel, builder=builder, log=log, one_file=one_file,
            soc=soc,
        )  # fmt: skip
    artifacts: list[Artifact] = []
    sizes = list(dict.fromkeys(sizes))
    for group in [sizes] if one_file else [[size] for size in sizes]:
        with scratch_folder(out, "export") as folder:
            card = make_card(model, group[0], precision, output, fit, batch, pad_color)
            camera = camera_size if camera_size != group[0] else None  # nothing to resize
            card = card.model_copy(update={"input": input, "camera_size": camera})
            if len(group) > 1:
                macs = tuple(count(model.network, size).macs for size in group)
                card = card.model_copy(update={"sizes": tuple(group), "size_macs": macs})
            proofs = {size: given or draw_frames(max(DRAWN, batch), size) for size in group}
            job = ExportJob(model, card, proofs, folder, progress, soc)
            if set(targets) - WITHOUT_GRAPH:
                job.make_graph(picked, "onnxruntime" in targets)
            made = [
                job.make_engine(engine, label_kernel)
                if target == "tensorrt"
                else job.make_file(target)
                for target in targets
            ]
            if reason:
                made = [replace(a, chosen=f"{a.path.name}: {precision}, {reason}") for a in made]
            # A size at a time, so that an error at the second keeps what the first has made.
            artifacts += [publish(artifact, out) for artifact in made]
    # Before the verdict: the figures of what failed are what a user needs to see.
    write_report(out, artifacts)
    if failed := [artifact for artifact in artifacts if not artifact.passed]:
        faults = [
            f"{a.path.name}: {fault}" for a in failed for r in a.results for fault in r.faults
        ]
        raise ProofError(
            f"below the parity bar: {'; '.join(faults)} (files kept in {out}, "
            f"full figures in {out / 'report.json'})"
        )
    if TRITON in wanted:
        _write_repository(artifacts, out / "triton")
    return artifacts


def _write_repository(artifacts: Sequence[Artifact], repository: Path) -> None:
    """A Triton model of every ONNX file and engine; an engine that it cannot serve is told of."""
    for artifact in artifacts:
        if artifact.target not in ("onnx", "tensorrt"):
            continue
        try:
            logger.info("Triton model: %s", write_model(artifact.path, repository))
        except ArtifactError as error:
            if artifact.target == "onnx":
                raise
            logger.warning("not for Triton: %s", error)


def _as_list(value: Any, single: type) -> list[Any]:
    """One value, or (for sizes, a pair of `single`) one pair, as a list."""
    if isinstance(value, str) or (single is int and value and isinstance(value[0], int)):
        return [value]
    return list(value)


def _check(
    model: Model, sizes: Sequence[Size], targets: Sequence[str], precision: str, output: str
) -> None:
    if unknown := [t for t in targets if t not in TARGETS]:
        raise ExportError(
            f"no target is called {unknown[0]!r}: choose from {', '.join(TARGETS)}, {TRITON}"
        )
    if precision not in (*PRECISIONS, AUTO):
        raise ExportError(f"precision is {', '.join(PRECISIONS)} or {AUTO}, not {precision!r}")
    # The file holds weights alone, and the runtime builds the network by its name in the zoo.
    if "torch" in targets and model.network.info.name not in VARIANTS:
        raise ExportError(
            f"{model.network.info.name} is not in the zoo, so its weights alone are not enough: "
            "choose onnx, openvino or tensorrt"
        )
    if precision == "int8" and "torch" in targets:
        raise ExportError("int8 is a precision of graphs: choose onnx, openvino or tensorrt")
    if precision == "fp8" and set(targets) != {"tensorrt"}:
        raise ExportError(
            "fp8 is a precision of TensorRT's engines: add --to tensorrt alone, or --precision int8"
        )
    if output not in OUTPUTS:
        raise ExportError(f"output is {', '.join(OUTPUTS)}, not {output!r}")
    if not sizes or not targets:
        raise ExportError("nothing to export: give at least one size and one target")
    info, classes = model.network.info, model.classes
    if len(classes) != info.num_classes:
        raise ExportError(
            f"the class set {classes.name!r} has {len(classes)} classes, but the model was built "
            f"with {info.num_classes}: pass the set that it was trained on"
        )
    for each in sizes:
        sides = each if isinstance(each, (tuple, list)) and len(each) == 2 else ()
        if not sides or not all(isinstance(side, Integral) and side <= LARGEST for side in sides):
            raise ExportError(
                f"a size is (height, width), in pixels up to {LARGEST}, not {each!r:.60}"
            )
        try:
            info.check_size(*sides)
        except ValueError as error:
            raise ExportError(str(error)) from error
    for target in targets:
        if not is_installed(TARGETS[target][1]):
            raise ExportError(f"{target} needs its package: {BACKENDS[TARGETS[target][1]].install}")


def _check_qnn(soc: str | None, precision: str, output: str, takes_camera: bool) -> None:
    from .qnn import find_soc

    find_soc(soc)
    for wrong, what in (
        (precision not in ("int8", AUTO), "is for int8: add --precision int8, and --calib DIR"),
        (output != "labels", "gives labels only: leave --output out"),
        (takes_camera, "takes BGR frames of its own size: leave --input and --camera-size out"),
    ):
        if wrong:
            raise ExportError(f"a context binary for Qualcomm's HTP {what}")


def _check_executorch(model: Model, precision: str, takes_camera: bool) -> None:
    for wrong, what in (
        (isinstance(model.network, OnnxNetwork), "is made of a PyTorch network: choose onnx"),
        (precision not in ("fp32", AUTO), "is in fp32 here: add --precision fp32"),
        (takes_camera, "takes BGR frames of its own size: leave --input and --camera-size out"),
    ):
        if wrong:
            raise ExportError(f"an ExecuTorch program {what}")


def _check_fp8(wanted: Sequence[str]) -> None:
    for gpu in wanted:
        answer = find_support(gpu, "tensorrt", precision="fp8")
        if not answer.works:
            raise ExportError(f"no engine in fp8 for {gpu}: {answer.why}: {answer.fix}")


def _check_batch(batch: int) -> None:
    if not 1 <= batch <= MOST_BATCH:
        raise ExportError(
            f"a batch is of 1 to {MOST_BATCH} frames, not {batch}: more cameras take several "
            "processes, or calls one after another"
        )


def _check_one_file(
    sizes: Sequence[Size], triton: bool, camera: bool, integer: bool, executorch: bool
) -> None:
    if len(set(sizes)) > MOST_SIZES:
        raise ExportError(f"one file takes up to {MOST_SIZES} sizes, not {len(set(sizes))}")
    for wrong, what in (
        (triton, "Triton would take frames of any size, and such a file is right at its own only"),
        (camera, "a conversion from a camera's format or size is of one size"),
        (integer, "the graph of int8 for ONNX Runtime and for qnn is made for one size"),
        (executorch, "an ExecuTorch program is made for one size"),
    ):
        if wrong and len(set(sizes)) > 1:
            raise ExportError(f"{what}: export a file for each, without --one-file")


def make_card(
    model: Model,
    size: Size,
    precision: str,
    output: str,
    fit: Fit = "letterbox",
    batch: int = 1,
    pad_color: Color | None = None,
) -> Card:
    """The card of an export that has not been proven yet."""
    info, cost = model.network.info, count(model.network, size)
    tools = {name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxslim")}
    return Card(
        model=info.name,
        size=size,
        batch=batch,
        trained_size=model.trained_size,
        fit=fit,
        pad_color=pad_color if any(pad_color or ()) else None,  # black is what None says
        precision=precision,  # type: ignore[arg-type]
        outputs=OUTPUTS[output],  # type: ignore[arg-type]
        classes=model.classes.names,
        palette=model.classes.palette,
        label_ids=model.classes.label_ids,
        class_set=model.classes.name,
        mean=info.mean,
        std=info.std,
        weights=digest(model.network),
        weights_from=model.weights_from,
        trained=model.trained,
        license=model.license,
        trained_on=model.trained_on,
        macs=cost.macs,
        params=cost.params,
        tools={"rtseg": __version__, "torch": torch.__version__, **tools},
    )
