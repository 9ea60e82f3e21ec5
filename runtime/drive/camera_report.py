"""State, snapshot and report of a drive of several cameras: each camera's own, and the whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .age import AgeRecord
from .cameras import CameraLoops
from .health import History, assess_health, find_cause
from .loop import Loop
from .messages import Health, State
from .report import DriveReport, DriveSnapshot, build_report, shorten_place, take_snapshot
from .stats import FrameCounts, TimeHistogram

MASKS = (State.running, State.degraded)


def assess_cameras(loops: CameraLoops) -> tuple[Health, dict[str, Health]]:
    """State of the whole now, and of each camera; a single camera's is the whole's.

    The whole is `running` only if all cameras are, and `degraded` while some of them give masks. It
    is `starting` until each has given one or is lost or silent.
    """
    each = {name: assess_health(loop) for name, loop in loops.by_name.items()}
    if "" in each:
        return each[""], each
    states = {health.state for health in each.values()}
    if len(states) == 1:
        state = states.pop()
    elif states.intersection(MASKS):
        awaited = any(_is_awaited(loop, each[name]) for name, loop in loops.by_name.items())
        state = State.starting if awaited else State.degraded
    elif State.starting in states and not any(loop.ages.count for loop in loops.all):
        state = State.starting
    else:
        state = State.failed
    return Health(state, _reasons(each)), each


def _is_awaited(loop: Loop, health: Health) -> bool:
    """Whether a camera's first mask may come any moment."""
    heard = not loop.capture.lost and loop.silent_s() <= loop.limits.silence_s
    return health.state is State.starting and (heard or loop.capture.waits)


def _reasons(each: Mapping[str, Health]) -> tuple[str, ...]:
    """Once what all cameras say, then each one's own."""
    first, *others = (health.reasons for health in each.values())
    of_all = [reason for reason in first if all(reason in reasons for reasons in others)]
    own = [
        f"camera {name}: {reason}"
        for name, health in each.items()
        for reason in health.reasons
        if reason not in of_all or not others
    ]
    return (*(of_all if others else ()), *own)


def find_causes(loops: CameraLoops) -> str:
    """What ails the first camera that something ails, see `find_cause`."""
    return next(filter(None, map(find_cause, loops.all)), "")


def snapshot_cameras(loops: CameraLoops) -> DriveSnapshot:
    """State, counters and times of the whole now, with each camera's; from any thread."""
    each = {name: _snapshot_one(name, loop) for name, loop in loops.by_name.items()}
    if "" in each:
        return each[""]
    health, _ = assess_cameras(loops)
    first, ages = next(iter(each.values())), AgeRecord()
    for loop in loops.all:
        ages.absorb(loop.age_record)
    # The smallest artifact that a camera is at.
    level = max((s for s in each.values() if s.level), key=_depth, default=first).level
    return replace(
        first,
        state=health.state.value,
        reasons=health.reasons,
        level=level,
        levels=max((s.levels for s in each.values()), key=len),
        period_ms=min(snapshot.period_ms for snapshot in each.values()),
        deadline_misses=sum(snapshot.deadline_misses for snapshot in each.values()),
        frames=_add_frames([snapshot.frames for snapshot in each.values()]),
        statuses=_add_counts([snapshot.statuses for snapshot in each.values()]),
        age_ms=_join_times([loop.ages for loop in loops.all]).summary(),
        latency_ms=_join_times([loop.latencies for loop in loops.all]).summary(),
        age_source=ages.source,
        age_sources=dict(ages.sources),
        stages_ms=ages.summaries(),
        certified=None,  # each camera has its own
        held=None,
        sinks=[queue.counts() for queue in loops.queues],
        reopened_source=sum(snapshot.reopened_source for snapshot in each.values()),
        ended="",
        cameras=each,
    )


def _snapshot_one(name: str, loop: Loop) -> DriveSnapshot:
    snapshot = take_snapshot(loop)
    if not name:
        return snapshot
    own = [queue.counts() for queue in loop.queues if queue.camera == name]
    over = "source lost" if loop.capture.gone else "source ended"
    return replace(snapshot, sinks=own, ended=over if loop.over else "")


def _depth(snapshot: DriveSnapshot) -> int:
    levels = [*snapshot.levels]
    # A fallback is not among them, and below all.
    return levels.index(snapshot.level) if snapshot.level in levels else len(levels)


def _add_counts(each: list[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for counts in each:
        total.update(counts)
    return dict(sorted(total.items()))


def _add_frames(each: list[FrameCounts]) -> FrameCounts:
    return FrameCounts(
        sum(counts.captured for counts in each),
        sum(counts.published for counts in each),
        _add_counts([counts.dropped for counts in each]),
        sum(counts.open for counts in each),
    )


def _join_times(each: list[TimeHistogram]) -> TimeHistogram:
    joined = TimeHistogram()
    for times in each:
        joined.absorb(times)
    return joined


def report_cameras(
    loops: CameraLoops,
    histories: Mapping[str, History],
    history: History,
    last: DriveSnapshot,
    **facts: Any,
) -> DriveReport:
    """The report of loops that ended; of one alone, that of `build_report`.

    Args:
        loops: after their last step.
        histories: of each camera.
        history: of the whole.
        last: taken before the end; its states are the ones that count.
        facts: further fields of the report.
    """
    if "" in loops.by_name:
        return build_report(loops.by_name[""], history, last, **facts)
    places = {name: shorten_place(place) for name, place in loops.places.items()}
    each = {
        name: replace(
            build_report(loop, histories[name], last.cameras[name], source=places[name]),
            sinks=_snapshot_one(name, loop).sinks,
        )
        for name, loop in loops.by_name.items()
    }
    first = next(iter(each.values()))
    whole = replace(
        snapshot_cameras(loops),
        state=last.state,
        reasons=last.reasons,
        ended=last.ended,
        cameras=each,
    )
    changes = [change for report in each.values() for change in report.level_changes]
    return DriveReport(
        **vars(whole),
        source=", ".join(places.values()),
        began_ns=first.began_ns,
        results_by_level=_add_counts([report.results_by_level for report in each.values()]),
        level_changes=sorted(changes, key=lambda change: change.at_ns),
        engine_failures=first.engine_failures,
        states=[*history.entries],
        engines=first.engines,
        **facts,
    )
