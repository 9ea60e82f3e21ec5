"""The benchmark: artifacts and the plain PyTorch network, measured in turns in one run."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from ..runtime import ArtifactError
from ..runtime.preflight import gpus
from .clock import Lane, Limits, WarmUp, race, ratio, warm_up
from .contestants import Contestant, Frames
from .machine import Machine, Watch, machine, usable_cores
from .memory import PeakMemory
from .plan import Contest, EagerEntry, Entry, plan
from .result import STAGES, Report, Result, Speedup, Timing

Progress = Callable[[str, float], None]  # what is being done, and the share done of it, 0..1
NO_TORCH = 'no eager row to compare with: PyTorch is not installed; pip install "rtseg[export]"'


def bench(
    models: Sequence[str],
    sizes: Sequence[tuple[int, int]] = (),
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    *,
    seconds: float = 5.0,
    runs: int = 100,
    threads: int | None = None,
    frames: Frames | None = None,
    eager: bool = True,
    device: str | None = None,
    progress: Progress = lambda step, share: None,
) -> Report:
    """Measure each model at each (height, width) through each backend in each precision.

    models: paths of artifacts, which have one size and precision each; names of variants and paths
    of checkpoints, which are exported first (`plan` says how). Empty `sizes`, `backends` and
    `precisions` stand for the model's own, those installed, and each backend's default. threads: on
    the CPU, by default one per physical core. frames: (H, W, 3) uint8 BGR of any size, by default
    drawn scenes of the model's size. device: "cpu" or "cuda[:N]". eager: with the row of the plain
    PyTorch network.

    Raises ValueError for models, sizes, backends or precisions that do not fit each other, and
    ArtifactError for an artifact that does not run here.
    """
    limits = Limits(runs, seconds)
    report = Report([], machine(), limits, _utc_now(), [])
    contests, skipped = plan(models, sizes, backends, precisions, device, progress)
    warnings = list(skipped)
    has_torch = importlib.util.find_spec("torch") is not None
    if eager and not has_torch:
        warnings.append(NO_TORCH)
    rows: list[Result] = []
    host = _Host(report.machine, threads or usable_cores(), device, limits, progress)
    for contest in contests:
        results, failed = host.measure(contest, frames, eager and has_torch)
        rows += results
        warnings += failed
    return replace(report, rows=rows, warnings=[*warnings, *_doubts(rows, host.threads)])


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _doubts(rows: Sequence[Result], threads: int) -> list[str]:
    """What makes the figures less sure, a line each."""
    loudest = max((row.noise for row in rows), key=lambda noise: noise.others or 0, default=None)
    noise = loudest.warning() if loudest else None
    unsteady = [
        f"{row.subject.title} did not settle in {row.warm_up.seconds:.0f} s of warm-up"
        for row in rows
        if not row.warm_up.steady
    ]
    fewer = [
        f"{row.subject.title} was faster on {row.subject.threads} thread and so measured on it"
        for row in rows
        if row.subject.backend == "eager" and (row.subject.threads or threads) < threads
    ]
    return [*([noise] if noise else []), *unsteady, *fewer]


@dataclass(frozen=True)
class _Opened:
    contestant: Contestant
    warm_up: WarmUp
    host_mib: float | None
    device_mib: float | None


@dataclass(frozen=True)
class _Host:
    """The machine and how it is to be used."""

    machine: Machine
    threads: int
    device: str | None
    limits: Limits
    progress: Progress

    def measure(
        self, contest: Contest, frames: Frames | None, eager: bool
    ) -> tuple[list[Result], list[str]]:
        """(rows, why entries that nobody asked for by name are absent)."""
        frames = frames or contest.scenes()
        absent = []
        with ExitStack() as stack:
            opened = []
            for entry in contest.entries:
                try:
                    opened.append(self._open(entry, frames, stack))
                except ArtifactError as error:
                    if entry.asked_for:
                        raise
                    absent.append(f"{entry.backend} left out: {error}")
            if not opened:
                raise ArtifactError("; ".join(absent))
            for device in self._eager_devices(opened) if eager else []:
                opened.append(self._open(contest.eager(device), frames, stack))
            return self._race(contest.title, opened), absent

    def _open(self, entry: Entry | EagerEntry, frames: Frames, stack: ExitStack) -> _Opened:
        """Load and warm up one contestant, watching the memory that this takes."""
        self.progress(f"{entry.title}: warming up", 0.0)
        peak = PeakMemory()
        contestant = entry.open(frames, self.threads, self.device)
        stack.callback(contestant.close)
        warmed = warm_up(contestant.frame_to_labels)
        contestant.network()
        return _Opened(contestant, warmed, peak.host_mib(), peak.device_mib())

    def _eager_devices(self, opened: Sequence[_Opened]) -> list[str]:
        """A device of each kind that our rows ran on: an engine is compared on its own GPU."""
        subjects = [each.contestant.subject for each in opened]
        kinds = dict.fromkeys("cpu" if subject.threads else "cuda" for subject in subjects)
        if "cuda" in kinds and not _torch_has_cuda():
            del kinds["cuda"]
            kinds["cpu"] = None
        return list(kinds)

    def _race(self, title: str, opened: Sequence[_Opened]) -> list[Result]:
        lanes = [
            Lane(
                {"frame_to_labels": c.frame_to_labels, "network": c.network},
                aside=c.staged,
            )
            for c in (each.contestant for each in opened)
        ]
        watch = Watch()
        race(lanes, self.limits, progress=lambda share: self.progress(f"{title}: timing", share))
        noise = watch.noise()
        results = []
        for each, lane in zip(opened, lanes, strict=True):
            subject = each.contestant.subject
            results.append(
                Result(
                    subject=subject,
                    frame_to_labels=Timing.of(lane.times("frame_to_labels")),
                    network=Timing.of(lane.times("network")),
                    stages=_median_stages(each.contestant),
                    host_mib=each.host_mib,
                    device_mib=each.device_mib,
                    warm_up=each.warm_up,
                    against_eager=_speedup(each, lane, opened, lanes),
                    noise=noise,
                    machine=self.machine,
                )
            )
        return results


def _torch_has_cuda() -> bool:
    import torch

    return bool(gpus()) and torch.cuda.is_available()


def _median_stages(contestant: Contestant) -> dict[str, float]:
    laps = contestant.laps
    return {name: sorted(lap[name] for lap in laps)[len(laps) // 2] for name in STAGES}


def _speedup(
    ours: _Opened, lane: Lane, opened: Sequence[_Opened], lanes: Sequence[Lane]
) -> Speedup | None:
    """Against the eager row on the same kind of device; None for an eager row itself."""
    if ours.contestant.subject.backend == "eager":
        return None
    for other, other_lane in zip(opened, lanes, strict=True):
        subject = other.contestant.subject
        same_kind = (subject.threads is None) == (ours.contestant.subject.threads is None)
        if subject.backend == "eager" and same_kind:
            return Speedup(
                ratio(lane.rounds["frame_to_labels"], other_lane.rounds["frame_to_labels"]),
                ratio(lane.rounds["network"], other_lane.rounds["network"]),
            )
    return None
