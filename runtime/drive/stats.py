"""What became of every frame, and how long things took; memory does not grow with the run."""

from __future__ import annotations

import math
import threading
from collections import Counter

GROWTH = 1.01  # of one bucket of a TimeHistogram to the next: quantiles are right to 1 %
SMALLEST_MS = 0.001


class FrameCounters:
    """Counters that both the capture thread and the loop move.

    Every captured frame ends as published or dropped with a cause; `open` are still on their way.
    """

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

    def publish(self) -> None:
        with self._lock:
            self._published += 1

    def drop(self, cause: str) -> None:
        with self._lock:
            self._dropped[cause] += 1

    def facts(self) -> dict[str, int | dict[str, int]]:
        with self._lock:
            dropped = dict(sorted(self._dropped.items()))
            ended = self._published + sum(dropped.values())
            return {
                "captured": self._captured,
                "published": self._published,
                "dropped": dropped,
                "open": self._captured - ended,
            }


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

    def quantile(self, share: float) -> float:
        """In ms, to 1 %; 0 if nothing was added."""
        rank = math.ceil(share * self.count)
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return min(SMALLEST_MS * GROWTH**bucket, self.largest_ms)
        return self.largest_ms

    def facts(self) -> dict[str, float]:
        """count, mean, p50, p95, p99 and max; times in ms."""
        facts = {f"p{share}": self.quantile(share / 100) for share in (50, 95, 99)}
        mean = self._sum / self.count if self.count else 0.0
        rounded = {
            name: round(ms, 3)
            for name, ms in ({"mean": mean} | facts | {"max": self.largest_ms}).items()
        }
        return {"count": self.count, **rounded}
