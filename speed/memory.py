"""Memory that a contestant takes: the process's peak and the GPU's."""

from __future__ import annotations

import ctypes
import gc
import importlib
import sys
from pathlib import Path

MIB = 2**20


class PeakMemory:
    """Watches memory from its making on.

    Freed memory is first handed back to the system, so that what follows cannot live on it unseen.
    """

    def __init__(self) -> None:
        gc.collect()
        _hand_back()
        self._resident = _resident()
        self._device = device_used()

    def host_mib(self) -> float | None:
        """Growth of the resident set at its largest since, in MiB; None where it is not told."""
        peak = _peak()
        if peak is None or self._resident is None:
            return None
        return round(max(0, peak - self._resident) / MIB, 1)

    def device_mib(self) -> float | None:
        """Growth of the memory in use on all GPUs since, in MiB; None without a GPU."""
        used = device_used()
        if used is None or self._device is None:
            return None
        return round(max(0, used - self._device) / MIB, 1)


def device_used() -> int | None:
    """Bytes in use on all GPUs, by any process; None without one or without nvidia-ml-py."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        return sum(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
    except nvml.NVMLError:  # no driver, or an integrated GPU that does not tell
        return None


def _hand_back() -> None:
    """Free memory goes back to the system, and the peak starts anew, where Linux lets us."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident() -> int | None:
    return _status("VmRSS") if sys.platform == "linux" else _peak()


def _peak() -> int | None:
    if sys.platform == "linux":
        return _status("VmHWM")
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(field: str) -> int | None:
    """Bytes that /proc/self/status gives for a field."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return None
