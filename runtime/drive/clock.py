"""Clock and time limits of the loop; tests use a simulated clock."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from ...errors import UsageError

UNKNOWN_PERIOD_MS = 100.0  # until the camera has shown its own
OVERDUE = 1.75  # periods without a frame after which sinks hear of it
LONGEST = 1e9  # of any of the limits: 11 days in ms; their sums in ns stay below 2^63


class LoopClock:
    """The time, and what the loop sleeps on: a frame, an answer or a request to stop wakes it."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def now_ns(self) -> int:
        """Monotonic; the same clock in all processes of the machine."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Since 1970."""
        return time.time_ns()

    def wake(self) -> None:
        self._rung.set()

    def wait(self, timeout_s: float) -> None:
        """Sleep until woken since the last wait, at most `timeout_s`."""
        self._rung.wait(max(0.0, timeout_s))
        self._rung.clear()


@dataclass(frozen=True)
class DriveLimits:
    """Time limits of a drive.

    Args:
        max_age_ms: no mask older than that is published; None: any age will do, for logs.
        deadline_ms: of a result's age, which the quality ladder works for.
        period_ms: between frames; 0: as the camera shows it.
        silence_s: without a frame, after which the camera is taken for lost.
        stuck_periods: that inference may take before its process is replaced, at least `stuck_ms`.

    Raises:
        UsageError: a time that cannot be kept to.
    """

    max_age_ms: float | None = 500.0
    deadline_ms: float | None = None
    period_ms: float = 0.0
    silence_s: float = 1.0
    stuck_periods: int = 30
    stuck_ms: float = 2000.0

    def __post_init__(self) -> None:
        for name in ("max_age_ms", "deadline_ms", "silence_s", "stuck_periods", "stuck_ms"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= LONGEST:
                raise UsageError(f"{name} must be more than 0 and at most {LONGEST:g}, not {value}")
        if self.max_age_ms and self.deadline_ms and self.deadline_ms > self.max_age_ms:
            raise UsageError(
                f"a deadline of {self.deadline_ms:g} ms never counts when masks older than "
                f"max_age {self.max_age_ms:g} ms are withheld: make it the shorter one"
            )

    def expiry_ns(self, captured_ns: int) -> int:
        """When a frame's mask must not be used any more; far away where any age will do."""
        if self.max_age_ms is None:
            # Not infinity: it is added to and compared as integer nanoseconds, also in the ring's
            # header.
            return 1 << 62
        return captured_ns + int(self.max_age_ms * 1e6)

    def stuck_ns(self, period_ms: float) -> int:
        return int(max(self.stuck_ms, self.stuck_periods * period_ms) * 1e6)
