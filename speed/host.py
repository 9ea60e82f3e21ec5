"""The machine and how it is used: contestants opened, raced in turns, and shown a camera."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from ..errors import ArtifactError, MissingPackage
from ..system import GpuState, Noise, NoiseWatch, PeakMemory, SystemInfo, gpus, watch_gpu
from .baselines import PEERS, usual_peers
from .camera_rate import Pace, Shot, Stalled, answered_ms, play
from .contestant import Contestant, Frames, per_run
from .plan import Contest, Entry, PeerEntry
from .result import STAGES, Result, Speedup
from .roofline import Ceilings, Share, Work, share
from .timing import Call, Histogram, Lane, Limits, Timing, WarmUp, race, ratio, warm_up

Progress = Callable[[str, float], None]  # what is being done, and the share done of it, 0..1


@dataclass(frozen=True)
class Opened:
    """A contestant that is loaded and warm; peak memory of that in MiB, where the system tells."""

    contestant: Contestant
    warm_up: WarmUp
    host_mib: float | None
    device_mib: float | None


@dataclass(frozen=True)
class Host:
    """machine: what it is; threads: on the CPU; device: "cpu", "cuda[:N]" or None for each
    backend's own; peers: names of PEERS, "eager" among them unless it is not wanted; camera_hz:
    None for no camera; stall_ms: injected into the camera's calls every 10 s, 0 for none."""

    machine: SystemInfo
    threads: int
    device: str | None
    limits: Limits
    progress: Progress
    peers: Sequence[str] = ("eager",)
    camera_hz: float | None = None
    deadline_ms: float | None = None
    stall_ms: float = 0.0
    ceilings: dict[str, Ceilings] = field(default_factory=dict)  # by kind of device

    def measure(self, contest: Contest, frames: Frames | None) -> tuple[list[Result], list[str]]:
        """(rows, why entries that nobody asked for by name are absent)."""
        frames = frames or contest.scenes()
        with ExitStack() as stack:
            opened, absent = self.open_all(contest, frames, stack)
            return self._race(contest, opened), absent

    def open_all(
        self, contest: Contest, frames: Frames, stack: ExitStack
    ) -> tuple[list[Opened], list[str]]:
        """(the contest's entries and their peers, why some are absent); `stack` closes them."""
        opened, absent = [], []
        for entry in contest.entries:
            try:
                opened.append(self.open(entry, frames, stack))
            except (ArtifactError, MissingPackage) as error:
                if entry.asked_for:
                    raise
                absent.append(f"{entry.backend} left out: {error}")
        if not opened:
            raise ArtifactError("; ".join(absent))
        for peer in self._peer_entries(contest, opened):
            try:
                opened.append(self.open(peer, frames, stack))
            except (ArtifactError, MissingPackage) as error:
                if PEERS[peer.peer].by_name_only:
                    raise
                absent.append(f"{peer.title} left out: {error}")
        return opened, absent

    def open(self, entry: Entry | PeerEntry, frames: Frames, stack: ExitStack) -> Opened:
        """Load and warm up one contestant, watching the memory that this takes."""
        self.progress(f"{entry.title}: warming up", 0.0)
        peak = PeakMemory()
        contestant = entry.open(frames, self.threads, self.device)
        stack.callback(contestant.close)
        warmed = warm_up(contestant.frame_to_labels)
        contestant.network()
        return Opened(contestant, warmed, peak.host_mib(), peak.device_mib())

    def _peer_entries(self, contest: Contest, opened: Sequence[Opened]) -> list[PeerEntry]:
        """On a device of each kind that our rows ran on: an engine is compared on its own GPU."""
        if not contest.has_network:
            return []
        kinds = dict.fromkeys(kind_of(each) for each in opened)
        if "cuda" in kinds and not _torch_has_cuda():
            del kinds["cuda"]
            kinds["cpu"] = None
        return [
            contest.peer(peer, kind) for kind in kinds for peer in usual_peers(self.peers, kind)
        ]

    def _race(self, contest: Contest, opened: Sequence[Opened]) -> list[Result]:
        lanes = [_lane(each.contestant) for each in opened]
        watch = NoiseWatch()
        race(
            lanes,
            self.limits,
            progress=lambda done: self.progress(f"{contest.title}: timing", done),
        )
        shots = self._camera(contest.title, opened)
        noise = watch.noise()
        work = contest.work() if self.ceilings else None
        return [
            self._result(each, lane, shots.get(id(each), []), noise, work, opened, lanes)
            for each, lane in zip(opened, lanes, strict=True)
        ]

    def _camera(self, title: str, opened: Sequence[Opened]) -> dict[int, list[Shot]]:
        """Every contestant at the camera's pace, in two halves, the second in reversed order: what
        drifts during the run meets all alike."""
        if self.camera_hz is None:
            return {}
        shots: dict[int, list[Shot]] = {id(each): [] for each in opened}
        count = max(2, round(self.camera_hz * self.limits.seconds / 2))
        for done, each in enumerate([*opened, *reversed(opened)]):
            self.progress(f"{title}: at {self.camera_hz:g} Hz", done / (2 * len(opened)))
            each.contestant.frame_to_labels()  # its memory was swapped for another's in the caches
            shots[id(each)] += play(self.at_pace(each.contestant), count, self.camera_hz)
        return shots

    def at_pace(self, contestant: Contestant) -> Callable[[int], object]:
        """What labels the frame of an index, with the stalls that were asked for."""

        def label(index: int) -> object:
            return contestant.frame_to_labels()

        return Stalled(label, self.stall_ms) if self.stall_ms else label

    def _result(
        self,
        each: Opened,
        lane: Lane,
        shots: Sequence[Shot],
        noise: Noise,
        work: Work | None,
        opened: Sequence[Opened],
        lanes: Sequence[Lane],
    ) -> Result:
        subject, contestant = each.contestant.subject, each.contestant
        network = Timing.of(lane.times("network"))
        histograms = {"burst": Histogram.of(lane.times("frame_to_labels"))}
        if shots:
            histograms["camera"] = Histogram.of(answered_ms(shots))
        hz = self.camera_hz
        return Result(
            subject=subject,
            frame_to_labels=Timing.of(lane.times("frame_to_labels")),
            network=network,
            papers=Timing.of(lane.times("papers") / per_run(contestant)),
            camera=Pace.of(shots, hz, self.deadline_ms) if shots and hz else None,
            stages=_median_stages(contestant),
            host_mib=each.host_mib,
            device_mib=each.device_mib,
            warm_up=each.warm_up,
            against=_speedups(each, lane, opened, lanes),
            noise=noise,
            machine=self.machine,
            gpu=self._gpu_state(contestant),
            share=self._share(each, network, work),
            histograms=histograms,
        )

    def _gpu_state(self, contestant: Contestant) -> GpuState | None:
        if contestant.subject.threads:
            return None
        index = (self.device or "").partition(":")[2]  # of "cuda:1"
        return watch_gpu(contestant.frame_to_labels, int(index or 0))

    def _share(self, each: Opened, network: Timing, work: Work | None) -> Share | None:
        ceilings = self.ceilings.get(kind_of(each))
        if ceilings is None or work is None:
            return None
        return share(work, each.contestant.subject.precision, network.p50_ms, ceilings)


