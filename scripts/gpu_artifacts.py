"""Steps of the GPU suite: artifacts in TensorRT and ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .gpu_job import Job, Skip, this_gpu, use_tests
from .gpu_race import QUICK, Race
from .gpu_suite import EXPORT, find_missing

if TYPE_CHECKING:
    from ..runtime.packages import Flavour, Package


def tensorrt(job: Job) -> None:
    """Engines by each TensorRT that runs here, in one race with PyTorch's backend and all peers:
    proof at first load, both ways to labels, graph on and off, and memory over many frames."""
    packages = [package for package in installed_packages() if runs_here(job, package)]
    if not packages:
        return
    with closing(Race(job, job.plan.engine, job.plan.engine_size)) as race:
        enter_quick(race)
        for package in packages:
            with job.part(flavour=package.flavour), building_with(package.flavour):
                enter_engines(race, package.flavour)
        if job.dry:
            enter_pretended(race)
        finish(race)


def enter_quick(race: Race) -> None:
    race.enter_torch(race.job.plan.precisions[0])
    for peer in QUICK:
        race.enter_peer(peer)


def finish(race: Race) -> None:
    """What a step can show before peers take its time, and then those."""
    if race.job.dry:
        import torch

        # The step "compile" has the real one.
        torch.compile = lambda module, **_: module  # type: ignore[assignment]
    race.run()
    race.watch_memory()
    race.compare_labels()
    race.run_with_slow_peers()
    race.compare_labels()


def installed_packages() -> list[Package]:
    from ..runtime.packages import FLAVOURS, find_package

    found = [package for flavour in FLAVOURS if (package := find_package(flavour))]
    if not found:
        raise Skip("neither tensorrt nor tensorrt_rtx is installed")
    return found


def runs_here(job: Job, package: Package) -> bool:
    """Whether it does; where not, that is a row."""
    with job.part(flavour=package.flavour, version=package.version):
        refuse_unsupported(job, package)
        return True
    return False


def refuse_unsupported(job: Job, package: Package) -> None:
    from ..runtime.support import find_support

    if not job.dry:
        verdict = find_support(this_gpu(job), package.flavour, package.version)
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


def enter_engines(race: Race, flavour: str) -> None:
    """Each as it is built, and a heat with it: the next build may be ended."""
    job = race.job
    for kernel in (True,) if job.dry else (True, False):
        with job.part(flavour=flavour, label_kernel=kernel):
            path = export_for(job, "tensorrt", label_kernel=kernel)
            job.row(flavour=flavour, label_kernel=kernel, bytes=path.stat().st_size)
            if job.dry:
                continue
            for graph in (True, False):
                title = f"{flavour}{' kernel' * kernel}{' graph' * graph}"
                race.enter_artifact(title, path, "tensorrt", cuda_graph=graph)
            race.run()


def enter_pretended(race: Race) -> None:
    """A dry run has an engine of a drawn network on a pretended GPU."""
    from ..speed.contestant import ArtifactContestant

    def start() -> ArtifactContestant:
        path = pretend_engine(race.job.rows.parent)
        return ArtifactContestant.open(path, "tensorrt", race.frames)

    race.enter("pretended engine", start)


def pretend_engine(folder: Path) -> Path:
    """An engine, and from now on the GPU that it runs on."""
    use_tests()
    from fake_cuda import pretend, write_engine  # type: ignore[import-not-found]

    pretend(SimpleNamespace(setattr=setattr, setenv=os.environ.__setitem__), folder)
    path: Path = write_engine(folder)
    return path


def export_for(job: Job, target: str, **options: Any) -> Path:
    """An artifact of the plan's network in fp16 for `target`, proven where that can be done; an
    ONNX file that is there already is taken."""
    refuse_missing(EXPORT)
    from ..export import export

    plan, name = job.plan, "-".join(map(str, (target, *options.values())))
    out = job.rows.parent / name.replace(" ", "")
    if target == "onnx" and (made := sorted(out.glob("*.onnx"))):
        return made[0]
    (artifact, *_) = export(plan.engine, plan.engine_size, target, "fp16", out=out, **options)
    return artifact.path


def onnxruntime(job: Job) -> None:
    """ONNX Runtime on the device, ours by each option, in one race with PyTorch's backend and all
    peers."""
    with closing(Race(job, job.plan.engine, job.plan.engine_size)) as race:
        enter_quick(race)
        with job.part(backend="onnxruntime"):
            refuse_without_cuda(job)
            path = export_for(job, "onnx")
            for options in ({},) if job.dry else ({}, {"cuda_graph": True}, {"prefer_nhwc": True}):
                title = " ".join(["ours in onnxruntime", *options])
                race.enter_artifact(title, path, "onnxruntime", **options)
        finish(race)


def refuse_missing(modules: Sequence[str]) -> None:
    if missing := find_missing(modules):
        raise Skip(f"not installed: {', '.join(missing)}")


def refuse_without_cuda(job: Job) -> None:
    refuse_missing(EXPORT)
    import onnxruntime

    if not job.dry and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise Skip("this ONNX Runtime was built without CUDA: install onnxruntime-gpu")
