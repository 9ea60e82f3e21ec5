"""Steps of the GPU suite, which `gpu_suite.py` starts one by one: each writes rows of facts.

    python -m rtseg.scripts.gpu_steps STEP --device cuda --seconds 60 --rows rows.jsonl
    python -m rtseg.scripts.gpu_steps pack CAMVID FOLDER    CamVid in under 40 MB, to take along

With `--device cpu` every step runs at a small size on what a CPU has: the driver's step on a
pretended GPU, the kernels in Triton's interpreter, engines built, and one raced on a pretended GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from . import gpu_artifacts, gpu_frames, gpu_kernels, gpu_networks, gpu_training
from .gpu_job import SKIPPED, Job, Skip

if TYPE_CHECKING:
    from ..gpu import ClockAtRest

LOAD_S = 1.0  # after which a clock is as high as it will be


def machine(job: Job) -> None:
    """What it is, what is installed, what could run on each GPU."""
    import torch

    from ..gpu import ClockAtRest, gpus, read_clocks
    from ..system import read_system

    at_rest = None if job.dry else ClockAtRest.read(job.index)
    job.row(**asdict(read_system()), cuda_of_torch=torch.version.cuda, plan=asdict(job.plan))
    for gpu in gpus():
        clocks = read_clocks(gpu)
        job.row(**asdict(gpu), clocks=asdict(clocks) if clocks else None)
    if at_rest is not None:
        watch_lock(job, at_rest)


def watch_lock(job: Job, at_rest: ClockAtRest) -> None:
    """A row: whether the clock stays under load where it was at rest."""
    import torch

    matrix = torch.ones(2048, 2048, device=job.device)
    until = time.monotonic() + LOAD_S
    while time.monotonic() < until:
        matrix.mm(matrix)
        torch.cuda.synchronize(job.device)
    doubt = at_rest.find_lock_missing()
    job.row(clock_at_rest_mhz=at_rest.sm_clock_mhz, clock_is_not_locked=doubt)
    if doubt:
        job.row(why=doubt)  # which the suite prints


STEPS: dict[str, Callable[[Job], None]] = {
    "machine": machine,
    "torch": gpu_networks.torch_backend,
    "compile": gpu_networks.torch_compile,
    "kernels": gpu_kernels.kernels,
    "driver": gpu_kernels.driver,
    "ceilings": gpu_kernels.ceilings,
    "tensorrt": gpu_artifacts.tensorrt,
    "onnxruntime": gpu_artifacts.onnxruntime,
    "in_flight": gpu_frames.in_flight,
    "cameras": gpu_frames.cameras,
    "training": gpu_training.training,
}


def pack(source: Path, target: Path) -> int:
    from ..errors import RtsegError

    try:
        gpu_training.pack(source, target)
    except RtsegError as error:
        sys.stderr.write(f"gpu_steps pack: {error}\n")
        return 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if wheels := os.environ.get("RTSEG_SUITE_WHEELS"):
        sys.path.append(wheels)
    if arguments[:1] == ["pack"]:
        return pack(*map(Path, arguments[1:3]))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--camvid", type=Path)
    given = parser.parse_args(arguments)
    ends = time.monotonic() + given.seconds
    job = Job(given.device, given.rows, given.out, ends, given.camvid)
    from ..errors import MissingPackage

    try:
        if not job.dry:
            import torch

            if not torch.cuda.is_available():
                raise Skip("PyTorch finds no GPU here")
        STEPS[given.step](job)
    except (Skip, MissingPackage) as reason:
        job.row(why=str(reason))
        return reason.status if isinstance(reason, Skip) else SKIPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())
