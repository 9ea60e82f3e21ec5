"""Steps of the GPU suite: artifacts in TensorRT and ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .gpu_job import Job, Skip, this_gpu
from .gpu_networks import measure, timed

if TYPE_CHECKING:
    from ..runtime.packages import Flavour, Package


def tensorrt(job: Job) -> None:
    """Engines by each TensorRT that runs here: proof at first load, both ways to labels, graph on
    and off, and memory over many frames."""
    for package in installed_packages():
        with job.part(flavour=package.flavour, version=package.version):
            refuse_unsupported(job, package)
            with building_with(package.flavour):
                engines(job, package.flavour)


def installed_packages() -> list[Package]:
    from ..runtime.packages import FLAVOURS, find_package

    found = [package for flavour in FLAVOURS if (package := find_package(flavour))]
    if not found:
        raise Skip("neither tensorrt nor tensorrt_rtx is installed")
    return found


def refuse_unsupported(job: Job, package: Package) -> None:
    from ..runtime.support import supported

    if not job.dry:
        verdict = supported(this_gpu(job), package.flavour, package.version)
        if not verdict.works:
            raise Skip(f"{verdict.why}: {verdict.fix}")


@contextmanager
def building_with(flavour: Flavour) -> Iterator[None]:
    from ..export import tensorrt as builder

    chosen = builder.choose_package
    builder.choose_package = lambda *_: chosen(flavour)
    try:
        yield
    finally:
        builder.choose_package = chosen


def engines(job: Job, flavour: str) -> None:
    for kernel in (True,) if job.dry else (False, True):
        with job.part(flavour=flavour, label_kernel=kernel):
            path = export_for(job, "tensorrt", label_kernel=kernel)
            job.row(flavour=flavour, label_kernel=kernel, bytes=path.stat().st_size)
            for graph in (True, False) if not job.dry else ():
                with job.part(flavour=flavour, label_kernel=kernel, cuda_graph=graph):
                    named = {"flavour": flavour, "label_kernel": kernel, "cuda_graph": graph}
                    serve(job, path, "tensorrt", named, cuda_graph=graph)


def export_for(job: Job, target: str, **options: Any) -> Path:
    """An artifact of the plan's network in fp16 for `target`, proven where that can be done; an
    ONNX file that is there already is taken."""
    from ..export import export

    plan, name = job.plan, "-".join(map(str, (target, *options.values())))
    out = job.rows.parent / name.replace(" ", "")
    if target == "onnx" and (made := sorted(out.glob("*.onnx"))):
        return made[0]
    (artifact, *_) = export(plan.engine, plan.engine_size, target, "fp16", out=out, **options)
    return artifact.path


def serve(job: Job, path: Path, backend: str, named: dict[str, Any], **options: Any) -> None:
    """Load an artifact (an engine proves itself then), time it, and watch memory over frames."""
    from ..data.scenes import scenes
    from ..gpu import gpu_memory_used
    from ..speed.contestant import ArtifactContestant
    from ..speed.timing import Lane, race
    from ..usage import read_usage

    frames = scenes(2, job.plan.engine_size)
    each = ArtifactContestant.open(path, backend, frames, device=job.device, **options)
    lane = Lane({"frame_to_labels": each.frame_to_labels, "network": each.network})
    race([lane], job.plan.limits)
    before = gpu_memory_used(), read_usage().resident_mib
    for _ in range(job.plan.steady):
        each.frame_to_labels()
    after = gpu_memory_used(), read_usage().resident_mib
    growth = [None if a is None or b is None else round(b - a, 1) for a, b in zip(before, after)]  # noqa: B905
    job.row(
        **named, **timed(job, each, lane, {}, ()), frames=job.plan.steady,
        device_bytes_grown=growth[0], host_mib_grown=growth[1],
    )  # fmt: skip
    each.close()


def onnxruntime(job: Job) -> None:
    """ONNX Runtime on the device: ours, and the plain export as others run it."""
    import onnxruntime as package

    if not job.dry and "CUDAExecutionProvider" not in package.get_available_providers():
        raise Skip("this ONNX Runtime was built without CUDA: install onnxruntime-gpu")
    with job.part(backend="onnxruntime"):
        path = export_for(job, "onnx")
        for options in ({},) if job.dry else ({}, {"cuda_graph": True}, {"prefer_nhwc": True}):
            with job.part(backend="onnxruntime", **options):
                serve(job, path, "onnxruntime", {"backend": "onnxruntime"} | options, **options)
    for peer in ("onnxruntime", "tensorrt", "torch_tensorrt", "torch2trt"):
        if not job.dry or peer == "onnxruntime":
            measure(job, job.plan.engine, job.plan.engine_size, (), (peer,), labels=True)
