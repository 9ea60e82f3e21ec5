"""Watch over a camera's stream: its lag, its rate, its clock and ours."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

from ...data.frames import Frame

CALM_FRAMES = 30  # at an even pace, and CALM_NS of them, before a camera's usual period is known
CALM_NS = 2_000_000_000
EVEN = 0.5  # of the mean gap between such frames, the least that the shorter ones are
RECENT_FRAMES = 8
SLOWER = 1.6  # times the usual period
LEAST_LAG_MS = 100.0  # that counts as falling behind, and `LAG_PERIODS` too
LAG_PERIODS = 2.5
JUMP_NS = 50_000_000  # of the wall clock against the monotonic one, between two frames
LEAK = 100e-6  # see OffsetEstimate
Trouble = tuple[str, str]  # cause, text


class StreamWatch:
    """Finds what goes wrong with a stream though its frames come; each as a cause and a text.

    * `clock`: the source's clock or this machine's wall clock jumped.
    * `lag`: frames come later after their capture than they did at best, or wait to be decoded.
    * `rate`: the camera gives fewer frames than it usually does.
    """

    def __init__(self) -> None:
        self._wall_ahead_ns: int | None = None
        self._least_lag_ns: float | None = None
        self._last_ns = self._late_frames = 0
        self._captured: deque[int] = deque(maxlen=RECENT_FRAMES + 1)
        self._calm: deque[int] = deque()
        self._filled_frames = 0
        self._usual_ms = 0.0

    def note(self, frame: Frame, arrived_ns: int, wall_ns: int, period_ms: float) -> list[Trouble]:
        """Take note of a frame.

        Args:
            frame: with its capture time.
            arrived_ns: monotonic.
            wall_ns: at the same moment, since 1970.
            period_ms: of the camera, as it is known up to now.
        """
        found = [("clock", frame.notice)] if frame.notice else []
        texts = {
            "clock": self._find_jump(wall_ns - arrived_ns),
            "lag": self._find_lag(arrived_ns - frame.captured_ns, arrived_ns, period_ms)
            or self._find_queue(frame.waiting, period_ms),
            "rate": self._find_slow_rate(frame.captured_ns),
        }
        return found + [(cause, text) for cause, text in texts.items() if text]

    def _find_queue(self, waiting: int | None, period_ms: float) -> str:
        """A buffer that fills: it tells of a lag also where the source's clock cannot."""
        many = waiting is not None and waiting * period_ms > LEAST_LAG_MS and waiting > LAG_PERIODS
        self._filled_frames = self._filled_frames + 1 if many else 0
        behind = f"{waiting} frames wait to be decoded, about {(waiting or 0) * period_ms:.0f} ms"
        return behind if self._filled_frames > 1 else ""

    def _find_jump(self, wall_ahead_ns: int) -> str:
        before, self._wall_ahead_ns = self._wall_ahead_ns, wall_ahead_ns
        if before is None or abs(wall_ahead_ns - before) < JUMP_NS:
            return ""
        return f"this machine's wall clock jumped by {(wall_ahead_ns - before) / 1e6:.0f} ms"

    def _find_lag(self, lag_ns: int, arrived_ns: int, period_ms: float) -> str:
        least, since = self._least_lag_ns, arrived_ns - self._last_ns
        self._least_lag_ns = lag_ns if least is None else min(lag_ns, least + LEAK * since)
        self._last_ns = arrived_ns
        behind_ms = (lag_ns - self._least_lag_ns) / 1e6
        late = behind_ms > max(LEAST_LAG_MS, LAG_PERIODS * period_ms)
        # A single late frame is jitter.
        self._late_frames = self._late_frames + 1 if late else 0
        return f"the stream is {behind_ms:.0f} ms behind" if self._late_frames > 1 else ""

    def _find_slow_rate(self, captured_ns: int) -> str:
        self._captured.append(captured_ns)
        self._note_pace(captured_ns)
        times = list(self._captured)
        gaps_ms = [(b - a) / 1e6 for a, b in pairwise(times)]
        slow = [gap for gap in gaps_ms if gap > SLOWER * self._usual_ms]
        # All but two: a camera that drops a frame now and then has not changed its rate.
        if not self._usual_ms or len(slow) < RECENT_FRAMES - 2:
            return ""
        rates = 1000 / (sum(gaps_ms) / len(gaps_ms)), 1000 / self._usual_ms
        return f"the camera gives {rates[0]:.1f} frames a second in place of {rates[1]:.1f}"

    def _note_pace(self, captured_ns: int) -> None:
        """The usual period is the shortest that frames have come at for a while, evenly: a queue
        that is handed over at once is no rate of the camera's."""
        calm = self._calm
        calm.append(captured_ns)
        while len(calm) > CALM_FRAMES and captured_ns - calm[1] >= CALM_NS:
            calm.popleft()
        if len(calm) < CALM_FRAMES or captured_ns - calm[0] < CALM_NS:
            return
        gaps_ms = sorted((b - a) / 1e6 for a, b in pairwise(calm))
        short, long = (gaps_ms[share * len(gaps_ms) // 4] for share in (1, 3))
        # Not beside the longer ones: those of a queue may be all but the one before it.
        if short >= EVEN * sum(gaps_ms) / len(gaps_ms):
            self._usual_ms = min(self._usual_ms or long, long)
