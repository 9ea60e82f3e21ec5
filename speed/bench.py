"""The benchmark: artifacts and their peers, measured in turns in one run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.classes import ClassSet
from .contestant import Frames
from .host import Progress
from .preparation import Setup, set_up
from .report import Report
from .result import Result

CAMERA_HZ = 10.0


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
    peers: Sequence[str] = (),
    camera_hz: float | None = CAMERA_HZ,
    deadline_ms: float | None = None,
    stall_ms: float = 0.0,
    roofline: bool = False,
    calib: Path | None = None,
    classes: ClassSet | None = None,
    device: str | None = None,
    progress: Progress = lambda step, share: None,
) -> Report:
    """Measure each model at each (height, width) through each backend in each precision.

    models: paths of artifacts, which have one size and precision each; names of variants and paths
    of checkpoints, which are exported first (`plan` says how). Empty `sizes`, `backends` and
    `precisions` stand for the model's own, those installed, and each backend's default. threads: on
    the CPU, by default one per physical core. frames: (H, W, 3) uint8 BGR of any size, by default
    drawn scenes of the model's size. device: "cpu" or "cuda[:N]". eager: with the row of the plain
    PyTorch network; peers: further names of `peers.PEERS`, "all" for those installed. camera_hz:
    rate of the camera that every row is shown too, None for none; a frame is late after
    `deadline_ms`, by default a period. stall_ms: held up that long every 10 s at the camera's
    pace, as a check. roofline: measure the machine's ceilings as well. calib: folder of frames
    that int8 is calibrated on. classes: of networks that are exported, by default their own.

    Raises ValueError for models, sizes, backends, precisions or peers that do not fit each other,
    and ArtifactError for an artifact or a named peer that does not run here.
    """
    setup = set_up(
        models,
        sizes,
        backends,
        precisions,
        seconds=seconds,
        runs=runs,
        threads=threads,
        frames=frames,
        eager=eager,
        peers=peers,
        camera_hz=camera_hz,
        deadline_ms=deadline_ms,
        stall_ms=stall_ms,
        roofline=roofline,
        calib=calib,
        classes=classes,
        device=device,
        progress=progress,
    )
    return race_all(setup)


def race_all(setup: Setup) -> Report:
    """The latency protocol: every contest raced in turns, then shown a camera."""
    host = setup.host
    rows: list[Result] = []
    for contest in setup.contests:
        results, absent = host.measure(contest, setup.frames)
        rows += results
        setup.warnings.extend(absent)
    settings = {"camera_hz": host.camera_hz, "stall_ms": host.stall_ms, "device": host.device}
    return Report(
        rows=rows,
        machine=host.machine,
        limits=host.limits,
        started=setup.started,
        warnings=[*setup.warnings, *doubts_of(rows, host.threads)],
        ceilings=next(iter(host.ceilings.values()), None),
        settings=settings,
    )


def doubts_of(rows: Sequence[Result], threads: int) -> list[str]:
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
        if row.subject.peer and (row.subject.threads or threads) < threads
    ]
    held = [row.gpu.warning(row.subject.title) for row in rows if row.gpu]
    return [*([noise] if noise else []), *unsteady, *fewer, *filter(None, held)]
