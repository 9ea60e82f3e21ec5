"""Steps of the GPU suite: how frames come to a network, two in flight and in a camera's format."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gpu_artifacts import (
    building_with,
    export_for,
    installed_packages,
    pretend_engine,
    refuse_unsupported,
    refuse_without_cuda,
)
from .gpu_job import Job
from .gpu_race import write_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..data.camera_formats import CameraFormat, Size
    from ..speed.contestant import ArtifactContestant

ROUNDS = 3  # of one at a time and two in flight, in turns


# Two frames in flight.


def in_flight(job: Job) -> None:
    """Frames a second with the next one copied while one is computed, over one at a time; the
    labels of both ways have to be the same. A dry run has an engine on a pretended GPU."""
    from ..data.scenes import scenes
    from ..models.loading import load_model
    from ..speed.contestant import ArtifactContestant

    size, folder = job.plan.engine_size, job.rows.parent
    opened = partial(ArtifactContestant.open, frames=scenes(3, size), device=job.device)
    with job.part(backend="torch"):
        model, precision = load_model(job.plan.engine), job.plan.precisions[0]
        path = write_weights(model, size, precision, folder)
        compare_flows(job, opened(path, "torch"), backend="torch")
    if job.dry:
        with job.part(backend="tensorrt"):
            compare_flows(job, open_pretended(folder), backend="tensorrt")
        return
    with job.part(backend="tensorrt"):
        for package in installed_packages():
            with job.part(backend="tensorrt", flavour=package.flavour):
                path = build(job, package)
                for graph in (True, False):
                    each = opened(path, "tensorrt", cuda_graph=graph)
                    compare_flows(
                        job, each, backend="tensorrt", flavour=package.flavour, cuda_graph=graph
                    )


def build(job: Job, package: Any, **options: Any) -> Path:
    refuse_unsupported(job, package)
    with building_with(package.flavour):
        return export_for(job, "tensorrt", **options)


def open_pretended(folder: Path) -> ArtifactContestant:
    path = pretend_engine(folder)
    from fake_cuda import SIZE, picture  # type: ignore[import-not-found]

    from ..speed.contestant import ArtifactContestant

    frames = [picture(seed, SIZE)[0] for seed in range(3)]
    return ArtifactContestant.open(path, "tensorrt", frames)


def compare_flows(job: Job, each: ArtifactContestant, **named: Any) -> None:
    import numpy as np

    from ..speed.scenarios import measure_overlapped, measure_pipelined

    segment = each.segmenter
    frames = [next(each.frames) for _ in range(5)]
    alone = [segment(frame) for frame in frames]
    turned = sum(
        int(np.count_nonzero(ours != theirs))
        for ours, theirs in zip(segment.stream(frames), alone, strict=True)
    )
    seconds = job.plan.seconds
    rounds = [
        (measure_pipelined([each], seconds), measure_overlapped(each, seconds))
        for _ in range(ROUNDS)
    ]
    gains = [round(both.fps / one.fps, 4) for one, both in rounds]
    job.row(
        **named, in_flight=rounds[0][1].in_flight, options=dict(segment.info.options),
        labels_differ=turned, gain=statistics.median(gains), gains=gains,
        fps={"one": [one.fps for one, _ in rounds], "in_flight": [both.fps for _, both in rounds]},
        latency={way: asdict(flow.latency) for way, flow in zip(("one", "in_flight"), rounds[-1],
                                                                strict=True)},
    )  # fmt: skip
    each.close()


# A camera's formats.


def cameras(job: Job) -> None:
    """A camera's bytes straight into the graph, from the host and from the device, beside the way
    by OpenCV: conversion and resize on the CPU, then the network of BGR frames."""
    for backend, make in makers(job).items():
        bgr: list[Path] = []
        for kind, camera in product(job.plan.formats, job.plan.cameras):
            with job.part(backend=backend, input=kind, camera=camera):
                bgr = bgr or [make()]
                path = make(input=kind, camera_size=camera)
                compare_camera(job, backend, kind, camera, path, bgr[0])


def makers(job: Job) -> dict[str, Callable[..., Path]]:
    """By backend that runs here, what exports for it."""
    found: dict[str, Callable[..., Path]] = {"torch": partial(write_weights_for, job)}
    with job.part(backend="onnxruntime"):
        refuse_without_cuda(job)
        found["onnxruntime"] = partial(export_for, job, "onnx")
    if not job.dry:
        with job.part(backend="tensorrt"):
            for package in installed_packages():
                with job.part(flavour=package.flavour):
                    refuse_unsupported(job, package)
                    found.setdefault("tensorrt", partial(build, job, package))
    return found


def write_weights_for(
    job: Job, input: CameraFormat = "bgr", camera_size: Size | None = None
) -> Path:
    from ..models.loading import load_model

    plan, folder = job.plan, job.rows.parent
    model, precision = load_model(plan.engine), plan.precisions[0]
    return write_weights(model, plan.engine_size, precision, folder, input, camera_size)


def compare_camera(
    job: Job, backend: str, kind: CameraFormat, camera: Size, path: Path, bgr: Path
) -> None:
    """A row: ms from the camera's frame to labels, in three ways, and labels against the CPU's."""
    import numpy as np

    from ..data.camera_formats import from_bgr, to_bgr
    from ..data.scenes import scenes
    from ..runtime import load
    from ..speed.contestant import ArtifactContestant
    from ..speed.timing import Lane, Timing, race, ratio

    pictures = scenes(2, camera)
    taken = [np.ascontiguousarray(from_bgr(picture, kind)) for picture in pictures]
    ours = ArtifactContestant.open(path, backend, pictures, device=job.device)
    theirs = ArtifactContestant.open(bgr, backend, pictures, device=job.device)
    there = on_device(job, taken[0])
    lanes = {
        "from_host": Lane({"frame_to_labels": ours.frame_to_labels}),
        "from_device": Lane({"frame_to_labels": lambda: ours.segmenter.on_device(there, camera)}),
        "by_opencv": Lane({"frame_to_labels": lambda: theirs.segmenter(to_bgr(taken[0], kind))}),
    }
    race(list(lanes.values()), job.plan.limits)
    rounds = {way: lane.rounds["frame_to_labels"] for way, lane in lanes.items()}
    exact, runtime = path, "torch"
    if backend != "torch":
        exact, runtime = export_for(job, "onnx", input=kind, camera_size=camera), "onnxruntime"
    with load(exact, runtime, "cpu") as cpu:
        turned = [np.count_nonzero(cpu(frame) != ours.segmenter(frame)) for frame in taken]
    job.row(
        backend=backend, input=kind, camera=camera, labels_differ=int(sum(turned)),
        pixels=len(taken) * camera[0] * camera[1],
        **{way: asdict(Timing.of(lane.times("frame_to_labels"))) for way, lane in lanes.items()},
        **{f"by_opencv over {way}": asdict(ratio(rounds[way], rounds["by_opencv"]))
           for way in ("from_host", "from_device")},
        device_ms={"camera": ours.device_ms(), "bgr": theirs.device_ms()},
    )  # fmt: skip
    ours.close()
    theirs.close()


def on_device(job: Job, frame: Any) -> Any:
    """A frame where the network runs."""
    if job.dry:
        return frame
    import torch

    return torch.from_numpy(frame).to(job.device)