def kind_of(opened: Opened) -> str:
    return "cpu" if opened.contestant.subject.threads else "cuda"


def _lane(contestant: Contestant) -> Lane:
    calls: dict[str, Call] = {
        "frame_to_labels": contestant.frame_to_labels,
        "network": contestant.network,
        "papers": partial(contestant.queued, per_run(contestant)),
    }
    return Lane(calls, aside=contestant.staged)


def _torch_has_cuda() -> bool:
    import torch

    return bool(gpus()) and torch.cuda.is_available()


def _median_stages(contestant: Contestant) -> dict[str, float]:
    laps = contestant.laps
    return {name: sorted(lap[name] for lap in laps)[len(laps) // 2] for name in STAGES}


def _speedups(
    ours: Opened, lane: Lane, opened: Sequence[Opened], lanes: Sequence[Lane]
) -> dict[str, Speedup]:
    """Against each peer on the same kind of device; {} for a peer itself."""
    if ours.contestant.subject.peer:
        return {}
    found = {}
    for other, other_lane in zip(opened, lanes, strict=True):
        subject = other.contestant.subject
        if subject.peer and kind_of(other) == kind_of(ours):
            found[subject.runner] = Speedup(
                ratio(lane.rounds["frame_to_labels"], other_lane.rounds["frame_to_labels"]),
                ratio(lane.rounds["network"], other_lane.rounds["network"]),
            )
    return found
