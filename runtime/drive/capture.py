"""Capture: a thread that takes every frame, keeps the newest, and reopens the camera."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...data.camera_formats import CameraFormat, to_bgr
from ...data.frames import AGE_SOURCES, Frame, Unreadable
from ..frame_checks import as_bgr
from .clock import LoopClock
from .picture_faults import WITHHELD, PictureJudge, PictureLimits
from .stats import FrameCounters
from .stream_watch import StreamWatch, Trouble

BACK_OFF_S = (0.05, 0.1, 0.2, 0.4, 0.5)  # before each further attempt; the last one stays
GAPS = 61  # between capture times, that the camera's period is taken from
SHORTEST_PERIOD_MS = 5.0
OUTAGE_NS = 1_000_000_000  # without a frame
FUTURE_NS = 5_000_000  # a capture time this far ahead of now is no capture time
EARNED = 30  # new pictures in a row, after which a repeated one is no habit of the source
MOST_BLOCKED = 4  # threads that may hang in a silent source at once
Source = Iterable["Frame | Unreadable"]


@dataclass(frozen=True)
class SkippedFrame:
    """A frame that was counted and skipped."""

    frame_id: int
    cause: str
    reason: str


@dataclass(frozen=True)
class CapturedFrame:
    """A captured frame.

    Attributes:
        frame_id: the loop's own count.
        wall_ns: its capture time since 1970.
        arrived_ns: when the source gave it, monotonic.
        warnings: causes, of what is wrong with its picture.
    """

    frame_id: int
    frame: Frame
    wall_ns: int
    arrived_ns: int = 0
    warnings: tuple[str, ...] = ()


class Mailbox:
    """Holds one frame. A newer one replaces one that still waits, so that a slow network
    never works through a queue of old frames."""

    def __init__(self, clock: LoopClock):
        self._clock = clock
        self._lock = threading.Condition()
        self._frame: CapturedFrame | None = None
        self._open = True

    def put(self, frame: CapturedFrame, in_turn: bool = False) -> CapturedFrame | None:
        """Leave a frame.

        Args:
            frame: the newest one.
            in_turn: wait for the one before to be taken, for logs of which every frame counts.

        Returns:
            The frame that nobody will get: one that waited, or this one if the mailbox was closed
            meanwhile.
        """
        with self._lock:
            if in_turn:
                self._lock.wait_for(lambda: self._frame is None or not self._open)
                if not self._open:
                    return frame
            replaced, self._frame = self._frame, frame
        self._clock.wake()
        return replaced

    def take(self) -> CapturedFrame | None:
        """The newest frame, if there is one that was not taken yet."""
        with self._lock:
            frame, self._frame = self._frame, None
            self._lock.notify()
        return frame

    @property
    def empty(self) -> bool:
        return self._frame is None

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._lock.notify_all()


class Capture:
    """Reads a source in a thread of its own, into a mailbox.

    A source that raises is iterated again, with a back-off; one that hangs is left to its thread
    when `reopen` is called, and iterated again in a new one. A source that is its own iterator
    (a generator) cannot start again: it is lost when it raises. So is a recording, which would
    repeat its frames.

    Args:
        source: an iterable of frames.
        mailbox: where the newest one goes.
        counters: of all.
        clock: the loop's.
        every_frame: no frame takes the place of one that waits.
        max_age_ms: for which a camera may repeat one picture; None: for ever.
        pictures: from where on a picture is called faulty.
        format: that inference takes frames in.

    Attributes:
        opened_ns: when it was first opened, monotonic; 0 before.
        last_ns: when the last good frame came, monotonic.
        resumed_ns: when frames came again after an outage, or for the first time.
        lost: why no frames come, or "" while they do.
        gone: whether it is lost for good.
        ended: whether the source came to its end.
        reopened: how often.
        period_ms: of the camera; 0 until there are three frames.
        troubles: causes and texts, of what goes wrong though frames come; the loop takes them.
    """

    def __init__(
        self,
        source: Source,
        mailbox: Mailbox,
        counters: FrameCounters,
        clock: LoopClock,
        every_frame: bool = False,
        max_age_ms: float | None = None,
        pictures: PictureLimits | None = None,
        format: CameraFormat = "bgr",
    ):
        self.source, self.mailbox, self.counters, self.clock = source, mailbox, counters, clock
        self.every_frame, self.max_age_ms, self.format = every_frame, max_age_ms, format
        self.lost = ""
        self.gone = self.ended = False
        self.opened_ns = self.last_ns = self.resumed_ns = 0
        self.reopened = 0
        self.period_ms = 0.0
        self.skipped: deque[SkippedFrame] = deque(maxlen=1000)
        self.troubles: deque[Trouble] = deque(maxlen=1000)
        self._watch, self._judge = StreamWatch(), PictureJudge(pictures)
        self._gaps_ms: deque[float] = deque(maxlen=GAPS)
        self._turn = 0  # the thread that may deliver; older ones only end
        self._newest_ns = 0
        self._picture: NDArray[np.uint8] | None = None
        self._picture_ns = 0  # when it was first captured
        self._repeats = self._new = 0  # of that picture; new ones in a row before it
        self._failures = 0
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def waits(self) -> bool:
        """Whether it is not opened yet: a recording is played once inference is ready."""
        return not self.opened_ns and bool(getattr(self.source, "recorded", False))

    def start(self) -> None:
        """Start to read the source in a new thread; frames of an older thread no longer count."""
        self.opened_ns = self.opened_ns or self.clock.now_ns()
        self._turn += 1
        # A daemon: a driver that hangs must not keep the process from ending.
        thread = threading.Thread(target=self._run, args=(self._turn,), name="capture", daemon=True)
        self._threads = [*(each for each in self._threads if each.is_alive()), thread]
        thread.start()

    def reopen(self) -> bool:
        """Leave a silent source to its thread and reopen it; False where that cannot help."""
        blocked = sum(thread.is_alive() for thread in self._threads)
        if not can_restart(self.source) or blocked >= MOST_BLOCKED or self._stop.is_set():
            return False
        self.reopened += 1
        self.start()
        return True

    def stop(self) -> None:
        self._stop.set()
        self.mailbox.close()

    def join(self, timeout_s: float) -> None:
        if self._threads:
            self._threads[-1].join(timeout_s)

    def _run(self, turn: int) -> None:
        while not self._stop.is_set() and turn == self._turn:
            try:
                ended = self._read(turn)
            except Exception as error:  # a driver's, a decoder's or a caller's own source
                if not self._lose(turn, error):
                    return
                self._stop.wait(BACK_OFF_S[min(self._failures, len(BACK_OFF_S)) - 1])
                continue
            if ended:
                self.ended = True
                self.clock.wake()
                return

    def _read(self, turn: int) -> bool:
        """Whether the source ended, rather than this thread's turn."""
        frames = iter(self.source)
        try:
            for item in frames:
                if turn != self._turn or self._stop.is_set():
                    return False
                self.accept(item)
        finally:
            _close(frames, self.source)
        return turn == self._turn

    def accept(self, item: object) -> None:
        """One item of the source: into the mailbox, or counted and skipped."""
        frame_id = self.counters.capture()
        try:
            frame = self._check_frame(item)
            warnings = (*self._check_repeats(), *self._check_picture(frame))
        except Exception as error:  # a caller's own source may give anything
            cause = error.cause if isinstance(error, _NotNew) else "corrupt"
            self._skip(SkippedFrame(frame_id, cause, str(error)))
            return
        self._mark(frame)
        if not getattr(self.source, "recorded", False):
            now, period_ms = self.clock.wall_ns(), self.period_ms
            self.troubles.extend(self._watch.note(frame, self.last_ns, now, period_ms))
        wall_ns = frame.wall_ns
        if wall_ns is None:
            wall_ns = self.clock.wall_ns() - (self.clock.now_ns() - frame.captured_ns)
        captured = CapturedFrame(frame_id, frame, wall_ns, self.last_ns, warnings)
        if self.mailbox.put(captured, in_turn=self.every_frame) is not None:
            self.counters.drop("stopped" if self.every_frame else "replaced")

    def _check_frame(self, item: object) -> Frame:
        if isinstance(item, Unreadable):
            raise ValueError(item.reason)
        if not isinstance(item, Frame):
            raise ValueError(f"the source gave a {type(item).__name__}, not a Frame")
        item = self._in_format(item)
        image = item.image
        now = self.clock.now_ns()
        if not isinstance(item.captured_ns, (int, np.integer)):
            raise ValueError(f"captured_ns is time.monotonic_ns(), not {item.captured_ns!r}")
        if item.age_source not in AGE_SOURCES:
            raise ValueError(f"age_source is one of {', '.join(AGE_SOURCES)}")
        if item.captured_ns > now + FUTURE_NS:
            raise ValueError("captured in the future: captured_ns is time.monotonic_ns()")
        # Neither an older frame nor one that was given before must pass for news.
        if item.captured_ns <= self._newest_ns:
            raise _NotNew("repeated", "captured no later than the frame before it")
        self._check_moving(image, int(item.captured_ns))
        return replace(item, image=image, captured_ns=int(item.captured_ns))

    def _in_format(self, item: Frame) -> Frame:
        """The frame as inference takes it: in the camera's own format if the artifact has that."""
        if item.format == self.format != "bgr":
            return item
        image = as_bgr(to_bgr(item.image, item.format))
        if self.format != "bgr":
            raise ValueError(
                f"the camera delivers {item.format}, and the model takes {self.format}: export it "
                f"with --input {item.format}"
            )
        return replace(item, image=image, format="bgr")

    def _check_moving(self, image: NDArray[np.uint8], captured_ns: int) -> None:
        """A picture that equals the one before, byte for byte, is as old as that one, whatever its
        stamp says: every sensor has noise, and a driver that hangs repeats what it has."""
        if self.max_age_ms is None or getattr(self.source, "recorded", False):
            return
        before, self._picture = self._picture, image
        if before is None or not _equal(before, image):
            self._picture_ns = captured_ns
            self._repeats, self._new = 0, 1 if self._repeats else self._new + 1
        else:
            self._repeats += 1
        age_ms = (captured_ns - self._picture_ns) / 1e6
        if age_ms > self.max_age_ms:
            self._newest_ns = captured_ns
            raise _NotNew("frozen", f"the camera has repeated one picture for {age_ms:.0f} ms")

    def _check_repeats(self) -> tuple[str, ...]:
        """ "frozen" of a picture that a camera with noise has repeated; of a source that repeats
        them by habit `_check_moving` says so after a while. So of a stream: its encoder gives the
        same bytes for a scene that stands still."""
        limit, decoded = self._judge.limits.frozen, getattr(self.source, "decoded", False)
        if limit is None or decoded or self._repeats < limit or self._new < EARNED:
            return ()
        self.troubles.append(("frozen", f"the camera repeats one picture, {self._repeats} times"))
        return ("frozen",)

    def _check_picture(self, frame: Frame) -> tuple[str, ...]:
        """Causes of what is wrong with it; raises where it shows nothing that could be labeled."""
        faults = self._judge.judge(to_bgr(frame.image, frame.format))
        for fault in faults:
            # A log is labeled from end to end: whoever reads its masks is told in them.
            if fault.cause in WITHHELD and self.max_age_ms is not None:
                self._newest_ns = frame.captured_ns
                raise _NotNew(fault.cause, fault.text)
            self.troubles.append((fault.cause, fault.text))
        return tuple(fault.cause for fault in faults)

    def _mark(self, frame: Frame) -> None:
        now = self.clock.now_ns()
        if not self.last_ns or self.lost or now - self.last_ns > OUTAGE_NS:
            self.resumed_ns = now
        if self._newest_ns and not self.lost:
            self._gaps_ms.append((frame.captured_ns - self._newest_ns) / 1e6)
        if len(self._gaps_ms) > 1:
            # Not the median: it collapses when a driver hands over a queue of frames at once, and
            # every frame after that would be called overdue. Not the mean: an outage stretches it.
            usual = sorted(self._gaps_ms)[3 * len(self._gaps_ms) // 4]
            self.period_ms = max(usual, SHORTEST_PERIOD_MS)
        self._newest_ns = frame.captured_ns
        self.last_ns = now
        self.lost, self._failures = "", 0

    def _skip(self, skipped: SkippedFrame) -> None:
        self.counters.drop(skipped.cause)
        self.skipped.append(skipped)
        self.clock.wake()

    def _lose(self, turn: int, error: Exception) -> bool:
        """Whether to try again."""
        if turn != self._turn:
            return False
        self._failures += 1
        self.lost = f"{type(error).__name__}: {error}"
        self.gone = not can_restart(self.source)
        self.reopened += not self.gone
        self.clock.wake()
        return not self.gone


class _NotNew(ValueError):
    """A frame that was given before, an older one, one that only looks new or shows nothing."""

    def __init__(self, cause: str, text: str):
        super().__init__(text)
        self.cause = cause


def _equal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two pictures are the same; a few pixels tell most that are not."""
    if one.shape != other.shape or not np.array_equal(one[::16, ::16], other[::16, ::16]):
        return False
    return np.array_equal(one, other)


def can_restart(source: Source) -> bool:
    """Whether a source that broke can be iterated again, and continues instead of starting over:
    not a generator, nor one with `restarts = False`, such as a recording."""
    return not isinstance(source, Iterator) and getattr(source, "restarts", True)


def _close(frames: Iterator[object], source: Source) -> None:
    """Free the device that an iterator holds, so that the next one can open it."""
    close = getattr(frames, "close", None)
    if close is not None and frames is not source:
        close()
