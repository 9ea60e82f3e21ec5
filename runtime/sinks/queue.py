"""Between the loop and a sink: a bounded queue and a thread, so that no sink can delay inference.

A sink is any callable that takes a Result or a Status. It runs in a thread of its own, one message
at a time. Five attributes are looked for and may be absent:

* `capacity` (int, default 4): messages that may wait for it. When one more comes, the oldest is
  dropped and counted.
* `records` (bool, default False): it keeps what it gets for later, such as a file, so it also takes
  masks that became older than `max_age` while they waited. Other sinks get a LATE status instead.
* `close()`: called in the same thread after the last message.
* `watch`: a drive sets it to its `snapshot`, which tells the state and counters of the moment.
* `camera`: in a drive of several cameras, the one whose messages it takes (and whose `snapshot` it
  watches). Without it a sink takes those of all, `capacity` of each; where more come, the camera
  that has the most waiting loses its oldest.
* `keep_incident`: a drive with a black box sets it to a function that takes a reason, and keeps the
  last seconds.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, fields

from ..drive.clock import LoopClock
from ..drive.messages import Message, Result, Status, StatusKind

Sink = Callable[[Message], object]
CAPACITY = 4
BLOCKED_S = 1.0  # a sink that has been busy with one message for longer is called blocked


@dataclass(frozen=True)
class SinkCounts:
    """What happened to the messages for a sink.

    Attributes:
        delivered: the sink took them.
        dropped: pushed out of its full queue.
        failed: the sink raised; last_error: what.
        withheld: masks that grew too old in the queue; the sink got a status instead, which counts
            as delivered.
        unflushed: still waiting when the loop had to end.
        records: whether the sink keeps them for later.
    """

    name: str
    delivered: int = 0
    dropped: int = 0
    failed: int = 0
    withheld: int = 0
    unflushed: int = 0
    last_error: str = ""
    records: bool = False


class SinkQueue:
    """One sink with its queue, thread and counters, see `SinkCounts`. cameras: that it has room
    for."""

    def __init__(self, sink: Sink, clock: LoopClock | None = None, cameras: int = 1):
        self.sink, self.clock = sink, clock or LoopClock()
        self.name = sink_name(sink)
        self.camera: str | None = getattr(sink, "camera", None)
        shared = cameras if self.camera is None else 1
        self.capacity: int = getattr(sink, "capacity", CAPACITY) * shared
        self.records: bool = getattr(sink, "records", False)
        self.delivered = self.dropped = self.failed = self.withheld = self.unflushed = 0
        self.last_error = ""
        self.failed_ns = 0  # when it raised last
        self._queue: deque[Message] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._busy_since_ns = 0
        self._thread = threading.Thread(target=self._run, name=f"sink {self.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def offer(self, message: Message) -> None:
        """Queue it and return at once; the oldest message goes if the queue is full."""
        with self._news:
            if len(self._queue) >= self.capacity:
                self._drop_one(message.camera)
            self._queue.append(message)
            self._news.notify()

    def _drop_one(self, coming: str) -> None:
        # The oldest of the camera that fills the queue: one that fails must not push out the masks
        # of the others with its statuses.
        waiting = Counter([coming, *(each.camera for each in self._queue)])
        most = max(waiting.values())
        place = next(i for i, m in enumerate(self._queue) if waiting[m.camera] == most)
        del self._queue[place]
        self.dropped += 1

    def close(self) -> None:
        """Ask for the end; what is queued is still delivered. `join` waits for it."""
        with self._news:
            self._closing = True
            self._news.notify()

    def join(self, timeout_s: float) -> bool:
        """Whether the sink took everything and was closed in time; what it did not is counted."""
        self._thread.join(max(0.0, timeout_s))
        if not self._thread.is_alive():
            return True
        with self._news:
            # The message that it is busy with counts too: nobody knows what becomes of it.
            self.unflushed = len(self._queue) + bool(self._busy_since_ns)
            self._queue.clear()
        return False

    def blocked_s(self) -> float:
        """Seconds that it has been busy with one message, if that is too long; else 0."""
        since = self._busy_since_ns
        busy_s = (self.clock.now_ns() - since) / 1e9 if since else 0.0
        return busy_s if busy_s > BLOCKED_S else 0.0

    def counts(self) -> SinkCounts:
        return SinkCounts(**{each.name: getattr(self, each.name) for each in fields(SinkCounts)})

    def _run(self) -> None:
        while (message := self._next()) is not None:
            self._deliver(message)
        close = getattr(self.sink, "close", None)
        if close is not None:
            self._guarded(close)

    def _next(self) -> Message | None:
        with self._news:
            self._news.wait_for(lambda: self._queue or self._closing)
            if not self._queue:
                return None
            self._busy_since_ns = self.clock.now_ns()
            return self._queue.popleft()

    def _deliver(self, message: Message) -> None:
        # Judged here and not when it was queued: the sink's own delay is what makes masks old.
        if isinstance(message, Result) and not self.records:
            message = self._still_fresh(message)
        if self._guarded(lambda: self.sink(message)):
            self.delivered += 1
        self._busy_since_ns = 0

    def _guarded(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except Exception as error:  # whatever a sink raises is the sink's own trouble
            self.failed += 1
            self.failed_ns = self.clock.now_ns()
            self.last_error = f"{type(error).__name__}: {error}"
            return False
        return True

    def _still_fresh(self, result: Result) -> Message:
        now = self.clock.now_ns()
        if now <= result.expires_ns:
            return result
        self.withheld += 1
        age_ms = (now - result.captured_ns) / 1e6
        text = f"its mask waited for this sink until it was {age_ms:.0f} ms old"
        return Status(
            StatusKind.LATE,
            "sink",
            text,
            now,
            self.clock.wall_ns(),
            result.frame_id,
            result.captured_ns,
            result.camera,
        )


def sink_name(sink: Sink) -> str:
    """How reports call it: its `name`, else the function's or the class's."""
    for owner in (sink, type(sink)):
        for attribute in ("name", "__name__"):
            name = getattr(owner, attribute, None)
            if isinstance(name, str):
                return name
    return "sink"
