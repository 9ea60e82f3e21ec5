"""Keeps inference going: the first engine, its standby, and when to replace which."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

from .clock import Bell
from .engine import Engine, Starter

MOST_STARTS = 5  # replacements in a minute
MINUTE_NS = 60_000_000_000
START_LIMIT_S = 180.0  # compiling kernels at the first load takes a while
RETRY_S = 30.0  # before the first engine is tried again while its standby serves
LONGEST_RETRY_S = 600.0


@dataclass(frozen=True)
class Loss:
    """An engine that was ended or ended itself. cause: one word, as the counters have it."""

    at_ns: int
    engine: str
    cause: str
    reason: str


class Place:
    """One of the two places in the crew, and the engine that fills it now."""

    def __init__(self, role: str, start: Starter):
        self.role, self.start = role, start
        self.engine: Engine | None = None
        self.started_ns = 0
        self.due_ns: int | None = 0  # when to start the next engine; None: one is there
        self.lost_ns: deque[int] = deque(maxlen=100)
        self.retry_s = RETRY_S
        self.facts: dict[str, Any] = {}


class Crew:
    """`primary` serves whenever it can; the `standby` (a smaller artifact on the CPU), started with
    it, serves while it cannot.

    An engine that fails is replaced at once. If it fails again within a minute it stays down for
    30 s while the standby serves, then for twice that, and so on. All replacements together are at
    most five a minute.
    """

    def __init__(self, bell: Bell, primary: Starter, standby: Starter | None = None):
        self.bell = bell
        self.primary = Place("primary", primary)
        self.standby = Place("standby", standby) if standby else None
        self.losses: deque[Loss] = deque(maxlen=1000)
        self.lost = 0
        self._replaced_ns: deque[int] = deque(maxlen=MOST_STARTS)

    @property
    def places(self) -> list[Place]:
        return [self.primary, self.standby] if self.standby else [self.primary]

    def serving(self) -> Place | None:
        """Who takes the next frame; None while nobody can."""
        for place in self.places:
            if place.engine is not None and place.engine.ready and not place.engine.fault:
                return place
        return None

    def processes(self) -> list[int]:
        """Ids of the engines' processes; those in this one have none."""
        ids = (getattr(place.engine, "process_id", None) for place in self.places)
        return [each for each in ids if each is not None]

    def facts(self) -> dict[str, Any]:
        """What the engines said of themselves when they became ready, by place; of the last one
        that did."""
        return {place.role: place.facts for place in self.places if place.facts}

    def exhausted(self) -> bool:
        """Whether nobody serves, and nobody may be started yet."""
        now = self.bell.now_ns()
        waiting = [p.due_ns is not None and p.due_ns > now for p in self.places]
        return self.serving() is None and all(waiting)

    def tick(self) -> None:
        """Start who is due, and end who broke or never became ready."""
        now = self.bell.now_ns()
        for place in self.places:
            engine = place.engine
            if engine is None:
                if place.due_ns is not None and now >= place.due_ns:
                    self._start(place, now)
            elif engine.fault:
                self.lose(place, "worker", engine.fault)
            elif engine.ready:
                place.facts = getattr(engine, "facts", {})
            elif now - place.started_ns > START_LIMIT_S * 1e9:
                self.lose(place, "worker", f"not ready within {START_LIMIT_S:g} s")

    def wake_ns(self) -> int | None:
        """When `tick` has something to do that the bell will not tell."""
        due = [p.due_ns for p in self.places if p.engine is None and p.due_ns is not None]
        return min(due, default=None)

    def lose(self, place: Place, cause: str, reason: str) -> None:
        """End a place's engine, and settle when the next one starts."""
        engine, place.engine = place.engine, None
        if engine is not None:
            engine.kill()
        now = self.bell.now_ns()
        self.lost += 1
        self.losses.append(Loss(now, place.role, cause, reason))
        again = bool(place.lost_ns) and now - place.lost_ns[-1] < MINUTE_NS
        place.lost_ns.append(now)
        place.due_ns = now
        if again and place is self.primary and self.standby is not None:
            place.due_ns = now + int(place.retry_s * 1e9)
            place.retry_s = min(2 * place.retry_s, LONGEST_RETRY_S)
        elif not again:
            place.retry_s = RETRY_S

    def kill(self) -> None:
        for place in self.places:
            if place.engine is not None:
                place.engine.kill()
            place.engine, place.due_ns = None, None

    def _start(self, place: Place, now: int) -> None:
        if place.lost_ns:  # the first start of a place is no replacement
            full = len(self._replaced_ns) == MOST_STARTS
            if full and now - self._replaced_ns[0] < MINUTE_NS:
                place.due_ns = self._replaced_ns[0] + MINUTE_NS
                return
            self._replaced_ns.append(now)
        place.started_ns, place.due_ns = now, None
        try:
            place.engine = place.start()
        except OSError as error:  # no memory or no process to be had
            self.lose(place, "worker", f"it cannot be started: {error}")
