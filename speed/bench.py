"""The benchmark: artifacts and their peers, timed in alternation in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cache
from typing import Any

from ..errors import UsageError
from ..gpu import ClockAtRest, gpus
from ..reporting import Progress, Table
from ..system import read_system, usable_cores
from .config import BenchConfig, as_list
from .host import Host, gpu_index
from .plan import Contest, plan
from .result import BenchResult, Report, latency_tables
from .roofline import Ceilings, measure_ceilings


def bench(
    model: Any,
    size: Any = (),
    backend: Any = (),
    precision: Any = (),
    *,
    progress: Progress = lambda step, share: None,
    **settings: Any,
) -> Report:
    """Measure each model at each size through each backend in each precision.

    Args:
        model: one or several: what `BenchConfig.models` takes.
        size: (height, width), one or several; by default the model's own.
        backend: one or several; by default the fastest that are installed.
        precision: one or several; by default each backend's own.
        progress: called with what is being done and the share of it that is done, 0..1.
        settings: further fields of `BenchConfig`.

    Returns:
        The rows, ours and those of the peers, with tables and JSON.

    Raises:
        UsageError: for models, sizes, backends, precisions or peers that do not fit each other.
        ArtifactError: for an artifact or a named peer that does not run here.
    """
    config = BenchConfig(
        as_list(model), as_list(size), as_list(backend), as_list(precision), **settings
    )
    return measure_latency(set_up(config, progress))


@dataclass(frozen=True)
class Setup:
    """What every protocol starts from; started: UTC, ISO 8601; warnings: lines on what was asked
    for and cannot be."""

    host: Host
    contests: Sequence[Contest]
    warnings: Sequence[str]
    started: str

    @property
    def single_frame_contests(self) -> Sequence[Contest]:
        """The contests, for a protocol that shows each row one frame after another.

        Raises:
            UsageError: an artifact takes a batch.
        """
        for contest in self.contests:
            if contest.card.batch > 1:
                raise UsageError(
                    f"{contest.title} takes {contest.card.batch} frames at once, which only "
                    "`rtseg bench latency` measures: name an artifact of one frame here"
                )
        return self.contests

    def report(
        self,
        protocol: str,
        tables: Sequence[Table],
        facts: Sequence[dict[str, object]],
        settings: dict[str, Any],
        notes: Sequence[str] = (),
        warnings: Sequence[str] = (),
        answer: str = "",
        rows: Sequence[BenchResult] = (),
    ) -> Report:
        """What a protocol found, with what is absent and the busiest moment of the machine."""
        told = [noise for noise in self.host.noises if noise.others is not None]
        # The busiest moment, not the mean: one row that was disturbed is one row that is wrong.
        loudest = max(told, key=lambda noise: noise.others or 0, default=None)
        busy = loudest.warning() if loudest else None
        return Report(
            protocol=protocol,
            tables=tables,
            facts=facts,
            machine=self.host.machine,
            started=self.started,
            settings=settings,
            absent=self.host.absent,
            warnings=[*self.warnings, *([busy] if busy else []), *self.host.doubts, *warnings],
            notes=notes,
            answer=answer,
            rows=rows,
        )


def set_up(config: BenchConfig, progress: Progress = lambda step, share: None) -> Setup:
    """Plan and export what is to be measured. Raises what `bench` does."""
    started = utc_now()
    # Before exports and ceilings, which may use the GPU.
    at_rest = None if config.device == "cpu" else ClockAtRest.read(gpu_index(config.device))
    contests, skipped = plan(config, progress)
    threads = config.threads or usable_cores()
    ceilings = _ceilings(config.device, threads, progress) if config.roofline else {}
    host = Host(config, read_system(), threads, progress, ceilings, at_rest=at_rest)
    return Setup(host, contests, skipped, started)


def measure_latency(setup: Setup) -> Report:
    """Every contest raced in turns, then shown a camera."""
    host, config = setup.host, setup.host.config
    rows: list[BenchResult] = []
    for contest in setup.contests:
        rows += host.race(contest)
    # What ran while exports and compilers did says nothing of the figures.
    host.noises[:] = [row.noise for row in rows]
    facts = [row.facts() for row in rows]
    ceilings = next(iter(host.ceilings.values()), None)
    settings = {
        "runs": config.runs,
        "seconds": config.seconds,
        "camera_hz": config.camera_hz,
        "stall_ms": config.stall_ms,
        "device": config.device,
        "ceilings": asdict(ceilings) if ceilings else None,
    }
    return setup.report(
        "latency",
        latency_tables(facts, config.camera_hz),
        facts,
        settings,
        notes=_notes(rows, config, ceilings),
        warnings=[line for row in rows for line in row.doubts(host.threads)],
        rows=rows,
    )


def _notes(
    rows: Sequence[BenchResult], config: BenchConfig, ceilings: Ceilings | None
) -> list[str]:
    subjects = [row.subject for row in rows]
    digests = dict.fromkeys(
        f"{s.model} {s.weights[:12]} ({'trained' if s.trained else 'random'})" for s in subjects
    )
    threads = dict.fromkeys(str(s.threads) for s in subjects if s.threads)
    return [
        *([str(ceilings)] if ceilings else []),
        *dict.fromkeys(str(row.gpu) for row in rows if row.gpu),
        f"threads {', '.join(threads) or 'not set'}; weights {', '.join(digests)}; "
        f"{config.runs} runs or {config.seconds:g} s a row, in turns; {utc_now()}",
    ]


def _ceilings(device: str | None, threads: int, progress: Progress) -> dict[str, Ceilings]:
    """By kind of device: the GPU's where rows run on one, else the CPU's."""
    progress("the machine's ceilings", 0.0)
    # The driver is asked first: to import PyTorch takes seconds.
    if gpus() and device != "cpu" and importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return {"cuda": _measure_once(threads, device or "cuda")}
    return {"cpu": _measure_once(threads)}


@cache
def _measure_once(threads: int, device: str = "cpu") -> Ceilings:
    """A machine's ceilings stay: a table of many networks measures them once."""
    return measure_ceilings(threads, device)


def utc_now() -> str:
    """To the second, in ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
