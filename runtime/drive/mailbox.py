"""One frame waits, and it is the newest."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from ...data.frames import Frame
from .clock import Bell


@dataclass(frozen=True)
class Captured:
    """A frame as it came in: the loop's own count of it, and its capture time since 1970."""

    frame_id: int
    frame: Frame
    wall_ns: int


class Mailbox:
    """Holds one frame. A newer one takes the place of one that still waits, so that a slow network
    never works through a queue of old frames."""

    def __init__(self, bell: Bell):
        self._bell = bell
        self._lock = threading.Condition()
        self._frame: Captured | None = None
        self._open = True

    def put(self, frame: Captured) -> Captured | None:
        """Gives back the frame that it replaces, if one waited."""
        with self._lock:
            replaced, self._frame = self._frame, frame
        self._bell.ring()
        return replaced

    def put_in_turn(self, frame: Captured) -> Captured | None:
        """Waits for the frame before to be taken: for logs of which every frame counts. Gives back
        `frame` itself if the mailbox was closed meanwhile."""
        with self._lock:
            self._lock.wait_for(lambda: self._frame is None or not self._open)
            if not self._open:
                return frame
            self._frame = frame
        self._bell.ring()
        return None

    def take(self) -> Captured | None:
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
