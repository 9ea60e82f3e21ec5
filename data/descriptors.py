"""File descriptors in reserve: where a process has none left, it still answers and writes."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator

NONE_LEFT = (errno.EMFILE, errno.ENFILE)  # for this process; for the whole system


class DescriptorReserve:
    """Descriptors that are held for nothing, until something that matters finds no other.

    Thread-safe. A reserve is short after somebody kept what was lent, and fills up again once there
    are descriptors.
    """

    SIZE = 8
    AT_ONCE = 2  # are lent: what leaks them would take more, too

    def __init__(self) -> None:
        self._held: list[int] = []
        self._lock = threading.Lock()
        self._kept, self._lent = False, 0

    def hold(self) -> None:
        """Hold them from now on; later calls fill up what is missing."""
        with self._lock:
            self._kept = True
            self._fill()

    @contextlib.contextmanager
    def lend(self) -> Iterator[None]:
        """Around what opens something: if the process has no descriptor left, two become free."""
        with self._lock:
            self._lent += 1
            if self._kept and not _can_open():
                for _ in range(min(self.AT_ONCE, len(self._held))):
                    os.close(self._held.pop())
        try:
            yield
        finally:
            with self._lock:
                self._lent -= 1
                self._fill()

    def _fill(self) -> None:
        if self._lent or not self._kept:  # it would take back what is lent
            return
        with contextlib.suppress(OSError):
            while len(self._held) < self.SIZE:
                self._held.append(os.open(os.devnull, os.O_RDONLY))


def _can_open() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in NONE_LEFT
    return True


RESERVE = DescriptorReserve()
