"""The frontier: published mIoU against the time of a frame here, all networks in one run."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.classes import CITYSCAPES
from ..data.files import write_atomically
from ..data.limits import read_json
from ..errors import RtsegError, UsageError
from ..models.registry import find_variant
from ..models.variant import CITYSCAPES as VAL
from ..reporting import Progress, Table, format_figure
from ..resolve import fastest_backends
from ..runtime.packages import slug, writable_cache
from ..system import SystemInfo, read_system, usable_cores
from ..usage import BUSY, NoiseWatch
from .bench import utc_now
from .config import BenchConfig, Size
from .plan import Contest, plan
from .plots import frontier_plot, reported_score
from .table import cell_key, short_name
from .timing import Lane, Limits, race, ratio, warm_up

if TYPE_CHECKING:
    from .contestant import Contestant

REFERENCE = "pidnet_s"
ROUNDS = 4
TURNS = 3  # of a network and the reference in each round, at least
Visit = Mapping[str, Any]  # a network's share of a round, as its cell keeps it


@dataclass(frozen=True)
class FrontierPoint:
    """A network's published score and its time here.

    Attributes:
        run_by: backend and precision.
        miou: % on `data`, at a single scale, as its authors report it; None where they do not.
        data: "Cityscapes val", or "Cityscapes test" where there is no score on val.
        scored_at: (height, width) that the score is reported at.
        fastest_ms: the fastest of `runs` frames, from the frame in memory to the labels in memory.
        ratio: its time over the reference's in the same rounds, the ratio of the medians.
        low, high: that hold it with 95 % confidence.
        front: no other network with a score on val is at least as exact and faster by `ratio`.
    """

    model: str
    size: Size
    run_by: str
    macs: int
    trained: bool
    miou: float | None
    data: str
    scored_at: Size
    fastest_ms: float
    ratio: float
    low: float
    high: float
    runs: int
    front: bool = False

    @property
    def on_val(self) -> bool:
        return self.data == VAL


@dataclass(frozen=True)
class Frontier:
    """All points, fastest first. busiest: share of the processors' time that other work took in the
    busiest visit; absent: why a network could not be measured, by name."""

    title: str
    machine: SystemInfo
    measured: str
    rounds: int
    busiest: float
    points: Sequence[FrontierPoint]
    absent: Mapping[str, str]
    written: Sequence[Path] = ()
    reference = REFERENCE

    def to_json(self) -> str:
        value = asdict(self) | {"reference": self.reference}
        del value["written"]
        return json.dumps(value, indent=1)

    def table(self) -> Table:
        """A row a network, fastest first."""
        header = [
            "network", "mIoU, %", "scored at", "measured at", "GMACs", "run by", "fastest, ms",
            f"x {REFERENCE}", "front",
        ]  # fmt: skip
        rows = [
            [
                f"`{point.model}`",
                _score_cell(point),
                _shown(point.scored_at) if point.miou else "-",
                _shown(point.size),
                f"{point.macs / 1e9:.1f}",
                point.run_by,
                format_figure(point.fastest_ms),
                f"{point.ratio:.2f} ({point.low:.2f}-{point.high:.2f})",
                "yes" if point.front else "",
            ]
            for point in self.points
        ]
        return Table(header, rows, words=("mIoU, %", "scored at", "run by", "front"))

    def format(self, name: str) -> str:
        """The table as "md", "csv", "latex" or "html"."""
        return self.table().format(name) + "\n"

    def page(self) -> str:
        """The table as a page, with what was measured and how."""
        own = [f"`{point.model}`" for point in self.points if point.trained]
        weights = "random" + (f", but for {' and '.join(own)} those that ship" if own else "")
        lines = [
            str(self.machine),
            f"rounds over all networks: {self.rounds}, in each of which a network and {REFERENCE} "
            f"take turns; {self.measured}",
            f"other work took up to {self.busiest:.0%} of the processor time meanwhile"
            + (BUSY_LINE if self.busiest > BUSY else ""),
            f"weights are {weights}: speed is measured here, mIoU is as the authors published it",
        ]
        absent = [f"- {name}: {why}" for name, why in self.absent.items()]
        parts = [
            "# Accuracy against time",
            NOTE,
            "![Published mIoU against time](frontier.png)",
            "\n".join(f"- {line}" for line in lines),
            self.table().markdown(),
            *(["Not measured:\n\n" + "\n".join(absent)] if absent else []),
        ]
        return "\n\n".join(parts) + "\n"


BUSY_LINE = (
    ": **the times are a busy machine's and not to be quoted**; ratios hold about as closely as "
    "their intervals say"
)
NOTE = f"""Written by `rtseg bench frontier`; [benchmarking.md](../benchmarking.md) says how it is
measured. A call is from the frame in memory to the labels in memory, batch 1, 19 classes.
*x {REFERENCE}*: the time over that of {REFERENCE} in the same rounds, with the 95 % interval;
*front*: no network with a score on the validation set is both faster and as exact. Where *scored
at* is larger than *measured at*, the network needs the larger size, and its time, to reach its
score: all networks are compared at the same smaller size there."""


def measure_frontier(
    config: BenchConfig,
    folder: Path,
    rounds: int = ROUNDS,
    progress: Progress = lambda step, share: None,
) -> Frontier:
    """Measure what is not measured yet, network by network in rounds, and write `frontier.json`,
    `frontier.md` and `frontier.png`: a stopped run resumes where it was.

    Args:
        config: its models; its size, by default that of each one's score; `seconds` and `runs` of a
            network in a round.
        folder: to write into. What cannot be exported or run is listed under `absent`.
        rounds: over all networks; a later call may ask for more.
        progress: called with what is being done and the share of it that is done, 0..1.

    Raises:
        UsageError: several sizes or unknown variants are asked for, or nothing could be measured.
    """
    if len(config.sizes) > 1:
        raise UsageError("the frontier compares at one size: give one, or none for each one's own")
    config.refuse_batch("the frontier")
    for name in (*config.models, REFERENCE):
        find_variant(str(name))
    run = _Run(config, read_system())
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        for number in range(rounds):
            order = list(map(str, config.models))
            # In another order each round, so that nobody always runs in the same busy minute.
            random.Random(number).shuffle(order)
            for done, model in enumerate(order):
                progress(f"round {number + 1} of {rounds}: {model}", done / len(order))
                try:
                    run.visit(model, number, stack)
                except RtsegError as error:
                    absent[model] = str(error).splitlines()[0][:300]
    cells = [run.read(str(model)) for model in config.models]
    return _write(folder, run.here, [cell for cell in cells if cell["visits"]], absent)


class _Run:
    """Visits of networks, each kept in a file of the cache as soon as it is made."""

    def __init__(self, config: BenchConfig, here: SystemInfo):
        self.config, self.here = config, here
        self.folder = writable_cache("frontier") / slug(str(here))
        self.key = cell_key(config, here) | {"reference": REFERENCE}
        self.reference: Contestant | None = None
        self.contests: dict[str, Contest] = {}

    def size_of(self, model: str) -> Size:
        return self.config.sizes[0] if self.config.sizes else find_variant(model).size

    def _path(self, model: str) -> Path:
        return self.folder / f"{model}_{_shown(self.size_of(model))}.json"

    def read(self, model: str) -> dict[str, Any]:
        """A network's cell: what it was asked, facts of the network, visits."""
        with suppress(OSError, ValueError, KeyError):
            kept: dict[str, Any] = read_json(self._path(model))
            if kept["key"] == self.key:
                return kept
        return {"key": self.key, "facts": {}, "visits": []}

    def visit(self, model: str, number: int, stack: ExitStack) -> None:
        """Open a network beside the reference and time both in turns, unless that is done."""
        cell = self.read(model)
        if len(cell["visits"]) > number:
            return
        if self.reference is None:
            self.reference = self._open(REFERENCE)
            stack.callback(self.reference.close)
        watch = NoiseWatch()
        network = self._open(model)
        try:
            # A lane each, of which the reference is always one.
            lanes = [Lane({"call": each.frame_to_labels}) for each in (network, self.reference)]
            for lane in lanes:
                warm_up(lane.calls["call"], patience_s=3.0)
            race(lanes, Limits(self.config.runs, self.config.seconds, TURNS), seed=number)
            subject = network.subject
        finally:
            network.close()
        turns, beside = (lane.rounds["call"] for lane in lanes)
        cell["facts"] = {
            "model": model,
            "size": subject.size,
            "run_by": f"{subject.backend} {subject.precision}",
            "macs": subject.macs,
            "trained": subject.trained,
        }
        visit = {"turns": turns, "reference": beside, "others": watch.noise().others}
        cell["visits"].append(visit)
        write_atomically(self._path(model), json.dumps(cell).encode())

    def _open(self, model: str) -> Contestant:
        if model not in self.contests:
            self.contests[model] = self._plan(model)
        contest = self.contests[model]
        threads = self.config.threads or usable_cores()
        return contest.entries[0].open(contest.scenes(), threads, self.config.device)

    def _plan(self, model: str) -> Contest:
        """Export a network, or find it in the cache."""
        # One backend: the fastest here, in the precision that it computes in by itself.
        backends = self.config.backends or fastest_backends(self.config.device)[:1]
        wanted = self.config.only(model, self.size_of(model), backends=backends)
        wanted = replace(wanted, eager=False, peers=(), classes=wanted.classes or CITYSCAPES)
        contests, skipped = plan(wanted, lambda step, share: None)
        if skipped:
            raise UsageError("; ".join(skipped))
        # Without the PyTorch network: all of them together would fill the memory.
        return replace(contests[0], source=None)


