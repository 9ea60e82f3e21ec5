"""A source's own stamps on this machine's monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

FUTURE_NS = 5_000_000  # a stamp this far ahead of now is of another clock
PAST_NS = 10_000_000_000  # and so is one this far behind
OUT_OF_TURN_NS = 200_000_000  # frames may come out of order by that; a clock runs back by more
LEAK = 100e-6  # that two quartz clocks may run apart by: the offset may grow by this share
BELIEVE_NS = 5_000_000_000  # for which stamps have to be right again before they are believed


@dataclass(frozen=True)
class Placed:
    """Where a stamp lies.

    Attributes:
        captured_ns: monotonic.
        age_source: what it comes from; `arrival` where the stamp's clock cannot be compared.
        notice: what is wrong with that clock, where that is news.
    """

    captured_ns: int
    age_source: str
    notice: str = ""


class OffsetEstimate:
    """The least that arrivals were ever behind their stamps, of a clock with an unknown zero.

    The frame that came fastest is taken to have come at once; what any other frame took longer is
    its lag. The estimate may rise only as fast as two clocks run apart, so that a stream that falls
    behind and stays there is not taken for one that is on time.
    """

    def __init__(self) -> None:
        self._offset_ns: float | None = None
        self._last_ns = 0

    def place(self, stamp_ns: int, arrived_ns: int) -> int:
        """The moment of a stamp, monotonic, never after its arrival."""
        now = float(arrived_ns - stamp_ns)
        if self._offset_ns is not None:
            risen = self._offset_ns + LEAK * max(0, arrived_ns - self._last_ns)
            now = min(now, risen)
        self._offset_ns, self._last_ns = now, arrived_ns
        return min(arrived_ns, stamp_ns + round(now))

    def forget(self) -> None:
        self._offset_ns = None


class StampClock:
    """Places the stamps of one source.

    Stamps of a clock of this machine, or of one that is kept equal to it, are taken as they are, as
    long as they lie between 10 s ago and 5 ms ahead. Others tell only how much longer each frame
    took than the fastest, and ages are then said to count from arrival.

    Args:
        reference: the clock of the stamps: "monotonic" or "wall", this machine's, or "own", one
            with an unknown zero.
        age_source: what the stamps mean, if they can be compared.
        wall_ns: the time since 1970.
    """

    def __init__(
        self,
        reference: str,
        age_source: str,
        wall_ns: Callable[[], int] = time.time_ns,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ):
        self.reference, self.age_source = reference, age_source
        self._wall_ns, self._now_ns = wall_ns, now_ns
        self._offset = OffsetEstimate()
        self._last_stamp_ns: int | None = None
        self._doubted_ns: int | None = 0 if reference == "own" else None

    @property
    def trusted(self) -> bool:
        """Whether the stamps are taken as they are."""
        return self._doubted_ns is None

    def place(self, stamp_ns: int, arrived_ns: int) -> Placed:
        """The moment of a stamp.

        Args:
            stamp_ns: by the source's clock.
            arrived_ns: when it arrived, monotonic.
        """
        notice = self._check_order(stamp_ns)
        if self.reference != "own" and not notice:
            local_ns = stamp_ns
            if self.reference == "wall":
                local_ns += self._now_ns() - self._wall_ns()
            notice = self._check_age(arrived_ns - local_ns, arrived_ns)
        elif self.reference != "own":
            self._doubted_ns = arrived_ns
        mapped_ns = self._offset.place(stamp_ns, arrived_ns)
        if self.trusted:
            return Placed(min(local_ns, arrived_ns), self.age_source, notice)
        return Placed(mapped_ns, "arrival", notice)

    def _check_order(self, stamp_ns: int) -> str:
        before, self._last_stamp_ns = self._last_stamp_ns, stamp_ns
        if before is None or stamp_ns > before - OUT_OF_TURN_NS:
            return ""
        # What it was ahead before says nothing of the clock that it is now.
        self._offset.forget()
        back = f"its clock ran back by {(before - stamp_ns) / 1e6:.0f} ms"
        return f"{back}: ages count from arrival"

    def _check_age(self, age_ns: int, arrived_ns: int) -> str:
        """Doubt or believe the clock; what to say where that changed."""
        if not -FUTURE_NS <= age_ns <= PAST_NS:
            new, self._doubted_ns = self._doubted_ns is None, arrived_ns
            ahead = "ahead of" if age_ns < 0 else "behind"
            told = f"its stamps are {abs(age_ns) / 1e6:.0f} ms {ahead} this machine's clock"
            return f"{told}: ages count from arrival" if new else ""
        if self._doubted_ns is not None and arrived_ns - self._doubted_ns > BELIEVE_NS:
            self._doubted_ns = None
            return f"its stamps are this machine's again: ages count from {self.age_source}"
        return ""


def place_recorded(logged_ns: int, *earlier_ns: int) -> list[int | None]:
    """Moments of a log on the monotonic clock, as if what was logged had been so just now.

    Args:
        logged_ns: when it was recorded.
        earlier_ns: other times of the same message, by the same clock as a rule.

    Returns:
        Of `logged_ns` and each earlier one; None where one does not lie within 10 s before it.
    """
    now = time.monotonic_ns()
    lags = [logged_ns - each for each in earlier_ns]
    return [now, *(now - lag if 0 < lag <= PAST_NS else None for lag in lags)]
