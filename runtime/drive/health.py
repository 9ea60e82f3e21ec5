"""State of a drive with its reasons, and the history of states."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from .loop import Loop
from .messages import Health, State
from .picture_faults import WITHHELD

RECENT_NS = 2_000_000_000  # trouble counts for that long
DEAD_LOOP_S = 2.0  # without a step
MASKLESS_S = 3.0  # without a mask while frames come, at least max_age
MASKS_COME = ("running", "degraded")


def assess_health(loop: Loop) -> Health:
    """What a loop's state is now, worst reasons first."""
    if (stalled_s := (loop.clock.now_ns() - loop.stepped_ns) / 1e9) > DEAD_LOOP_S:
        return Health(State.failed, (f"the loop has not turned for {stalled_s:.0f} s",))
    if loop.capture.gone:
        return Health(State.failed, (f"the source is lost for good ({loop.capture.lost})",))
    # A start without inference is no failure; it is one once a mask was published, or once every
    # engine has to wait before its next try.
    unserved = loop.supervisor.serving() is None
    if unserved and (loop.ages.count or loop.supervisor.is_exhausted()):
        return Health(State.failed, (f"no inference serves: {_last_failure(loop)}", *_recent(loop)))
    if not loop.ages.count:
        return Health(State.starting, _starting(loop))
    if camera := _camera(loop):
        return Health(State.stale, (camera,))
    if (masked_s := _maskless_s(loop)) > 0:
        return Health(State.failed, (f"no mask for {masked_s:.0f} s", *_recent(loop)))
    proof = loop.proof.reasons() if loop.proof is not None else ()
    reasons = (
        *proof,
        *_inference(loop),
        *_recent(loop),
        *_certified(loop),
        *_steady(loop),
        *_sinks(loop),
    )
    return Health(State.degraded if reasons else State.running, reasons)


def _starting(loop: Loop) -> tuple[str, ...]:
    waits = [] if loop.supervisor.serving() else ["inference is not ready yet"]
    if loop.supervisor.failures:
        waits.append(_last_failure(loop))
    if not loop.capture.last_ns and not loop.capture.waits:
        waits.append(": ".join(filter(None, ("no frame has come yet", loop.capture.lost))))
    return tuple(waits) or _recent(loop) or ("no mask has been published yet",)


def _last_failure(loop: Loop) -> str:
    failures = loop.supervisor.failures
    return failures[-1].reason if failures else "it is not ready yet"


def _maskless_s(loop: Loop) -> float:
    """For how long frames have come and none was answered, if that is too long; else 0."""
    if loop.limits.max_age_ms is None:
        return 0.0
    since_ns = max(loop.published_ns, loop.capture.resumed_ns)
    maskless_s = (loop.clock.now_ns() - since_ns) / 1e9
    return maskless_s if maskless_s > max(MASKLESS_S, loop.limits.max_age_ms / 1e3) else 0.0


def _camera(loop: Loop) -> str:
    if loop.capture.lost:
        return f"the camera is lost: {loop.capture.lost}"
    if behind := _withheld(loop, "behind"):
        return behind
    # A log that waits for inference is silent by itself.
    if loop.capture.ended or loop.capture.every_frame or loop.silent_s() <= loop.limits.silence_s:
        return ""
    return _withheld(loop, "frozen", *WITHHELD) or "the camera is silent"


def _withheld(loop: Loop, *causes: str) -> str:
    """Why the newest frames got no mask, if it was lately for one of the causes; else ""."""
    now = loop.clock.now_ns()
    found = [loop.trouble[cause] for cause in causes if cause in loop.trouble]
    at_ns, text = max(found, default=(0, ""))
    return text if at_ns > loop.published_ns and now - at_ns < RECENT_NS else ""


def _inference(loop: Loop) -> tuple[str, ...]:
    serving = loop.supervisor.serving()
    if serving is loop.supervisor.primary:
        return ()
    return (f"the fallback serves: {_last_failure(loop)}",)


def _recent(loop: Loop) -> tuple[str, ...]:
    now = loop.clock.now_ns()
    reasons = [  # of a copy: the loop may add to it meanwhile, in its own thread
        f"{cause}: {text}"
        for cause, (at_ns, text) in list(loop.trouble.items())
        if now - at_ns < RECENT_NS
    ]
    if loop.ladder is not None and loop.ladder.overwhelmed:
        reasons.append("the smallest artifact misses the deadline")
    return tuple(reasons)


def _certified(loop: Loop) -> tuple[str, ...]:
    reason = loop.certified.reason() if loop.certified is not None else ""
    return (reason,) if reason else ()


def _steady(loop: Loop) -> tuple[str, ...]:
    reason = loop.steady.reason() if loop.steady is not None else ""
    return (reason,) if reason else ()


def _sinks(loop: Loop) -> tuple[str, ...]:
    now, reasons = loop.clock.now_ns(), []
    for queue in loop.queues:
        if queue.blocked_s():
            reasons.append(f"the sink {queue.name} is blocked")
        if queue.failed_ns and now - queue.failed_ns < RECENT_NS:
            reasons.append(f"the sink {queue.name} failed: {queue.last_error}")
    return tuple(reasons)


def find_cause(loop: Loop) -> str:
    """What ails a loop now, in a word for machines: "camera", an engine's or a frame's cause; ""
    if nothing does."""
    if loop.capture.gone or _camera(loop):
        return "camera"
    failures = loop.supervisor.failures
    if failures and loop.supervisor.serving() is not loop.supervisor.primary:
        return failures[-1].cause
    if loop.proof is not None and loop.proof.reasons():
        return "disagreement"
    now = loop.clock.now_ns()
    recent = [(at, cause) for cause, (at, _) in list(loop.trouble.items()) if now - at < RECENT_NS]
    return max(recent, default=(0, ""))[1]


@dataclass(frozen=True)
class StateChange:
    """at_s: seconds since the start of the drive; reasons: why, one sentence each."""

    at_s: float
    state: str
    reasons: tuple[str, ...] = ()


class History:
    """The states that a drive went through. New reasons make an entry too; new numbers in a reason
    do not."""

    def __init__(self) -> None:
        self.entries: deque[StateChange] = deque(maxlen=1000)
        self._last = Health(State.starting), ""

    def note(self, at_s: float, health: Health) -> bool:
        """Whether the state is another than before."""
        before, told = self._last
        if self.entries and health == before:
            return False
        # "silent for 3 s" and "silent for 4 s" are one reason.
        gist = re.sub(r"\d+", "", "; ".join(health.reasons))
        changed = not self.entries or health.state is not before.state
        if changed or gist != told:
            self.entries.append(StateChange(round(at_s, 3), health.state.value, health.reasons))
        self._last = health, gist
        return changed
