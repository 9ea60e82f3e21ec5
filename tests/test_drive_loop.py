"""The vehicle loop in simulated time: ages, statuses, replacements, states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtseg.data.frames import Frame, Unreadable
from rtseg.runtime.drive.clock import DriveLimits
from rtseg.runtime.drive.engine import Answer
from rtseg.runtime.drive.health import assess_health, find_cause
from rtseg.runtime.drive.messages import StatusKind
from rtseg.runtime.drive.picture_faults import read_limits
from rtseg.usage import read_usage
from simulated import SECOND, SIZE, SimulatedClock, SimulatedEngine, Simulation

PERIOD = 0.1


def steady(latency_s: float, **options: Any) -> Any:
    return lambda clock: [lambda: SimulatedEngine(clock, lambda level: latency_s, **options)]


def accounted(drive: Simulation) -> bool:
    """Whether every captured frame was answered or dropped with a cause."""
    frames = drive.frames
    ended = frames["published"] + sum(frames["dropped"].values())
    return bool(frames["open"] == 0 and ended == frames["captured"])


def test_a_fast_network_answers_every_frame_with_its_own_labels() -> None:
    drive = Simulation(steady(0.03))
    drive.camera(PERIOD, 0, 10)
    drive.run(11)
    assert [r.index for _, r in drive.results] == list(range(100))
    assert all((r.labels == r.index % 256).all() for _, r in drive.results)
    assert all((r.image == r.index % 256).all() for _, r in drive.results)
    assert all(r.age_ms == pytest.approx(30) for _, r in drive.results)
    assert all(r.expires_ns - r.captured_ns == 500_000_000 for _, r in drive.results)
    first = drive.results[0][1]
    assert first.captured_wall_ns == 10**18 + first.captured_ns
    assert first.stages_ms == pytest.approx({"waiting": 0, "inference": 30, "publishing": 0})
    assert accounted(drive)


@pytest.mark.parametrize("latency", [0.2, 0.23, 0.37])
def test_overload_makes_no_queue(latency: float) -> None:
    """Twice and more the work that fits: frames are passed over, and none is old."""
    drive = Simulation(steady(latency))
    drive.camera(PERIOD, 0, 60)
    drive.run(61)
    ages = sorted(r.age_ms for _, r in drive.results)
    assert ages[int(0.99 * len(ages))] <= 1000 * (PERIOD + latency) + 1
    assert len(drive.results) >= 0.95 * 60 / (latency + PERIOD)
    assert drive.frames["dropped"]["replaced"] == 600 - len(drive.results)
    assert accounted(drive)


def test_a_mask_that_grows_too_old_is_withheld_and_told_at_once() -> None:
    drive = Simulation(steady(0.9), max_age_ms=300.0)
    drive.camera(PERIOD, 0, 1)
    drive.run(4)
    assert drive.results == []
    told, late = drive.statuses[0]
    assert (late.kind, late.cause, late.frame_id) == (StatusKind.LATE, "late", 0)
    assert told == pytest.approx(0.3, abs=0.001)  # not when the answer comes, at 0.9
    assert drive.frames["dropped"]["late"] == 2
    assert accounted(drive)


def test_the_sinks_hear_of_a_cut_camera_within_two_periods() -> None:
    drive = Simulation(steady(0.03))
    drive.camera(PERIOD, 0, 5)
    drive.camera(PERIOD, 8, 12)
    drive.run(13)
    last_frame = 4.9
    cut = [(t, s) for t, s in drive.statuses if t < 8]
    assert last_frame + PERIOD < cut[0][0] <= last_frame + 2 * PERIOD
    assert cut[0][1].kind is StatusKind.STALE
    gaps = np.diff([t for t, _ in cut])
    assert max(gaps) <= 1.01 * PERIOD  # and goes on hearing
    assert {s.kind for t, s in cut if t > last_frame + 1.01} == {StatusKind.LOST}
    assert drive.reopened_at[0] == pytest.approx(last_frame + 1.05, abs=0.05)
    back = next(t for t, _ in drive.results if t > 5.5)
    assert back == pytest.approx(8.03, abs=0.01)
    assert drive.states[:4] == ["starting", "running", "stale", "running"]


def test_a_camera_that_still_starts_is_not_opened_again() -> None:
    drive = Simulation(steady(0.03))
    drive.camera(PERIOD, 5, 7)
    drive.run(30)
    first, second = drive.reopened_at[:2]
    assert first == pytest.approx(
        7.9, abs=0.2
    )  # a second after its last frame, not before its first
    assert second - first == pytest.approx(8, abs=0.2)


@pytest.mark.parametrize(
    ("item", "cause"),
    [
        (Unreadable("7", "7 is damaged"), "corrupt"),
        (Frame(np.zeros((0, 4, 3), np.uint8), 0, 1), "corrupt"),
        (Frame(np.zeros((2, 2, 2, 2), np.uint8), 0, 1), "corrupt"),
        ("no frame", "corrupt"),
        (Frame(np.zeros((4, 4, 3), np.uint8), 0, None), "corrupt"),  # type: ignore[arg-type]
        (Frame(np.zeros((4, 4, 3), np.uint8), 0, 1 << 61), "corrupt"),  # from the future
        (Frame(np.zeros((4, 4, 3), np.uint8), 0, 5), "repeated"),  # older than the one before
    ],
)
def test_a_frame_that_is_none_is_skipped_and_told(item: Any, cause: str) -> None:
    drive = Simulation(steady(0.03))
    drive.camera(PERIOD, 0, 2)
    drive.clock.after(1.05, lambda: drive.capture.accept(item))
    drive.run(5)
    (status,) = (s for _, s in drive.statuses if s.cause == cause)
    assert (status.kind, status.frame_id) == (StatusKind.LOST, 11)
    assert drive.frames["dropped"] == {cause: 1}
    assert len(drive.results) == 20
    assert "degraded" in drive.states
    assert accounted(drive)


def test_a_frozen_camera_is_told_and_its_masks_withheld() -> None:
    """New stamps make no new picture: it is as old as the first one that was like it."""
    drive = Simulation(lambda clock: [lambda: SimulatedEngine(clock)])
    drive.camera(0.1, 0.0, 6.0)
    drive.clock.after(2.0, lambda: setattr(drive, "frozen", True))
    drive.clock.after(4.0, lambda: setattr(drive, "frozen", False))
    drive.run(6.0)
    assert not [at for at, _ in drive.results if 2.65 < at < 3.95]
    frozen = [status for _, status in drive.statuses if status.cause == "frozen"]
    assert frozen
    assert {status.kind for status in frozen} == {StatusKind.STALE}
    assert "the camera has repeated one picture for 600 ms" in frozen[0].text
    assert drive.frames["dropped"]["frozen"] == len(frozen)
    assert "stale" in drive.states
    reasons = " ".join(r for e in drive.history.entries if e.state == "stale" for r in e.reasons)
    assert "repeated one picture" in reasons
    assert drive.states[-1] == "running"
    assert drive.frames["captured"] == drive.frames["published"] + len(frozen)


def show_pictures(drive: Simulation, pictures: list[int]) -> None:
    for place, value in enumerate(pictures):
        image = np.full((4, 6, 3), value % 251, np.uint8)
        show = lambda image=image: drive.capture.accept(Frame(image, 0, drive.clock.now))  # noqa: E731
        drive.clock.after(place * PERIOD, show)


def test_a_camera_that_never_repeats_and_then_does_is_told_within_two_periods() -> None:
    drive = Simulation(lambda clock: [lambda: SimulatedEngine(clock, lambda level: 0.01)])
    show_pictures(drive, [*range(40), *[39] * 3, *range(100, 140)])
    drive.run(40 * PERIOD + 0.5 * PERIOD)
    assert drive.states[-1] == "running"  # one that comes twice may be a driver's slip
    drive.run(41 * PERIOD + 0.5 * PERIOD)
    health = assess_health(drive.loop)
    assert health.reasons == ("frozen: the camera repeats one picture, 2 times",)
    assert find_cause(drive.loop) == "frozen"
    drive.run(85 * PERIOD)
    assert [r.warnings for _, r in drive.results if r.warnings] == [("frozen",)] * 2
    assert drive.frames["dropped"] == {}  # none is older than max_age
    assert drive.states[-1] == "running"


@pytest.mark.parametrize(
    "pictures",
    [
        [*range(20), *[19] * 4, *range(50, 70), *[69] * 4],  # a simulator's car that parks
        [i for i in range(30) for _ in range(2 + i % 2)],  # 24 frames a second shown at 60
        [*range(40), 39, *range(50, 90), 89],  # a driver's slips
    ],
)
def test_pictures_that_a_source_repeats_by_habit_are_no_fault(pictures: list[int]) -> None:
    drive = Simulation(lambda clock: [lambda: SimulatedEngine(clock, lambda level: 0.01)])
    show_pictures(drive, pictures)
    drive.run(len(pictures) * PERIOD)
    assert "degraded" not in drive.states
    assert not [r for _, r in drive.results if r.warnings]


@pytest.mark.parametrize("why", ["recorded", "decoded", "off"])
def test_repeats_of_a_clip_of_a_stream_or_switched_off_are_no_fault(why: str) -> None:
    drive = Simulation(lambda clock: [lambda: SimulatedEngine(clock, lambda level: 0.01)])
    if why == "off":
        drive.capture._judge.limits = read_limits(["frozen=off"])
    else:
        drive.capture.source = type("Source", (), {why: True})()
    show_pictures(drive, [*range(40), *[39] * 3, *range(100, 110)])
    drive.run(53 * PERIOD)
    assert not [r for _, r in drive.results if r.warnings]


def test_the_first_error_restarts_and_the_second_leaves_it_to_the_fallback() -> None:
    plans = [["", "", "error"], [*[""] * 20, "error"], []]

    def starts(clock: SimulatedClock) -> Any:
        return [lambda p=p: SimulatedEngine(clock, plan=p, start_s=0.5) for p in plans]

    drive = Simulation(starts, lambda clock: SimulatedEngine(clock, levels=("small",), start_s=0.2))
    drive.camera(PERIOD, 0, 60)
    drive.run(61)
    assert len(drive.started) == 3
    assert [engine.killed for engine in drive.started] == [True, True, False]
    assert [failure.cause for failure in drive.supervisor.failures] == ["backend", "backend"]
    first, second = (
        failure.at_ns / SECOND - drive.began / SECOND for failure in drive.supervisor.failures
    )
    levels = [(t, r.level) for t, r in drive.results]
    # Restarted at once after the first error; the fallback bridges the gap.
    assert {level for t, level in levels if first < t < first + 0.5} == {"small"}
    assert {level for t, level in levels if first + 0.7 < t < second} == {"large"}
    # Left alone for half a minute after the second, then tried again.
    assert {level for t, level in levels if second < t < second + 30} == {"small"}
    assert {level for t, level in levels if t > second + 30.7} == {"large"}
    assert drive.frames["dropped"] == {"backend": 2, "starting": 3}
    assert drive.states[:5] == ["starting", "degraded", "running", "degraded", "running"]
    assert accounted(drive)


def test_stuck_inference_is_killed_and_replaced() -> None:
    def starts(clock: SimulatedClock) -> Any:
        return [lambda: SimulatedEngine(clock, plan=["", "hang"]), lambda: SimulatedEngine(clock)]

    drive = Simulation(starts, stuck_periods=10, stuck_ms=1.0, period_ms=100.0)
    drive.camera(PERIOD, 0, 5)
    drive.run(6)
    assert [failure.cause for failure in drive.supervisor.failures] == ["stuck"]
    assert drive.started[0].killed
    assert drive.supervisor.failures[0].at_ns / SECOND - drive.began / SECOND == pytest.approx(
        1.1, 0.01
    )
    assert drive.frames["dropped"]["late"] == 1  # told at max_age, before it is given up
    assert drive.states[:5] == ["starting", "running", "degraded", "failed", "degraded"]
    assert accounted(drive)


def test_a_worker_that_dies_loses_one_frame() -> None:
    def starts(clock: SimulatedClock) -> Any:
        return [lambda: SimulatedEngine(clock, plan=["", "die"]), lambda: SimulatedEngine(clock)]

    drive = Simulation(starts)
    drive.camera(PERIOD, 0, 5)
    drive.run(6)
    assert drive.frames["dropped"] == {"worker": 1}
    (lost,) = (s for _, s in drive.statuses if s.cause == "worker")
    assert (lost.kind, lost.frame_id) == (StatusKind.LOST, 1)
    assert "signal 11" in lost.text
    assert accounted(drive)


def test_replacements_are_at_most_five_a_minute_and_go_on() -> None:
    drive = Simulation(lambda clock: [lambda: SimulatedEngine(clock, plan=["error"] * 99)])
    drive.camera(PERIOD, 0, 130)
    drive.run(131)
    ends = [failure.at_ns / SECOND for failure in drive.supervisor.failures]
    assert len(ends) > 10
    assert np.diff(ends[:6]) == pytest.approx([0.1, 0.6, 1.1, 2.1, 5.1], abs=0.01)  # a back-off
    assert all(late - early > 59 for early, late in zip(ends[1:], ends[6:], strict=False))
    assert "failed" in drive.states
    assert accounted(drive)


def test_an_engine_that_never_becomes_ready_is_replaced() -> None:
    drive = Simulation(
        lambda clock: [lambda: SimulatedEngine(clock, start_s=9999), lambda: SimulatedEngine(clock)]
    )
    drive.camera(PERIOD, 0, 190)
    drive.run(191)
    assert drive.supervisor.failures[0].reason == "not ready within 180 s"
    assert drive.states[:2] == ["starting", "running"]
    assert drive.frames["dropped"]["starting"] > 1700
    assert [s for t, s in drive.statuses if t < 190] == []  # a normal start is no loss


def test_nothing_that_serves_is_a_failure_and_no_degradation() -> None:
    """Its replacement hangs at its start: 200/degraded was told for up to three minutes."""

    def starts(clock: SimulatedClock) -> Any:
        hangs = lambda: SimulatedEngine(clock, start_s=9999)  # noqa: E731
        return [lambda: SimulatedEngine(clock, plan=["", "die"]), hangs, hangs]

    drive = Simulation(starts)
    drive.camera(PERIOD, 0, 50)
    drive.run(49)
    assert drive.states == ["starting", "running", "failed"]
    reasons = drive.history.entries[2].reasons
    assert reasons[0] == "no inference serves: the worker process ended by signal 11"
    assert drive.supervisor.failures[1].reason == "not ready within 30 s"  # it took none before


def test_masks_that_stay_away_are_a_failure() -> None:
    """An engine serves, and every mask comes too late."""
    latency = [0.03]
    drive = Simulation(lambda clock: [lambda: SimulatedEngine(clock, lambda level: latency[0])])
    drive.camera(PERIOD, 0, 20)
    drive.clock.after(5, lambda: latency.__setitem__(0, 0.8))
    drive.clock.after(12, lambda: latency.__setitem__(0, 0.03))
    drive.run(21)
    wanted = ["starting", "running", "degraded", "failed", "degraded", "running"]
    assert drive.states[:6] == wanted
    at_s = next(entry.at_s for entry in drive.history.entries if entry.state == "failed")
    assert at_s == pytest.approx(8, abs=0.3)
    assert accounted(drive)


@pytest.mark.parametrize("pause_s", [0.5, 2.5])
def test_a_burst_of_frames_is_no_new_rhythm(pause_s: float) -> None:
    """A driver hands over a queue of frames at once: none after it is overdue."""
    drive = Simulation(steady(0.01))
    drive.camera(PERIOD, 0, 5)
    drive.camera(0.001, 5 + pause_s, 5.02 + pause_s)
    drive.camera(PERIOD, 5.1 + pause_s, 15.1 + pause_s)
    drive.run(14.9)
    told = [t for t, s in drive.statuses if s.cause == "camera" and t > 5.02 + pause_s]
    assert told == []  # once after every frame


def test_engines_that_cannot_be_started_are_tried_again_soon() -> None:
    """While descriptors are short, for ten seconds; starts in vain do not use up the five."""
    short = [False]

    def start(clock: SimulatedClock) -> SimulatedEngine:
        if short[0]:
            raise OSError(24, "Too many open files")
        return SimulatedEngine(clock, plan=[""] * 9 + ["die"] if clock.now < 1001 * SECOND else [])

    drive = Simulation(lambda clock: [lambda: start(clock)])
    drive.camera(PERIOD, 0, 30)
    drive.clock.after(0.5, lambda: short.__setitem__(0, True))
    drive.clock.after(10.5, lambda: short.__setitem__(0, False))
    drive.run(30)
    assert drive.states[:4] == ["starting", "running", "failed", "degraded"]
    assert len(drive.supervisor.failures) < 10  # not one a step
    back = min(t for t, _ in drive.results if t > 2)
    assert back < 10.5 + 5.2


def test_load_makes_it_step_down_and_back() -> None:
    load = [1.0]
    levels = ("1024x2048", "768x1536", "512x1024", "nano")
    costs = (0.06, 0.035, 0.016, 0.005)

    def starts(clock: SimulatedClock) -> Any:
        milliseconds = [1000 * cost for cost in costs]
        return [lambda: SimulatedEngine(clock, lambda i: load[0] * costs[i], levels, milliseconds)]

    drive = Simulation(starts, deadline_ms=80.0, period_ms=100.0)
    drive.camera(PERIOD, 0, 60)
    drive.clock.after(10, lambda: load.__setitem__(0, 4.0))
    drive.clock.after(30, lambda: load.__setitem__(0, 1.0))
    drive.run(61)
    at = {round(t): r.level for t, r in drive.results}
    assert at[9] == "1024x2048"  # 60 ms of 80
    assert at[25] == "512x1024"  # 4 x 16 ms
    assert at[59] == "1024x2048"
    steps = [(c.before, c.after) for c in drive.loop.changes]
    down = [(levels[0], levels[1]), (levels[1], levels[2])]
    up = [(levels[2], levels[1]), (levels[1], levels[0])]
    assert steps == down + up
    assert drive.loop.changes[0].why == "3 of 20 results missed 80 ms"
    assert "expected of 80 ms" in drive.loop.changes[-1].why


def test_memory_and_handles_are_steady() -> None:
    drive = Simulation(steady(0.03), max_age_ms=50.0)
    drive.recorder.offer = lambda message: None  # type: ignore[method-assign]
    for minute in range(5):
        if minute == 1:
            before = read_usage()
        drive.camera(0.02, 200.0 * minute, 200.0 * (minute + 1))
        drive.run(200.0 * (minute + 1))
    after = read_usage()
    assert drive.frames["captured"] == 50_000
    assert after.handles == before.handles
    if after.resident_mib is not None and before.resident_mib is not None:
        assert after.resident_mib - before.resident_mib < 8


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_age_ms": 0}, "max_age_ms must be more than 0"),
        ({"silence_s": -1}, "silence_s must be more than 0"),
        ({"deadline_ms": 600}, "make it the shorter one"),
        ({"max_age_ms": float("inf")}, "at most 1e"),
        ({"deadline_ms": float("nan")}, "must be more than 0"),
    ],
)
def test_limits_that_cannot_be_kept(limits: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriveLimits(**limits)  # type: ignore[arg-type]


def test_the_frame_s_size_is_its_own() -> None:
    drive = Simulation(steady(0.03))
    drive.camera(PERIOD, 0, 1)
    drive.run(2)
    assert drive.results[0][1].labels.shape == SIZE


def test_a_loop_that_was_held_up_publishes_no_old_mask() -> None:
    """The labels came in time, but the loop itself only turns again when they are too old."""
    drive = Simulation(steady(0.3))
    drive.camera(PERIOD, 0, 0.1)
    drive.run(0.2)
    drive.clock.wait(0.15)
    drive.clock.now += SECOND
    drive.run(2)
    assert drive.results == []
    assert [s.kind for _, s in drive.statuses if s.frame_id == 0] == [StatusKind.LATE]
    assert drive.frames["dropped"] == {"late": 1}


def test_labels_of_another_frame_are_not_published() -> None:
    drive = Simulation(steady(0.03))
    drive.camera(PERIOD, 0, 0.1)
    drive.run(0.01)
    engine, job = drive.started[0], drive.loop.job
    assert job is not None
    engine.answer = Answer(job.number - 1, np.full(SIZE, 9, np.uint8))
    drive.clock.wake()
    drive.run(2)
    assert [(r.labels == 0).all() for _, r in drive.results] == [True]
