"""Keeps inference going: the primary engine, its standby, and when to replace which."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Any

from .clock import LoopClock
from .engine import EngineFactory, InferenceEngine

log = logging.getLogger("rtseg")
MOST_STARTS = 5  # replacements in a minute
VAIN_STARTS = 3  # of each engine, after which a recording is not waited with any longer
MINUTE_NS = 60_000_000_000
BACK_OFF_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # after each further failure within a minute
START_LIMIT_S = 180.0  # compiling kernels at the first load takes a while
RESTART_LIMIT_S = 30.0  # at least; else three times as long as the slot's last start took
RETRY_S = 30.0  # before the first engine is tried again while its standby serves
LONGEST_RETRY_S = 600.0


@dataclass(frozen=True)
class EngineFailure:
    """An engine that was ended or ended itself. cause: one word, as the counters have it."""

    at_ns: int
    engine: str
    cause: str
    reason: str


class EngineSlot:
    """One of the two slots in the supervisor, and the engine that fills it now."""

    def __init__(self, role: str, start: EngineFactory):
        self.role, self.start = role, start
        self.engine: InferenceEngine | None = None
        self.ready: InferenceEngine | None = None  # the last one that was
        self.started_ns = 0
        self.start_limit_s = START_LIMIT_S
        self.due_ns: int | None = 0  # when to start the next engine; None: one is there
        self.failed_ns: deque[int] = deque(maxlen=100)
        self.retry_s = RETRY_S
        self.facts: dict[str, object] = {}


class Supervisor:
    """`primary` serves whenever it can; the `standby` (a smaller artifact on the CPU), started with
    it, serves while it cannot.

    An engine that fails is replaced at once, and after a growing wait if it fails again within a
    minute; with a standby to serve meanwhile it then stays down for 30 s, then for twice that, and
    so on. All replacements together are at most five a minute.
    """

    def __init__(
        self, clock: LoopClock, primary: EngineFactory, standby: EngineFactory | None = None
    ):
        self.clock = clock
        self.primary = EngineSlot("primary", primary)
        self.standby = EngineSlot("standby", standby) if standby else None
        self.failures: deque[EngineFailure] = deque(maxlen=1000)
        self.failure_count = 0
        self._replaced_ns: deque[int] = deque(maxlen=MOST_STARTS)

    @property
    def slots(self) -> list[EngineSlot]:
        return [self.primary, self.standby] if self.standby else [self.primary]

    def serving(self) -> EngineSlot | None:
        """The engine that takes the next frame; None while none can."""
        for slot in self.slots:
            if slot.engine is not None and slot.engine.ready and not slot.engine.fault:
                return slot
        return None

    def processes(self) -> list[int]:
        """Ids of the engines' processes; those in this one have none."""
        ids = (getattr(slot.engine, "process_id", None) for slot in self.slots)
        return [each for each in ids if each is not None]

    def facts(self) -> dict[str, Any]:
        """What the engines said of themselves when they became ready, by slot; of the last one
        that did."""
        return {slot.role: slot.facts for slot in self.slots if slot.facts}

    def is_exhausted(self) -> bool:
        """Whether no engine serves, and none may be started yet."""
        now = self.clock.now_ns()
        waiting = [p.due_ns is not None and p.due_ns > now for p in self.slots]
        return self.serving() is None and all(waiting)

    def hopeless(self) -> bool:
        """Whether no engine was ever ready, and every one failed several times at its start."""
        failed = all(len(slot.failed_ns) >= VAIN_STARTS for slot in self.slots)
        return failed and not any(slot.ready for slot in self.slots)

    def poll(self) -> None:
        """Start engines that are due, and end those that broke or never became ready."""
        now = self.clock.now_ns()
        for slot in self.slots:
            engine = slot.engine
            if engine is None:
                if slot.due_ns is not None and now >= slot.due_ns:
                    self._start(slot, now)
            elif engine.fault:
                self.fail(slot, "worker", engine.fault)
            elif engine.ready:
                self._note_ready(slot, engine, now)
            elif now - slot.started_ns > slot.start_limit_s * 1e9:
                self.fail(slot, "worker", f"not ready within {slot.start_limit_s:.0f} s")

    def wake_ns(self) -> int | None:
        """When `poll` has work that no event will wake the loop for."""
        due = [p.due_ns for p in self.slots if p.engine is None and p.due_ns is not None]
        return min(due, default=None)

    def fail(self, slot: EngineSlot, cause: str, reason: str, frame: int | None = None) -> None:
        """End a slot's engine, and settle when the next one starts. frame: the id of the one that
        it failed at, if it was one."""
        engine, slot.engine = slot.engine, None
        if engine is not None:
            engine.kill()
        now = self.clock.now_ns()
        self.failure_count += 1
        self.failures.append(EngineFailure(now, slot.role, cause, reason))
        again = sum(now - failed < MINUTE_NS for failed in slot.failed_ns)
        slot.failed_ns.append(now)
        slot.due_ns = now + int(BACK_OFF_S[min(again, len(BACK_OFF_S) - 1)] * 1e9)
        log.warning(
            "the %s engine failed (%s): %s",
            slot.role,
            cause,
            reason,
            extra={"engine": slot.role, "cause": cause, "frame": frame},
        )
        if again and slot is self.primary and self.standby is not None:
            slot.due_ns = now + int(slot.retry_s * 1e9)
            slot.retry_s = min(2 * slot.retry_s, LONGEST_RETRY_S)
        elif not again:
            slot.retry_s = RETRY_S

    def distrust(self, reason: str, frame: int | None = None) -> bool:
        """End a primary engine whose labels are wrong, if the standby can serve in its place.

        It is started anew after RETRY_S, or the longer wait of one that failed before.

        Returns:
            Whether the standby serves now.
        """
        standby = self.standby.engine if self.standby else None
        if standby is None or not standby.ready or standby.fault:
            return False
        self.fail(self.primary, "disagreement", reason, frame)
        least_ns = self.clock.now_ns() + int(RETRY_S * 1e9)
        self.primary.due_ns = max(self.primary.due_ns or 0, least_ns)
        return True

    def _note_ready(self, slot: EngineSlot, engine: InferenceEngine, now: int) -> None:
        # Of each engine once.
        if slot.ready is engine:
            return
        slot.ready, slot.facts = engine, getattr(engine, "facts", {})
        took_s = (now - slot.started_ns) / 1e9
        slot.start_limit_s = min(START_LIMIT_S, max(RESTART_LIMIT_S, 3 * took_s))
        log.info(
            "the %s engine is ready after %.1f s",
            slot.role,
            took_s,
            extra={"engine": slot.role, "took_s": round(took_s, 3)},
        )

    def kill(self) -> None:
        for slot in self.slots:
            if slot.engine is not None:
                slot.engine.kill()
            slot.engine, slot.due_ns = None, None

    def _start(self, slot: EngineSlot, now: int) -> None:
        if slot.failed_ns:  # the first start of a slot is no replacement
            full = len(self._replaced_ns) == MOST_STARTS
            if full and now - self._replaced_ns[0] < MINUTE_NS:
                slot.due_ns = self._replaced_ns[0] + MINUTE_NS
                return
            self._replaced_ns.append(now)
        slot.started_ns, slot.due_ns = now, None
        try:
            slot.engine = slot.start()
        except OSError as error:  # no memory, process or descriptor to be had
            if slot.failed_ns and self._replaced_ns:
                self._replaced_ns.pop()  # nothing ran: the back-off is enough
            self.fail(slot, "worker", f"it cannot be started: {error}")
