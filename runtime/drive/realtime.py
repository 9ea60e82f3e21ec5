"""Real-time scheduling: keeps other work out of the loop's way, as far as permissions allow."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from dataclasses import dataclass

LOWEST = 19  # nice
LOCK_NOW_AND_LATER = 1 | 2  # MCL_CURRENT | MCL_FUTURE


@dataclass(frozen=True)
class RealtimeOptions:
    """What to ask the operating system for.

    Attributes:
        cores: to run on, by number; empty: all that this process may use.
        priority: of SCHED_FIFO, 1 to 99; 0: the ordinary scheduler.
        lock_memory: no page of this process is swapped out.
        freeze_garbage: the collector never looks again at objects that live now.
    """

    cores: tuple[int, ...] = ()
    priority: int = 50
    lock_memory: bool = True
    freeze_garbage: bool = True


def apply_realtime(wishes: RealtimeOptions) -> dict[str, str]:
    """Request all options; the loop runs without those that are refused too.

    Returns:
        By name, what was granted, or why it was not.
    """
    granted = {}
    if wishes.cores:
        granted["cores"] = _cores(set(wishes.cores))
    if wishes.priority:
        granted["SCHED_FIFO"] = _priority(wishes.priority)
    if wishes.lock_memory:
        granted["mlockall"] = _lock_memory()
    if wishes.freeze_garbage:
        # First, so that what is frozen is not garbage, which would then stay for ever.
        gc.collect()
        gc.freeze()
        granted["garbage collector"] = f"{gc.get_freeze_count()} objects frozen"
    return granted


def _cores(cores: set[int]) -> str:
    if not hasattr(os, "sched_setaffinity"):
        return f"not on {sys.platform}"
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        return f"not granted: {error.strerror}; this machine has 0 to {(os.cpu_count() or 1) - 1}"
    return "granted: " + ", ".join(map(str, sorted(os.sched_getaffinity(0))))


def _priority(priority: int) -> str:
    if not hasattr(os, "sched_setscheduler"):
        return f"not on {sys.platform}"
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError as error:
        return f"not granted: {error.strerror}; LimitRTPRIO={priority} or CAP_SYS_NICE permits it"
    return f"granted: {priority}"


def _lock_memory() -> str:
    if sys.platform != "linux":
        return f"not on {sys.platform}"
    import resource

    unlimited = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY
    if not unlimited and os.geteuid() != 0:
        # Under a limit the call may succeed, and every allocation beyond it would then fail.
        return "not asked for: locked memory is limited here; LimitMEMLOCK=infinity permits it"
    # Python has no call for it.
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(LOCK_NOW_AND_LATER):
        reason = os.strerror(ctypes.get_errno())
        return f"not granted: {reason}; CAP_IPC_LOCK permits it"
    return "granted"


def lower_priority(nice: int = LOWEST) -> None:
    """Of this thread and those that it starts: whatever else wants the processor goes first."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            # Not of the process: on Linux each thread has a priority of its own.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
