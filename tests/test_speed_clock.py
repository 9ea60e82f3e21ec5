"""Turns and warm-up, on a clock of our own."""

from __future__ import annotations

import numpy as np
import pytest
from rtseg.speed.timing import Lane, Limits, Ratio, Timing, race, ratio, warm_up
from speed_parts import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_warm_up_ends_once_the_median_is_stable(clock):
    times = iter([400, 200, 90, 40, 20, *[10] * 100])
    warmed = warm_up(lambda: clock.work(next(times)), clock)
    assert warmed.steady
    assert 10 <= warmed.runs <= 20  # the slow starts have left both windows
    assert warmed.last_ms == 10


def test_warm_up_gives_up_on_times_that_never_settle(clock):
    growing = iter(range(10, 10_000, 10))
    warmed = warm_up(lambda: clock.work(next(growing)), clock, patience_s=2)
    assert not warmed.steady
    assert warmed.seconds == pytest.approx(2, abs=0.3)


def lane_of(clock: Clock, whole_ms: float, network_ms: float, log: list[str], name: str) -> Lane:
    def call(what: str, ms: float):
        def run() -> None:
            log.append(f"{name} {what}")
            clock.work(ms)

        return run

    calls = {"whole": call("whole", whole_ms), "network": call("network", network_ms)}
    return Lane(calls, aside=call("aside", whole_ms))


def test_every_lane_has_one_turn_a_round_until_the_slowest_has_enough(clock):
    log: list[str] = []
    lanes = [lane_of(clock, 10, 8, log, "fast"), lane_of(clock, 500, 400, log, "slow")]
    race(lanes, Limits(runs=12, seconds=100, rounds=5, block_ms=100), clock)
    for lane, count in zip(lanes, (10, 1), strict=True):  # without the fast one's first run
        assert [len(turn) for turn in lane.rounds["whole"]] == [count] * 12
        assert len(lane.rounds["network"]) == 12
    assert set(lanes[0].times("whole")) == {10}
    assert set(lanes[1].times("network")) == {400}
    assert log.count("fast aside") == log.count("slow aside") == 12
    order = [line.split()[0] for line in log if line.endswith("aside")]
    assert order[:2] != order[2:4] or order[2:4] != order[4:6]  # shuffled


def test_a_race_ends_after_its_seconds_but_never_before_its_rounds(clock):
    lanes = [lane_of(clock, 100, 100, [], "one")]
    race(lanes, Limits(runs=1000, seconds=2, rounds=5, block_ms=50), clock)
    assert len(lanes[0].times("whole")) == 20
    race(lanes, Limits(runs=1000, seconds=0.1, rounds=5, block_ms=50), clock)
    assert len(lanes[0].times("whole")) == 5


def test_the_cold_first_run_of_a_turn_is_not_counted(clock):
    running: list[str] = []

    def call(name: str):
        def run() -> None:
            cold = running[-1:] != [name]
            running.append(name)
            clock.work(50 if cold else 10)

        return run

    lanes = [Lane({"whole": call("a")}), Lane({"whole": call("b")})]
    race(lanes, Limits(runs=30, seconds=100, block_ms=100), clock, seed=3)
    for lane in lanes:
        assert all(max(turn) == 10 for turn in lane.rounds["whole"])


def test_progress_goes_from_nothing_to_all(clock):
    shares: list[float] = []
    race([lane_of(clock, 10, 10, [], "one")], Limits(runs=50), clock, progress=shares.append)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_limits_refuse_what_cannot_be_measured():
    with pytest.raises(ValueError, match="seconds > 0"):
        Limits(seconds=0)


def test_the_ratio_is_of_the_medians_and_its_interval_holds_it():
    ours, theirs = [[10.0, 11, 12]] * 6, [[30.0, 33, 36]] * 6
    assert ratio(ours, theirs) == Ratio(3, 3, 3)
    generator = np.random.default_rng(0)
    noisy = [list(generator.normal(10, 1, 20)) for _ in range(12)]
    found = ratio(noisy, [[2 * t for t in turn] for turn in noisy[::-1]])
    assert found.low < found.value < found.high
    assert found.low < 2 < found.high


def test_a_machine_that_slows_down_for_all_does_not_widen_the_ratio():
    load = [1.0, 1.1, 1.5, 2.0, 1.2, 1.0, 3.0, 1.0]
    ours = [[10 * slow] * 5 for slow in load]
    theirs = [[40 * slow] * 5 for slow in load]
    found = ratio(ours, theirs)
    assert found.high - found.low < 0.01
    assert ratio(ours, theirs[::-1]).high - ratio(ours, theirs[::-1]).low > 0.5


def test_the_ratio_counts_rounds_rather_than_runs():
    """A thousand runs in four turns that differ by turn are four facts, not a thousand."""
    ours = [[float(slow)] * 250 for slow in (10, 20, 10, 20)]
    assert ratio(ours, [[10.0]] * 4).low <= 0.5
    assert ratio(ours, [[10.0]] * 4).high >= 1


def test_turns_of_different_races_are_refused():
    with pytest.raises(ValueError, match="one race"):
        ratio([[1.0]], [[1.0], [1.0]])


def test_timing_is_of_all_runs():
    timing = Timing.of(np.arange(1.0, 102))
    assert timing.runs == 101
    assert (timing.mean_ms, timing.p50_ms, timing.p90_ms, timing.max_ms) == (51, 51, 91, 101)
    assert timing.p99_ms == 100
    assert timing.std_ms == pytest.approx(29.1548)
    assert timing.fps == pytest.approx(1000 / 51, abs=1e-3)


def test_what_comes_before_a_call_is_not_timed():
    clock = Clock()
    lane = Lane({"run": lambda: clock.work(5)}, before={"run": lambda: clock.work(1000)})
    race([lane], Limits(runs=4, seconds=1), clock)
    assert set(lane.times("run")) == {5.0}
