"""Memory and file handles: what must not grow while a drive goes on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 10.0
MOST = 240  # samples kept of a run, however long it is


@dataclass(frozen=True)
class Usage:
    """resident_mib: memory in RAM; handles: open files; None where the system does not tell."""

    resident_mib: float | None
    handles: int | None


@dataclass(frozen=True)
class UsageSample:
    """Of a drive's own process, and the memory of its worker processes together."""

    at_s: float
    resident_mib: float | None
    handles: int | None
    workers_mib: float | None


class UsageLog:
    """Samples over a run, ever rarer the longer it lasts, so that they stay few."""

    def __init__(self) -> None:
        self.samples: list[UsageSample] = []
        self._every_s = EVERY_S

    def note(self, at_s: float, workers: Sequence[int]) -> None:
        """Take a sample if one is due. workers: process ids."""
        if not self.samples or at_s >= self.samples[-1].at_s + self._every_s:
            self.add(at_s, workers)

    def add(self, at_s: float, workers: Sequence[int]) -> None:
        if len(self.samples) >= MOST:
            self.samples = self.samples[::2]
            self._every_s *= 2
        own = usage()
        memory = [each.resident_mib for each in map(usage, workers) if each.resident_mib]
        workers_mib = round(sum(memory), 1) if own.resident_mib else None
        self.samples.append(UsageSample(round(at_s, 3), own.resident_mib, own.handles, workers_mib))


def usage(process: int | None = None) -> Usage:
    """Of a process, by its id; None is this one. One that is gone uses nothing."""
    folder = Path("/proc") / ("self" if process is None else str(process))
    try:
        pages = int((folder / "statm").read_text().split()[1])
        handles = len(list((folder / "fd").iterdir()))
    except (OSError, IndexError):
        return Usage(None, None)
    return Usage(round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1), handles)
