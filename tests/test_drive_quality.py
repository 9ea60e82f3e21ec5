"""Deadline control on its own."""

from __future__ import annotations

import itertools

import pytest
from rtseg.runtime.drive.quality import HOLD_S, LevelChange, QualityLadder

SECOND = 1_000_000_000
NAMES, BASELINES = ("large", "medium", "small"), (50.0, 20.0, 5.0)


class Road:
    """Feeds a ladder one result every 50 ms, at `load` times the baselines."""

    def __init__(self, ladder: QualityLadder):
        self.ladder, self.now, self.load = ladder, SECOND, 1.0
        self.changes: list[LevelChange] = []

    def go(self, seconds: float) -> None:
        for _ in range(round(seconds * 20)):
            self.now += SECOND // 20
            latency = self.load * self.ladder.baselines_ms[self.ladder.level]
            change = self.ladder.observe(self.now, latency, latency + 1)
            if change:
                self.changes.append(change)


@pytest.mark.parametrize(
    ("deadline", "level"), [(None, "large"), (60, "large"), (49, "medium"), (1, "small")]
)
def test_the_largest_that_holds_the_deadline_is_first(deadline: float | None, level: str) -> None:
    assert QualityLadder(NAMES, BASELINES, deadline).name == level


def test_one_level_at_a_time_and_at_the_third_miss() -> None:
    road = Road(QualityLadder(NAMES, BASELINES, 70.0))
    road.go(1)
    road.load = 20.0
    road.go(0.10)
    assert road.ladder.name == "large"
    road.go(0.05)
    assert road.ladder.name == "medium"
    road.go(0.15)
    assert road.ladder.name == "small"
    assert road.ladder.overwhelmed is False
    road.go(1)
    assert road.ladder.overwhelmed


def test_without_a_deadline_nothing_changes() -> None:
    road = Road(QualityLadder(NAMES, BASELINES, None))
    road.load = 100.0
    road.go(10)
    assert road.changes == []


def test_it_does_not_climb_while_the_load_lasts() -> None:
    road = Road(QualityLadder(NAMES, BASELINES, 70.0))
    road.load = 2.0
    road.go(60)
    assert [c.after for c in road.changes] == ["medium"]
    road.load = 1.0
    road.go(2 * HOLD_S)
    assert road.ladder.name == "large"


def test_a_climb_needs_room() -> None:
    """50 ms plus a wait of 1 ms fit into 60 ms, but not into 80 % of it."""
    road = Road(QualityLadder(NAMES, BASELINES, 60.0))
    road.load = 1.5
    road.go(1)
    road.load = 1.0
    road.go(60)
    assert road.ladder.name == "medium"


def test_climbs_that_fail_become_rare() -> None:
    """The large artifact is slower in use than it was when measured."""
    ladder = QualityLadder(NAMES, BASELINES, 70.0)
    road = Road(ladder)
    for _ in range(120 * 20):
        road.load = 2.0 if ladder.level == 0 else 1.0
        road.go(0.05)
    climbs = [c.at_ns / SECOND for c in road.changes if c.after == "large"]
    waits = [late - early for early, late in itertools.pairwise(climbs)]
    assert len(waits) >= 3
    assert all(later > 1.7 * sooner for sooner, later in itertools.pairwise(waits))
    assert "the next climb waits 6 s" in road.changes[2].why


def test_a_level_slower_than_the_camera_counts_a_period_of_waiting() -> None:
    ladder = QualityLadder(("large", "small"), (60.0, 10.0), 120.0, period_ms=50.0)
    road = Road(ladder)
    road.load = 3.0
    road.go(1)
    road.load = 1.0
    road.go(30)
    assert road.ladder.name == "small"  # 60 + 50 is more than 96
