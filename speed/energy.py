"""Energy counters of this machine: the processors' (RAPL) and the GPUs' (NVML)."""

from __future__ import annotations

from pathlib import Path

from ..gpu import gpu_energy_j

POWERCAP = Path("/sys/class/powercap")


def read_energy_j(powercap: Path = POWERCAP) -> float | None:
    """Joules that processors and GPUs have taken since some moment, whatever ran on them.

    Args:
        powercap: folder of the kernel's counters.

    Returns:
        Their sum; None where no counter can be read, as in most virtual machines and containers.
    """
    counters = [_read_package(zone) for zone in sorted(powercap.glob("intel-rapl:?"))]
    found = [each for each in [*counters, gpu_energy_j()] if each is not None]
    return sum(found) if found else None


def _read_package(zone: Path) -> float | None:
    """Joules of a processor; since 2020 only root may read it."""
    try:
        return int((zone / "energy_uj").read_text()) / 1e6
    except (OSError, ValueError):
        return None
