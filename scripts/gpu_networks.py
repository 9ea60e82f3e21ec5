"""Steps of the GPU suite: PyTorch's backend beside its peers, label by label."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial

from .gpu_job import Job
from .gpu_race import QUICK, SLOW, Race


def torch_backend(job: Job) -> None:
    """Our PyTorch backend against eager, and its labels against the CPU's."""

    def compare(race: Race) -> None:
        race.enter_peer("eager")
        race.run()
        race.compare_labels()

    with_every_network(job, job.plan.precisions, compare)


def torch_compile(job: Job) -> None:
    """`torch.compile` at its best against ours; compiling takes minutes, so it comes apart. Then
    the other peers, for as long as is left."""
    import torch

    if job.dry:  # the frontend alone: a C++ compiler would take most of the dry run
        torch.compile = partial(torch.compile, backend="eager")

    def beside(peers: tuple[str, ...], race: Race) -> None:
        for peer in peers:
            race.enter_peer(peer)
        race.run()

    first = "eager", "compile"
    others = tuple(peer for peer in (*QUICK, *SLOW) if peer not in first)
    for peers in (first, others):
        with_every_network(job, job.plan.precisions[:1], partial(beside, peers))


def with_every_network(job: Job, precisions: tuple[str, ...], call: Callable[[Race], None]) -> None:
    """Of every network at every size a race, in which our backend is in each precision."""
    for size in job.plan.sizes:
        for name in job.plan.models:
            with job.part(model=name, size=size), closing(Race(job, name, size)) as race:
                for precision in precisions:
                    race.enter_torch(precision)
                call(race)
