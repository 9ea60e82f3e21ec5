"""Timing: warm up until steady, then alternate, so that all contestants see the same machine."""

from __future__ import annotations

import importlib.util
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError

Call = Callable[[], object]
Now = Callable[[], int]  # nanoseconds, never going back
Progress = Callable[[float], None]  # takes the share done, 0..1
MS = 1e-6  # of a nanosecond
CYCLES_A_MS = 3e6  # of the fastest GPUs' clocks
LONGEST_HOLD_MS = 100.0


@dataclass(frozen=True)
class Limits:
    """When timing ends: for each call after `runs` runs or `seconds` s of them, whichever is first,
    and `rounds` turns at least. A turn lasts about `block_ms` a call, one run at least.
    """

    runs: int = 100
    seconds: float = 5.0
    rounds: int = 5
    block_ms: float = 300.0

    def __post_init__(self) -> None:
        if self.runs < 1 or self.seconds <= 0 or self.rounds < 2:
            raise UsageError("a measurement needs runs >= 1, seconds > 0 and rounds >= 2")


@dataclass(frozen=True)
class Timing:
    """Single runs, of one batch each. `fps`: frames a second one run after another, from the
    mean."""

    runs: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_9_ms: float
    max_ms: float
    std_ms: float
    fps: float

    @classmethod
    def of(cls, times: NDArray[np.float64], batch: int = 1) -> Timing:
        """times (runs,) in ms, one at least; batch: frames in a run."""
        p50, p90, p99, p99_9 = np.percentile(times, [50, 90, 99, 99.9])
        return cls(
            runs=len(times),
            mean_ms=round(float(times.mean()), 4),
            p50_ms=round(float(p50), 4),
            p90_ms=round(float(p90), 4),
            p99_ms=round(float(p99), 4),
            p99_9_ms=round(float(p99_9), 4),
            max_ms=round(float(times.max()), 4),
            std_ms=round(float(times.std()), 4),
            # The mean: frames one after another take their sum.
            fps=round(1e3 * batch / max(float(times.mean()), 1e-6), 3),
        )


@dataclass(frozen=True)
class Histogram:
    """`counts`: of the runs between neighboring `edges_ms`, which grow by a constant factor."""

    edges_ms: tuple[float, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, times: NDArray[np.float64], bins: int = 40) -> Histogram:
        """times (runs,) in ms, above 0."""
        low, high = max(float(times.min()), 1e-3), max(float(times.max()), 2e-3)
        # A little wider than the times, whose rounding may put the extremes outside.
        edges = np.geomspace(low * 0.999, high * 1.001, bins + 1)
        counts, _ = np.histogram(times, edges)
        return cls(tuple(float(f"{edge:.5g}") for edge in edges), tuple(counts.tolist()))


@dataclass(frozen=True)
class WarmUp:
    """`steady`: whether the median settled before the patience ended. `last_ms`: its last value."""

    runs: int
    seconds: float
    steady: bool
    last_ms: float


@dataclass
class Lane:
    """One contestant: its timed calls by name; untimed in each turn, `before` those of a name, and
    `aside` at the end.

    `rounds`: by call, the run times in ms of each turn; turns of all lanes correspond.
    """

    calls: Mapping[str, Call]
    aside: Call | None = None
    before: Mapping[str, Call] = field(default_factory=dict)
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)

    def times(self, name: str) -> NDArray[np.float64]:
        """All run times of a call (runs,) in ms, in the order they were taken."""
        return np.concatenate([np.asarray(turn, np.float64) for turn in self.rounds[name]])


def warm_up(
    call: Call,
    now: Now = time.perf_counter_ns,
    tolerance: float = 0.03,
    patience_s: float = 10.0,
    patience_runs: int = 200,
) -> WarmUp:
    """Run `call` until its running median is stable, or patience ends.

    Stable: the medians of the last quarter of the runs and of the quarter before it, of three runs
    each at least, differ by less than `tolerance`.
    """
    times: list[float] = []
    start = now()
    while len(times) < patience_runs and (now() - start) * MS < 1e3 * patience_s:
        times.append(_timed(call, now))
        if _settled(times, tolerance):
            return WarmUp(len(times), (now() - start) * MS / 1e3, True, times[-1])
    return WarmUp(len(times), (now() - start) * MS / 1e3, False, times[-1])


