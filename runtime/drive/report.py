"""What a drive did, as JSON: while it runs and at its end."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .health import History, assess_health
from .loop import Loop


def snapshot(loop: Loop) -> dict[str, Any]:
    """State, counters and times now; cheap, and safe from any thread."""
    health = assess_health(loop)
    serving = loop.supervisor.serving()
    level = loop.ladder.name if loop.ladder else None
    if (
        serving is not None
        and serving is not loop.supervisor.primary
        and serving.engine is not None
    ):
        level = serving.engine.levels[0]
    return {
        "state": health.state.value,
        "reasons": list(health.reasons),
        "at_wall_ns": loop.clock.wall_ns(),
        "seconds": round((loop.clock.now_ns() - loop.began_ns) / 1e9, 3),
        "level": level,
        "levels": list(loop.ladder.names) if loop.ladder else [],
        "period_ms": round(loop.period_ms, 3),
        "deadline_ms": loop.limits.deadline_ms,
        "max_age_ms": loop.limits.max_age_ms,
        "deadline_misses": loop.misses,
        "frames": loop.counters.facts(),
        "statuses": dict(loop.statuses),
        "age_ms": loop.ages.facts(),
        "latency_ms": loop.latencies.facts(),
        "sinks": [
            {"name": queue.name, **queue.counters(), "last_error": queue.last_error}
            for queue in loop.queues
        ],
        "replaced_workers": loop.supervisor.failure_count,
        "reopened_source": loop.capture.reopened,
    }


def report(loop: Loop, history: History, ended: str, realtime: dict[str, str]) -> dict[str, Any]:
    """The whole run: a snapshot, and everything that changed on the way, in seconds since the
    start. An entry of `states` is a change of state or of its reasons."""

    def at_s(nanoseconds: int) -> float:
        return round((nanoseconds - loop.began_ns) / 1e9, 3)

    return {
        **snapshot(loop),
        "began_ns": loop.began_ns,
        "ended": ended,
        "results_by_level": dict(loop.levels),
        "level_changes": [
            {"at_s": at_s(c.at_ns), "from": c.before, "to": c.after, "why": c.why}
            for c in loop.changes
        ],
        "engine_failures": [
            {**asdict(failure), "at_s": at_s(failure.at_ns)} for failure in loop.supervisor.failures
        ],
        "states": [asdict(entry) | {"reasons": [*entry.reasons]} for entry in history.entries],
        "engines": loop.supervisor.facts(),
        "realtime": realtime,
    }
