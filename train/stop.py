"""Signals that ask a run to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Stop:
    """Set by a signal, read between iterations."""

    wanted = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and SIGINT ask for a stop; the handlers of before come back at the end."""
    stop = Stop()

    def handle(number: int, frame: object) -> None:
        stop.wanted = True

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {kind: signal.signal(kind, handle) for kind in kinds}
    except ValueError:  # only the main thread may set handlers
        yield stop
        return
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