def _write(
    folder: Path, here: SystemInfo, cells: Sequence[Mapping[str, Any]], absent: Mapping[str, str]
) -> Frontier:
    if not cells:
        raise UsageError("nothing could be measured: " + "; ".join(absent.values()))
    visits = [visit for cell in cells for visit in cell["visits"]]
    frontier = Frontier(
        title=short_name(here),
        machine=here,
        measured=utc_now(),
        rounds=min(len(cell["visits"]) for cell in cells),
        busiest=max(visit["others"] or 0.0 for visit in visits),
        points=mark_front([_point(cell["facts"], cell["visits"]) for cell in cells]),
        absent=absent,
    )
    pages = {
        "frontier.json": (frontier.to_json() + "\n").encode(),
        "frontier.md": frontier.page().encode(),
        "frontier.png": frontier_plot(frontier),
    }
    for name, content in pages.items():
        write_atomically(folder / name, content)
    return replace(frontier, written=[folder / name for name in pages])


def _point(facts: Mapping[str, Any], visits: Sequence[Visit]) -> FrontierPoint:
    # Turns of all rounds in a row: those of the reference correspond one by one.
    turns = [turn for visit in visits for turn in visit["turns"]]
    beside = [turn for visit in visits for turn in visit["reference"]]
    times = ratio(beside, turns)
    score, variant = reported_score(facts["model"]), find_variant(facts["model"])
    every = [time for turn in turns for time in turn]
    return FrontierPoint(
        **{**facts, "size": tuple(facts["size"])},
        miou=score.single if score else None,
        data=score.data if score else "",
        scored_at=variant.size,
        fastest_ms=round(min(every), 3),
        ratio=round(times.value, 4),
        low=round(times.low, 4),
        high=round(times.high, 4),
        runs=len(every),
    )


def mark_front(points: Sequence[FrontierPoint]) -> list[FrontierPoint]:
    """The points fastest first, those on the front marked: of scores on the validation set alone,
    which those of the test set do not compare with."""
    ordered = sorted(points, key=lambda point: point.ratio)
    best = 0.0
    marked = []
    for point in ordered:
        front = point.on_val and (point.miou or 0.0) > best
        best = max(best, point.miou or 0.0) if front else best
        marked.append(replace(point, front=front))
    return marked


def _score_cell(point: FrontierPoint) -> str:
    if point.miou is None:
        return "-"
    return f"{point.miou:g}" + ("" if point.on_val else " test")


def _shown(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
