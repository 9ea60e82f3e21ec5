"""Counters of frames and distributions of times; their memory does not grow with the run."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

GROWTH = 1.01  # of one bucket of a TimeHistogram to the next: quantiles are right to 1 %
SMALLEST_MS = 0.001


@dataclass(frozen=True)
class FrameCounts:
    """captured is published plus dropped, by cause, plus open: those still on their way."""

    captured: int = 0
    published: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    open: int = 0


class FrameCounters:
    """Counters that both the capture thread and the loop move: every captured frame ends as
    published or dropped with a cause."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._captured = 0
        self._published = 0
        self._dropped: Counter[str] = Counter()

    def capture(self) -> int:
        """The id of one more frame."""
        with self._lock:
            self._captured += 1
            return self._captured - 1

    def last_id(self) -> int | None:
        """Of the newest frame; None before the first."""
        return self._captured - 1 if self._captured else None

    def publish(self) -> None:
        with self._lock:
            self._published += 1

    def drop(self, cause: str) -> None:
        with self._lock:
            self._dropped[cause] += 1

    def counts(self) -> FrameCounts:
        with self._lock:
            dropped = dict(sorted(self._dropped.items()))
            ended = self._published + sum(dropped.values())
            return FrameCounts(self._captured, self._published, dropped, self._captured - ended)


@dataclass(frozen=True)
class TimeSummary:
    """Mean, quantiles and maximum of `count` times, in ms; 0 of nothing."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    def __str__(self) -> str:
        if not self.count:
            return "none"
        return f"p50 {self.p50:.1f} ms, p95 {self.p95:.1f}, p99 {self.p99:.1f}"


class TimeHistogram:
    """A distribution of times in ms as a histogram of logarithmic buckets."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._sum = 0.0
        self.count = 0
        self.largest_ms = 0.0

    def add(self, ms: float) -> None:
        ms = max(ms, SMALLEST_MS)
        self._counts[round(math.log(ms / SMALLEST_MS, GROWTH))] += 1
        self._sum += ms
        self.count += 1
        self.largest_ms = max(self.largest_ms, ms)

    def absorb(self, other: TimeHistogram) -> None:
        """Add all times of another one."""
        # A copy: the loop may add to it meanwhile, in its own thread.
        self._counts.update(dict(other._counts))
        self._sum += other._sum
        self.count += other.count
        self.largest_ms = max(self.largest_ms, other.largest_ms)

    def quantile(self, share: float) -> float:
        """In ms, to 1 %; 0 if nothing was added."""
        rank = math.ceil(share * self.count)
        # Few buckets: 2,500 reach from a microsecond to a day.
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return min(SMALLEST_MS * GROWTH**bucket, self.largest_ms)
        return self.largest_ms

    def summary(self) -> TimeSummary:
        mean = self._sum / self.count if self.count else 0.0
        quantiles = (self.quantile(share) for share in (0.5, 0.95, 0.99))
        rounded = (round(ms, 3) for ms in (mean, *quantiles, self.largest_ms))
        return TimeSummary(self.count, *rounded)
