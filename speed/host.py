"""Runs contests on this machine: opened, timed in alternation, run at a camera's rate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from ..errors import ArtifactError, MissingPackage
from ..gpu import ClockAtRest, GpuState, watch_gpu
from ..reporting import Progress
from ..system import SystemInfo
from ..usage import Noise, NoiseWatch, PeakMemory
from .camera_rate import Pace, Shot, Stalled, answered_ms, play
from .config import BenchConfig
from .contestant import Contestant, Frames, per_run
from .peers import PEERS, choose_peers
from .plan import Contest, Entry, PeerEntry
from .result import STAGES, Absent, BenchResult, Speedup
from .roofline import Ceilings, Share, Work, share
from .timing import Histogram, Lane, Timing, WarmUp, race, ratio, warm_up

log = logging.getLogger("rtseg")


@dataclass(frozen=True)
class Opened:
    """A contestant that is loaded and warm; peak memory of that in MiB, where it is known."""

    contestant: Contestant
    warm_up: WarmUp
    host_mib: float | None
    device_mib: float | None

    @property
    def kind(self) -> str:
        return "cpu" if self.contestant.subject.threads else "cuda"


@dataclass
class Host:
    """Runs contests on this machine.

    Attributes:
        threads: on the CPU, the same for every contestant.
        ceilings: by kind of device, {} where they were not asked for.
        absent: rows that could not be measured, noises: what else ran; both grow meanwhile.
        at_rest: the GPU's clock before anything ran on it, where a driver tells it. doubts: a line
            if it is not locked.
    """

    config: BenchConfig
    machine: SystemInfo
    threads: int
    progress: Progress
    ceilings: dict[str, Ceilings] = field(default_factory=dict)
    absent: list[Absent] = field(default_factory=list)
    noises: list[Noise] = field(default_factory=list)
    at_rest: ClockAtRest | None = None
    doubts: list[str] = field(default_factory=list)
    _doubted: bool = field(default=False, init=False)

    @contextmanager
    def open_all(self, contest: Contest) -> Iterator[list[Opened]]:
        """The contest's entries and their peers, warm; notes which are absent, and a busy machine.

        Raises:
            ArtifactError: an entry or a peer that was asked for by name does not run, or none does.
            MissingPackage: likewise, for want of a package.
        """
        watch = NoiseWatch()
        with ExitStack() as stack:
            opened: list[Opened] = []
            for entry in contest.entries:
                self._open_or_note(contest, entry, entry.asked_for, stack, opened)
            # Peers alone would be a table of what others do.
            if not opened:
                raise ArtifactError("; ".join(each.why for each in self.absent))
            for peer in self._peers(contest, opened):
                asked_for = peer.asked_for and PEERS[peer.peer].by_name_only
                self._open_or_note(contest, peer, asked_for, stack, opened)
            yield opened
        # Loading and warming up too: what disturbs that disturbs the rows as well.
        self.noises.append(watch.noise())

    def _open_or_note(
        self,
        contest: Contest,
        entry: Entry | PeerEntry,
        asked_for: bool,
        stack: ExitStack,
        opened: list[Opened],
    ) -> None:
        """No row goes missing silently: what cannot run is noted with its reason."""
        try:
            opened.append(self._open(entry, self.frames_of(contest), stack))
        except (ArtifactError, MissingPackage) as error:
            if asked_for:
                raise
            self.note_absent(contest, entry.runner, str(error))

    def note_absent(self, contest: Contest, runner: str, why: str) -> None:
        card = contest.card
        self.absent.append(Absent(card.model, card.size, runner, why, card.batch))

    def _open(self, entry: Entry | PeerEntry, frames: Frames, stack: ExitStack) -> Opened:
        """Load and warm up one contestant, watching the memory that this takes."""
        self.progress(f"{entry.title}: warming up", 0.0)
        peak = PeakMemory()
        contestant = entry.open(frames, self.threads, self.config.device)
        stack.callback(contestant.close)
        # Before the race: threads, caches and clocks settle on the call that is timed.
        warmed = warm_up(contestant.frame_to_labels)
        contestant.network()
        opened = Opened(contestant, warmed, peak.host_mib(), peak.device_mib())
        if opened.kind == "cuda":
            self._doubt_clock()
        return opened

    def _doubt_clock(self) -> None:
        """Once, and at once: who reads it may lock the clock before minutes of timing."""
        if self.at_rest is None or self._doubted:
            return
        self._doubted = True
        if line := self.at_rest.find_lock_missing():
            log.warning(line)
            self.doubts.append(line)

    def frames_of(self, contest: Contest) -> Frames:
        given = cast("Frames | None", self.config.frames)  # read by then, where it was a folder
        return given or contest.scenes()

    def _peers(self, contest: Contest, opened: Sequence[Opened]) -> Iterator[PeerEntry]:
        """On a device of each kind that our rows ran on: an engine is compared on its own GPU."""
        asked = [*(["eager"] if self.config.eager else []), *self.config.peers]
        for kind in dict.fromkeys(each.kind for each in opened):
            for name in choose_peers(asked, kind):
                yield contest.peer(name, kind, name in self.config.peers)

    def race(self, contest: Contest) -> list[BenchResult]:
        """The latency protocol: all contestants in turns, then each at the camera's pace."""
        with self.open_all(contest) as opened:
            lanes = [_lane(each.contestant) for each in opened]
            watch = NoiseWatch()
            title = f"{contest.title}: timing"
            race(lanes, self.config.limits, progress=lambda done: self.progress(title, done))
            shots = self._show_camera(contest.title, opened)
            noise = watch.noise()
            work = contest.work() if self.ceilings else None
            return [
                self._result(each, lane, shots.get(id(each), []), noise, work, opened, lanes)
                for each, lane in zip(opened, lanes, strict=True)
            ]

    def _show_camera(self, title: str, opened: Sequence[Opened]) -> dict[int, list[Shot]]:
        rate = self.config.camera_hz
        if rate is None:
            return {}
        return dict(zip(map(id, opened), self.play_all(opened, rate, title), strict=True))

    def play_all(self, opened: Sequence[Opened], rate: float, title: str) -> list[list[Shot]]:
        """Every contestant at a camera's pace for `seconds`, in two halves, the second in reversed
        order: drift during the run affects all equally."""
        # Half, since every contestant plays twice.
        count = max(2, round(rate * self.config.seconds / 2))
        shots: dict[int, list[Shot]] = {id(each): [] for each in opened}
        for done, each in enumerate([*opened, *reversed(opened)]):
            self.progress(f"{title}: at {rate:g} Hz", done / (2 * len(opened)))
            each.contestant.frame_to_labels()  # its memory was swapped for another's in the caches
            shots[id(each)] += play(self._at_pace(each.contestant), count, rate)
        return [shots[id(each)] for each in opened]

    def _at_pace(self, contestant: Contestant) -> Callable[[int], object]:
        """What labels the frame of an index, with the stalls that were asked for."""

        def label(index: int) -> object:
            return contestant.frame_to_labels()

        stall_ms = self.config.stall_ms
        return Stalled(label, stall_ms) if stall_ms else label

    def _result(
        self,
        each: Opened,
        lane: Lane,
        shots: Sequence[Shot],
        noise: Noise,
        work: Work | None,
        opened: Sequence[Opened],
        lanes: Sequence[Lane],
    ) -> BenchResult:
        contestant, config = each.contestant, self.config
        batch = contestant.subject.batch
        network = Timing.of(lane.times("network"), batch)
        histograms = {"burst": Histogram.of(lane.times("frame_to_labels"))}
        pace = None
        if shots and config.camera_hz:
            histograms["camera"] = Histogram.of(answered_ms(shots))
            pace = Pace.of(shots, config.camera_hz, config.deadline_ms)
        laps = contestant.laps
        return BenchResult(
            subject=contestant.subject,
            frame_to_labels=Timing.of(lane.times("frame_to_labels"), batch),
            network=network,
            papers=Timing.of(lane.times("papers") / per_run(contestant), batch),
            camera=pace,
            # Medians by stage: they need not add up to the median of the whole.
            stages={n: sorted(lap[n] for lap in laps)[len(laps) // 2] for n in STAGES},
            host_mib=each.host_mib,
            device_mib=each.device_mib,
            warm_up=each.warm_up,
            against=_speedups(each, lane, opened, lanes),
            noise=noise,
            machine=self.machine,
            gpu=self._gpu_state(contestant),
            device_ms=contestant.device_ms(),
            share=self._share(each, network, work),
            histograms=histograms,
        )

    def _gpu_state(self, contestant: Contestant) -> GpuState | None:
        if contestant.subject.threads:
            return None
        # After the race, under the row's own load: reading clocks during it would disturb it.
        return watch_gpu(contestant.frame_to_labels, gpu_index(self.config.device))

    def _share(self, each: Opened, network: Timing, work: Work | None) -> Share | None:
        ceilings = self.ceilings.get(each.kind)
        if ceilings is None or work is None:
            return None
        subject = each.contestant.subject
        return share(work, subject, network.p50_ms / subject.batch, ceilings)


def gpu_index(device: str | None) -> int:
    """The N of "cuda:N"; 0 for anything else, which the backend refuses."""
    index = (device or "").partition(":")[2]
    return int(index) if index.isdecimal() else 0


def _lane(contestant: Contestant) -> Lane:
    return Lane(
        {
            "frame_to_labels": contestant.frame_to_labels,
            "network": contestant.network,
            "papers": partial(contestant.run_queued, per_run(contestant)),
        },
        before={"papers": contestant.take_noise},
        aside=contestant.time_stages,
    )


def _speedups(
    ours: Opened, lane: Lane, opened: Sequence[Opened], lanes: Sequence[Lane]
) -> dict[str, Speedup]:
    """Against each peer on the same kind of device; {} for a peer itself."""
    if ours.contestant.subject.peer:
        return {}
    found = {}
    for other, other_lane in zip(opened, lanes, strict=True):
        subject = other.contestant.subject
        if subject.peer and other.kind == ours.kind:
            found[subject.runner] = Speedup(
                ratio(lane.rounds["frame_to_labels"], other_lane.rounds["frame_to_labels"]),
                ratio(lane.rounds["network"], other_lane.rounds["network"]),
            )
    return found
