"""What every protocol starts from: the machine, and what is to be measured on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.classes import ClassSet
from ..system import Noise, NoiseWatch, gpus, read_system, usable_cores
from .baselines import check_peers
from .ceilings import measure_ceilings
from .contestant import Frames
from .host import Host, Opened, Progress
from .plan import Contest, plan
from .roofline import Ceilings
from .sheet import Figures, Sheet, utc_now
from .timing import Limits

NO_TORCH = 'no eager row to compare with: PyTorch is not installed; pip install "rtseg[export]"'


@dataclass(frozen=True)
class Setup:
    """frames: None for scenes of each contest's size; warnings: lines on what cannot be, and
    noises, which grow while a protocol runs; started: UTC, ISO 8601."""

    host: Host
    contests: Sequence[Contest]
    frames: Frames | None
    warnings: list[str]
    started: str
    noises: list[Noise] = field(default_factory=list)

    @contextmanager
    def opened(self, contest: Contest) -> Iterator[list[Opened]]:
        """The contest's entries and peers, warm; notes what is absent, and a busy machine."""
        watch = NoiseWatch()
        with ExitStack() as stack:
            opened, absent = self.host.open_all(contest, self.frames_of(contest), stack)
            self.warnings.extend(absent)
            yield opened
        self.noises.append(watch.noise())

    def frames_of(self, contest: Contest) -> Frames:
        return self.frames or contest.scenes()

    def loudest(self) -> list[str]:
        """One line on the busiest moment, if there was any to speak of."""
        told = [noise for noise in self.noises if noise.others is not None]
        worst = max(told, key=lambda noise: noise.others or 0, default=None)
        warning = worst.warning() if worst else None
        return [warning] if warning else []

    def sheet(
        self,
        protocol: str,
        tables: Sequence[Figures],
        facts: Sequence[dict[str, Any]],
        settings: dict[str, Any],
        notes: Sequence[str] = (),
        answer: str = "",
    ) -> Sheet:
        return Sheet(
            protocol=protocol,
            tables=tables,
            facts=facts,
            machine=self.host.machine,
            started=self.started,
            settings=settings,
            warnings=[*self.warnings, *self.loudest()],
            notes=notes,
            answer=answer,
        )


def set_up(
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
    camera_hz: float | None = None,
    deadline_ms: float | None = None,
    stall_ms: float = 0.0,
    roofline: bool = False,
    calib: Path | None = None,
    classes: ClassSet | None = None,
    device: str | None = None,
    progress: Progress = lambda step, share: None,
) -> Setup:
    """Plans and exports what is to be measured; arguments and errors are those of `bench`."""
    limits, started = Limits(runs, seconds), utc_now()
    check_peers(peers)
    contests, skipped = plan(
        models, sizes, backends, precisions, device, progress, calib=calib, classes=classes
    )
    has_torch = importlib.util.find_spec("torch") is not None
    cores = threads or usable_cores()
    host = Host(
        machine=read_system(),
        threads=cores,
        device=device,
        limits=limits,
        progress=progress,
        peers=[*(["eager"] if eager else []), *peers] if has_torch else [],
        camera_hz=camera_hz,
        deadline_ms=deadline_ms,
        stall_ms=stall_ms,
        ceilings=_ceilings(device, cores, progress) if roofline else {},
    )
    warnings = [*skipped, *([NO_TORCH] if eager and not has_torch else [])]
    if eager and has_torch:
        unknown = dict.fromkeys(each.card.model for each in contests if not each.has_network)
        warnings += [f"no eager row: no network is called {name} here" for name in unknown]
    return Setup(host, contests, frames, warnings, started)


def _ceilings(device: str | None, threads: int, progress: Progress) -> dict[str, Ceilings]:
    """By kind of device: the GPU's where rows run on one, else the CPU's."""
    progress("the machine's ceilings", 0.0)
    if gpus() and device != "cpu" and importlib.util.find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            return {"cuda": measure_ceilings(threads, device or "cuda")}
    return {"cpu": measure_ceilings(threads)}
