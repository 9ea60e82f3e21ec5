"""Memory and file handles of this process: what must not grow while a drive goes on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Usage:
    """resident_mib: memory in RAM; handles: open files; None where the system does not tell."""

    resident_mib: float | None
    handles: int | None


def usage() -> Usage:
    if not PROC.is_dir():
        return Usage(None, None)
    pages = int((PROC / "statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return Usage(round(resident, 1), len(list((PROC / "fd").iterdir())))
