"""Steps of the GPU suite: label kernels, the driver's own way to them, and the GPU's ceilings."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .gpu_job import Job, use_tests

CACHE_BYTES = 1 << 28  # more than any GPU's caches hold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..models import Network


def kernels(job: Job) -> None:
    """Every case of the unit tests on the device, then the kernels' time and bandwidth."""
    if job.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    use_tests()
    from label_cases import NAMES, case_of, count_wrong, labels_on  # type: ignore[import-not-found]

    wrong: dict[str, int] = {}
    names = ("factor 3, aligned", "shuffled, odd factor") if job.dry else NAMES
    for name in names:
        with job.part(case=name):
            case = case_of(name)
            found, allowed = count_wrong(labels_on(case, job.device), case, name)
            wrong |= {name: found} if found > allowed else {}
    job.row(cases=len(names), wrong=wrong)
    from .label_cost import label_cost

    for model in job.plan.labels_of:
        for size in job.plan.sizes:
            with job.part(label_cost=model, size=size):
                time_labels(job, model, size, label_cost)


def time_labels(job: Job, name: str, size: tuple[int, int], cost_of: Callable[..., Any]) -> None:
    """Beside the time: the bytes that the kernel has to move, which over it are its bandwidth."""
    from ..data.scenes import scenes
    from ..models.loading import load_model

    network, limits, frames = load_model(name).network, job.plan.limits, scenes(2, size)
    cost = cost_of(network, frames, size, 1, limits, job.device)
    job.row(label_cost=name, **asdict(cost), **bandwidth(job, network, size, frames[0]))


def bandwidth(
    job: Job, network: Network, size: tuple[int, int], frame: NDArray[np.uint8]
) -> dict[str, Any]:
    """The bytes that the kernel has to move, and a second's by the GPU's own clock, from caches
    that hold something else; and the time of resize and argmax in PyTorch by that clock."""
    import torch

    from ..models.pipeline import find_last_upsample
    from ..runtime.argmax_torch import make_label_maker
    from ..speed.timing import device_ms
    from .label_cost import NetworkEnd

    how = find_last_upsample(network, size)
    end = NetworkEnd(network, size, str(how), job.device)
    given = end.given(frame)
    maker = make_label_maker(given, size, how, 1, end.head)  # type: ignore[arg-type]
    moved = given.nbytes + size[0] * size[1] + (end.head.weight.nbytes if end.head else 0)
    if job.dry:
        return {"bytes": moved}
    other = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=job.device)
    spent, plain = (
        device_ms(call, job.device, before=other.zero_)
        for call in (lambda: maker(given), lambda: end.plain(given))
    )
    times = {"kernel_device_ms": spent, "plain_device_ms": plain}
    return {"bytes": moved, "bytes_per_s": round(1e3 * moved / spent) if spent else None, **times}


# The driver's own way: module, graph, kernel.


def driver(job: Job) -> None:
    """The kernel that travels with an engine, loaded by the driver: module, launch, graph, with
    outputs poisoned before each run and memory given back."""
    use_tests()
    import numpy as np
    from fake_cuda import (  # type: ignore[import-not-found]
        COARSE_SHAPE,
        SIZE,
        PretendedKernel,
        World,
        coarse_logits,
        picture,
    )
    from labels_plain import plain  # type: ignore[import-not-found]

    from ..export.argmax_kernel import CutGraph, compile_kernel
    from ..runtime.backends import cuda as cuda_module

    world = World()
    if job.dry:
        cuda_module._bindings = lambda api="runtime": world.api[api]
    cuda = cuda_module.Cuda(job.index)
    facts: dict[str, Any] = {"gpu": cuda.name, "compute_capability": cuda.compute_capability}
    for upsampling in ("bilinear", "bilinear_aligned"):
        with job.part(kernel=upsampling):
            ending = CutGraph(None, upsampling, COARSE_SHAPE, np.dtype(np.float16))  # type: ignore[arg-type]
            file = compile_kernel(ending, SIZE, [cuda.compute_capability])
            PretendedKernel(world, file)
            inputs = [coarse_logits(picture(seed)) for seed in range(3)]
            expected = [plain(each, SIZE, upsampling == "bilinear_aligned") for each in inputs]
            free = None if job.dry else cuda.free_bytes()
            wrong = [run_kernel(cuda, file, inputs, expected, SIZE) for _ in range(3)]
            if free is not None:
                facts["bytes_not_given_back"] = free - cuda.free_bytes()
            job.row(kernel=upsampling, wrong_pixels=wrong, **facts)
    if job.dry:
        job.row(alive=world.cuda.alive, modules=len(world.driver.modules))


def run_kernel(
    cuda: Any, file: Any, inputs: Any, expected: Any, size: tuple[int, int]
) -> dict[str, int]:
    """Wrong pixels of a kernel launched as it is and as a graph, each behind poisoned labels."""
    import numpy as np

    from ..runtime.backends.argmax_kernel import LabelKernel

    stream, coarse = cuda.create_stream(), cuda.allocate(inputs[0].nbytes)
    kernel = LabelKernel(file, cuda, coarse, size, stream)
    poison, found = np.full((1, *size), 255, np.uint8), np.empty((1, *size), np.uint8)
    graph, wrong = None, {"launched": 0, "replayed": 0}
    try:
        for way in wrong:
            if way == "replayed":
                cuda.begin_capture(stream)
                kernel.enqueue(stream)
                graph = cuda.end_capture(stream)
            for given, labels in zip(inputs, expected, strict=True):
                cuda.to_device(coarse, given, stream)
                cuda.to_device(kernel.labels, poison, stream)
                if graph is None:
                    kernel.enqueue(stream)
                else:
                    cuda.launch(graph, stream)
                cuda.to_host(found, kernel.labels, stream)
                cuda.synchronize(stream)
                wrong[way] += int(np.count_nonzero(found != labels))
    finally:
        if graph is not None:
            cuda.destroy_graph(graph)
        kernel.close()
        cuda.free(coarse)
        cuda.destroy_stream(stream)
    return wrong


# The machine's ceilings.


def ceilings(job: Job) -> None:
    """Matrix products in every precision, bandwidth, and copies to and from the host."""
    import torch

    from ..speed.roofline import measure_ceilings, measure_copies

    sides, size = ((64,), 1 << 16) if job.dry else ((), 1 << 28)
    seconds = 0.01 if job.dry else 0.3
    threads = torch.get_num_threads()
    job.row(**asdict(measure_ceilings(threads, job.device, seconds, sides, size)))
    if not job.dry:
        job.row(host_copies_bytes_per_s=measure_copies(job.device, seconds))
