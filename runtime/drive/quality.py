"""Deadline control: the largest of several artifacts that holds the deadline now."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW = 20  # results that a decision looks back on
MISSES = 3  # late ones of the last WINDOW that cost a level
HEADROOM = 0.8  # share of the deadline that a larger artifact may be expected to take
HOLD_S = 3.0  # before the first climb, and between two
LONGEST_HOLD_S = 300.0


@dataclass(frozen=True)
class LevelChange:
    """A step between levels, and why it was made."""

    at_ns: int
    before: str
    after: str
    why: str


class QualityLadder:
    """Levels from the largest artifact to the smallest.

    Down one level at the third late result of the last twenty. Up one level when none of them was
    late and the level above is expected to stay below 80 % of the deadline: its baseline, times the
    slow-down seen at the present level. A climb that had to be taken back doubles the wait for the
    next.

    Args:
        names: of the levels.
        baselines_ms: each one's p95 latency as measured at the start, on this machine.
        deadline_ms: of a result's age at publication; None: the first level is kept.
        period_ms: between frames.
    """

    def __init__(
        self,
        names: Sequence[str],
        baselines_ms: Sequence[float],
        deadline_ms: float | None,
        period_ms: float = 0.0,
    ):
        self.names, self.baselines_ms = tuple(names), tuple(baselines_ms)
        self.deadline_ms, self.period_ms = deadline_ms, period_ms
        self.level = self._first()
        self._latencies: deque[float] = deque(maxlen=WINDOW)
        self._waits: deque[float] = deque(maxlen=WINDOW)
        self._late: deque[bool] = deque(maxlen=WINDOW)
        self._changed_ns = 0
        self._hold_s = HOLD_S
        self._climbed = False  # whether the last change went up

    @property
    def name(self) -> str:
        return self.names[self.level]

    @property
    def overwhelmed(self) -> bool:
        """Whether the smallest artifact misses the deadline too."""
        return self.level == len(self.names) - 1 and sum(self._late) >= MISSES

    def observe(self, now_ns: int, latency_ms: float, age_ms: float) -> LevelChange | None:
        """Take note of a result at the present level.

        Args:
            now_ns: monotonic.
            latency_ms: from the start of the work to publication.
            age_ms: from capture to publication.

        Returns:
            The step that it caused, if any.
        """
        if self.deadline_ms is None:
            return None
        # The first result starts the clock, so that a drive does not climb in its first seconds.
        self._changed_ns = self._changed_ns or now_ns
        self._latencies.append(latency_ms)
        self._waits.append(max(0.0, age_ms - latency_ms))
        self._late.append(age_ms > self.deadline_ms)
        if sum(self._late) >= MISSES and self.level < len(self.names) - 1:
            return self._down(now_ns)
        if self.level > 0 and self._may_climb(now_ns):
            return self._up(now_ns)
        return None

    def _first(self) -> int:
        if self.deadline_ms is None:
            return 0
        holds = [i for i, ms in enumerate(self.baselines_ms) if ms <= self.deadline_ms]
        return holds[0] if holds else len(self.names) - 1

    def _down(self, now_ns: int) -> LevelChange:
        why = f"{sum(self._late)} of {len(self._late)} results missed {self.deadline_ms:g} ms"
        if self._climbed:
            self._hold_s = min(2 * self._hold_s, LONGEST_HOLD_S)
            why += f"; the next climb waits {self._hold_s:g} s"
        self._climbed = False
        return self._step(now_ns, self.level + 1, why)

    def _up(self, now_ns: int) -> LevelChange:
        if self._climbed:  # the climb before this one held
            self._hold_s = HOLD_S
        expected = self._expected_above()
        why = f"{expected:.0f} ms expected of {self.deadline_ms:g} ms"
        self._climbed = True
        return self._step(now_ns, self.level - 1, why)

    def _step(self, now_ns: int, level: int, why: str) -> LevelChange:
        change = LevelChange(now_ns, self.name, self.names[level], why)
        self.level, self._changed_ns = level, now_ns
        # What was seen at one level says nothing about another.
        for seen in (self._latencies, self._waits, self._late):
            seen.clear()
        return change

    def _may_climb(self, now_ns: int) -> bool:
        assert self.deadline_ms is not None
        rested = now_ns - self._changed_ns >= self._hold_s * 1e9
        calm = len(self._late) == WINDOW and not any(self._late)
        return rested and calm and self._expected_above() <= HEADROOM * self.deadline_ms

    def _expected_above(self) -> float:
        """The age in ms that results of the next larger artifact would have under today's load."""
        # Load is taken to slow all levels alike.
        slowdown = p95(self._latencies) / max(self.baselines_ms[self.level], 1e-3)
        latency = self.baselines_ms[self.level - 1] * slowdown
        # Slower than the camera, it finds a frame that has waited for up to a period.
        waiting = self.period_ms if latency > self.period_ms else p95(self._waits)
        return latency + waiting


def p95(times: Sequence[float] | deque[float]) -> float:
    """The time that one in twenty exceeds; 0 of nothing."""
    ordered = sorted(times)
    return ordered[int(0.95 * (len(ordered) - 1))] if ordered else 0.0
