"""Usage of this machine: memory, handles and processor time, of processes here and of others."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .gpu import gpu_memory_used
from .system import MIB, read_text, usable_cpus

BUSY = 0.05  # of all core time: others' share above which a figure is not to be trusted


@dataclass(frozen=True)
class Noise:
    """Load from outside during a measurement; None where the system does not tell.

    `others`: share of the usable processors' time (0..1) that other processes took; `stolen`: that
    a hypervisor gave to other machines; `load_average`: of the minute before.
    """

    others: float | None
    stolen: float | None
    load_average: float | None

    @property
    def quiet(self) -> bool:
        """Whether so little else ran that figures can be trusted; False where nobody can tell."""
        return self.others is not None and self.others + (self.stolen or 0) <= BUSY

    def warning(self) -> str | None:
        """One line if the machine is known to have been busy."""
        if self.others is None or self.quiet:
            return None
        return (
            f"the machine was busy: other work took {self.others:.0%} of the processor time"
            + (f" and the hypervisor {self.stolen:.0%}" if round(self.stolen or 0, 2) else "")
            + ", so neither times nor ratios are to be trusted: measure again when it is quiet"
        )


class NoiseWatch:
    """Watches the processors since its creation; `noise()`: other processes' load since then."""

    def __init__(self) -> None:
        self._load = psutil.getloadavg()[0]
        self._before = _processor_seconds()
        self._own_before = _own_seconds()

    def noise(self) -> Noise:
        after, own = _processor_seconds(), _own_seconds() - self._own_before
        busy, stolen, total = (b - a for a, b in zip(self._before, after, strict=True))
        span = max(total, 1e-9)
        return Noise(
            round(max(0.0, busy - own) / span, 3), round(stolen / span, 3), round(self._load, 2)
        )


def _processor_seconds() -> tuple[float, float, float]:
    """(busy, stolen, all) seconds of the processors that this process may use, since boot."""
    every = psutil.cpu_times(percpu=True)
    busy = stolen = idle = 0.0
    for times in (every[cpu] for cpu in usable_cpus() if cpu < len(every)):
        fields = times._asdict()  # Linux has all of these, macOS and Windows some
        busy += sum(fields.get(n, 0.0) for n in ("user", "nice", "system", "irq", "softirq"))
        stolen += fields.get("steal", 0.0)
        idle += fields["idle"] + fields.get("iowait", 0.0)
    return busy, stolen, busy + stolen + idle


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


@dataclass(frozen=True)
class Usage:
    """resident_mib: memory in RAM; handles: open files; None where the system does not tell."""

    resident_mib: float | None
    handles: int | None


def read_usage(process: int | None = None) -> Usage:
    """Read what a process takes, by its id; None is this one. One that is gone uses nothing."""
    try:
        chosen = psutil.Process(process)
        with chosen.oneshot():
            resident = round(chosen.memory_info().rss / MIB, 1)
            handles = getattr(chosen, "num_fds" if os.name == "posix" else "num_handles")()
            return Usage(resident, handles)
    except (psutil.Error, OSError):
        return Usage(None, None)


@dataclass(frozen=True)
class UsageSample:
    """Of a drive's own process, and the memory of its worker processes together."""

    at_s: float
    resident_mib: float | None
    handles: int | None
    workers_mib: float | None


class UsageLog:
    """Samples over a run, less often the longer it lasts, so that they stay few."""

    EVERY_S = 10.0
    MOST = 240  # samples kept of a run, however long it is

    def __init__(self) -> None:
        self.samples: list[UsageSample] = []
        self._every_s = self.EVERY_S

    def note(self, at_s: float, workers: Sequence[int]) -> None:
        """Take a sample if one is due. workers: process ids."""
        if not self.samples or at_s >= self.samples[-1].at_s + self._every_s:
            self.add(at_s, workers)

    def add(self, at_s: float, workers: Sequence[int]) -> None:
        if len(self.samples) >= self.MOST:
            # Every second one goes and the pace halves: evenly spread over the run, however long it
            # is.
            self.samples = self.samples[::2]
            self._every_s *= 2
        own = read_usage()
        memory = [each.resident_mib for each in map(read_usage, workers) if each.resident_mib]
        workers_mib = round(sum(memory), 1) if own.resident_mib else None
        self.samples.append(UsageSample(round(at_s, 3), own.resident_mib, own.handles, workers_mib))


class PeakMemory:
    """Watches memory since its creation.

    Freed memory is first handed back to the system, so that what follows cannot live on it unseen.
    """

    def __init__(self) -> None:
        gc.collect()
        _hand_back()
        self._resident = psutil.Process().memory_info().rss
        self._device = gpu_memory_used()

    def host_mib(self) -> float | None:
        """Growth of the resident set at its largest since, in MiB; None where it is unknown."""
        peak = _peak()
        return None if peak is None else round(max(0, peak - self._resident) / MIB, 1)

    def device_mib(self) -> float | None:
        """Growth of the memory in use on all GPUs since, in MiB; None without a GPU."""
        used = gpu_memory_used()
        if used is None or self._device is None:
            return None
        return round(max(0, used - self._device) / MIB, 1)


def _hand_back() -> None:
    """Free memory goes back to the system, and the peak starts anew, where Linux lets us."""
    if sys.platform != "linux":
        return
    # glibc's; other libraries have none.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with contextlib.suppress(OSError):
        # 5 resets the peak of the resident set.
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int | None:
    """Largest resident set in bytes, since `_hand_back` on Linux, else since the start."""
    if sys.platform == "linux":
        # getrusage would count what a parent had before it started this process.
        for line in read_text("/proc/self/status").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
