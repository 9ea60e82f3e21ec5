"""What the loop waits on, and the clock that it waits by; tests bring a simulated one."""

from __future__ import annotations

import threading
import time


class Bell:
    """Rung by whatever has news for the loop: a frame, an answer, a request to stop."""

    def __init__(self) -> None:
        self._rung = threading.Event()

    def now_ns(self) -> int:
        """Monotonic; the same clock in all processes of the machine."""
        return time.monotonic_ns()

    def wall_ns(self) -> int:
        """Since 1970."""
        return time.time_ns()

    def ring(self) -> None:
        self._rung.set()

    def wait(self, timeout_s: float) -> None:
        """Until the bell was rung since the last wait, at most `timeout_s`."""
        self._rung.wait(max(0.0, timeout_s))
        self._rung.clear()