def _settled(times: Sequence[float], tolerance: float) -> bool:
    span = max(3, len(times) // 4)
    if len(times) < 2 * span:
        return False
    before, after = times[-2 * span : -span], times[-span:]
    earlier, later = statistics.median(before), statistics.median(after)
    return abs(later - earlier) <= tolerance * earlier


def race(
    lanes: Sequence[Lane],
    limits: Limits,
    now: Now = time.perf_counter_ns,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Fill the lanes' `rounds`: in each round every lane has one turn, in shuffled order.

    Every lane takes part in every round until the last one has enough, so that the times of two
    lanes can be compared round by round.
    """
    for lane in lanes:
        lane.rounds = {name: [] for name in lane.calls}
    order = list(lanes)
    shuffle = random.Random(seed).shuffle
    while (done := min(_share_done(lane, limits) for lane in lanes)) < 1:
        if progress is not None:
            progress(done)
        # In another order each round, so that nobody always runs behind the same neighbor.
        shuffle(order)
        for lane in order:
            _turn(lane, limits.block_ms, now)
    if progress is not None:
        progress(1.0)


def _turn(lane: Lane, block_ms: float, now: Now) -> None:
    """Calls of one lane, one after another.

    The first run is not counted, unless it is longer than a whole block.
    """
    # It finds its caches cold and its thread pool asleep behind another lane's, which is no matter
    # of the contestant's own speed; in a long run that does not show.
    first, *_ = lane.calls.values()
    # OpenVINO's first call of a turn took 34 ms where the others took 15 (csfcn_nano, 256x512).
    opening = _timed(first, now)
    for name, call in lane.calls.items():
        if name in lane.before:
            lane.before[name]()
        counted = call is first and opening > block_ms
        turn = [opening] if counted else [_timed(call, now)]
        while sum(turn) < block_ms:
            turn.append(_timed(call, now))
        lane.rounds[name].append(turn)
    if lane.aside is not None:
        lane.aside()


def device_ms(call: Call, device: str, runs: int = 20, before: Call | None = None) -> float | None:
    """The median time of `call` on a GPU's own clock: what the wall's has more is launching and
    waiting.

    Args:
        call: queues its work on PyTorch's current stream.
        device: "cpu" or "cuda[:N]".
        runs: how many calls are timed.
        before: queued in front of each, untimed.

    Returns:
        Milliseconds by CUDA events; None on a CPU, and without a PyTorch that uses the GPU.
    """
    if device == "cpu" or importlib.util.find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    hold: Any = torch.cuda._sleep
    with torch.cuda.device(device):
        call()
        torch.cuda.synchronize()
        queued_ms = _timed(call, time.perf_counter_ns)
        torch.cuda.synchronize()
        times = []
        for _ in range(runs):
            event: Any = torch.cuda.Event
            begin, end = event(enable_timing=True), event(enable_timing=True)
            if before is not None:
                before()
            # A GPU that has nothing else to do begins at once, and would wait for each launch:
            # the time of small kernels would be that of the host.
            hold(int(min(2 * queued_ms, LONGEST_HOLD_MS) * CYCLES_A_MS))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(float(begin.elapsed_time(end)))
    return round(statistics.median(times), 4)


def _timed(call: Call, now: Now) -> float:
    start = now()
    call()
    return (now() - start) * MS


def _share_done(lane: Lane, limits: Limits) -> float:
    """0..1: how far the call that is least far has come."""
    shares = []
    for turns in lane.rounds.values():
        times = [time for turn in turns for time in turn]
        enough = max(len(times) / limits.runs, sum(times) / (1e3 * limits.seconds))
        shares.append(min(enough, len(turns) / limits.rounds))
    return min(shares)


@dataclass(frozen=True)
class Ratio:
    """How many times as long one call takes as another: ratio of the medians, and the interval that
    holds it with 95 % confidence."""

    value: float
    low: float
    high: float


def ratio(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """Theirs over ours, from the turns of two lanes of one race; above 1 ours is faster.

    By a bootstrap over whole rounds.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"turns correspond in one race only: {len(ours)} and {len(theirs)} given")
    generator = np.random.default_rng(seed)
    # Whole rounds, the same for both: runs of one turn resemble each other, and drawing them one by
    # one would promise too narrow an interval.
    picks = generator.integers(0, len(ours), (resamples, len(ours)))
    values = [_median(theirs, pick) / _median(ours, pick) for pick in picks]
    everything = np.arange(len(ours))
    low, high = np.quantile(values, [0.025, 0.975])
    return Ratio(_median(theirs, everything) / _median(ours, everything), float(low), float(high))


def _median(turns: Sequence[Sequence[float]], pick: NDArray[np.int64]) -> float:
    return float(np.median([time for i in pick for time in turns[i]]))
