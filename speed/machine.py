"""What a measurement ran on, and whether anything else ran beside it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__

PACKAGES = (
    "numpy",
    "opencv-python",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt_rtx_cu13",
    "torch",
)
# Our word for what matters to inference, and the kernel's flags that mean it.
INSTRUCTION_SETS = {
    "avx2": {"avx2"},
    "avx512": {"avx512f"},
    "vnni": {"avx_vnni", "avx512_vnni"},
    "bf16": {"avx512_bf16", "bf16"},
    "fp16": {"avx512_fp16", "asimdhp"},
    "amx_bf16": {"amx_bf16"},
    "amx_int8": {"amx_int8"},
    "neon": {"neon", "asimd"},
    "dotprod": {"asimddp"},
    "i8mm": {"i8mm"},
    "sve": {"sve"},
    "sve2": {"sve2"},
}
MACOS_FEATURES = {  # sysctl's names for the same
    "hw.optional.avx2_0": "avx2",
    "hw.optional.avx512f": "avx512f",
    "hw.optional.neon": "neon",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
}
BUSY = 0.05  # of all core time: others' share above which a figure is not to be trusted


@dataclass(frozen=True)
class Machine:
    """`cores`: physical ones that this process may use; `memory_gib`: of the machine, None where
    the system does not tell; `gpus`: as the driver names them; `packages`: versions by name."""

    cpu: str
    cores: int
    instruction_sets: tuple[str, ...]
    memory_gib: float | None
    system: str
    python: str
    gpus: tuple[str, ...]
    packages: Mapping[str, str]

    def __str__(self) -> str:
        memory = f", {self.memory_gib:.0f} GiB" if self.memory_gib else ""
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        gpus = "".join(f", {gpu}" for gpu in self.gpus)
        return f"{self.cpu}, {cores} ({' '.join(self.instruction_sets)}){memory}{gpus}"


def machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        cpu=_cpu_name(),
        cores=usable_cores(),
        instruction_sets=tuple(
            name for name, flags in INSTRUCTION_SETS.items() if flags & _cpu_flags()
        ),
        memory_gib=_memory_gib(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpus=_gpu_names(),
        packages=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Versions of rtseg and of those of PACKAGES that are installed."""
    versions = {"rtseg": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Physical cores among the processors that this process may use, at least 1.

    Two threads of one core share its arithmetic units, so that more threads than this only wait
    for each other.
    """
    cpus = _usable_cpus()
    siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {_text(siblings.format(cpu)) or str(cpu) for cpu in cpus}
    count = len(cores) if sys.platform == "linux" else int(_sysctl("hw.physicalcpu") or len(cpus))
    return max(1, min(count, _quota() or count))


def _usable_cpus() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quota() -> int | None:
    """Cores' worth of time that a container grants, where it grants less than all."""
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
    return -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() else None


def _cpu_name() -> str:
    fields = _cpuinfo()
    name = fields.get("model name") or _sysctl("machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    fields = _cpuinfo()
    if fields:
        return set((fields.get("flags") or fields.get("Features") or "").split())
    return {flag for key, flag in MACOS_FEATURES.items() if _sysctl(key) == "1"}


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields; {} where the system has no /proc/cpuinfo."""
    first = _text("/proc/cpuinfo").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _sysctl(key: str) -> str:
    if sys.platform != "darwin":
        return ""
    found = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _memory_gib() -> float | None:
    try:
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None
    return round(pages * size / 2**30, 1)


def _gpu_names() -> tuple[str, ...]:
    from ..runtime.preflight import gpus

    return tuple(gpu.name for gpu in gpus())


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Noise:
    """What else kept the machine busy during a measurement; None where the system does not tell.

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


class Watch:
    """Watches the processors from its making on; `noise()` tells what others did since."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        self._before = _processor_seconds()
        self._own_before = _own_seconds()

    def noise(self) -> Noise:
        after, own = _processor_seconds(), _own_seconds() - self._own_before
        if after is None or self._before is None:
            return Noise(None, None, self._load)
        busy, stolen, total = (b - a for a, b in zip(self._before, after, strict=True))
        others = max(0.0, busy - own)
        span = max(total, 1e-9)
        return Noise(round(others / span, 3), round(stolen / span, 3), self._load)


def _processor_seconds() -> tuple[float, float, float] | None:
    """(busy, stolen, all) seconds of the processors that this process may use, since boot."""
    rows = dict(line.split(" ", 1) for line in _text("/proc/stat").splitlines() if " " in line)
    times = [[int(t) for t in rows.get(f"cpu{cpu}", "").split()] for cpu in _usable_cpus()]
    if not times or any(len(row) < 8 for row in times):
        return None
    ticks: Any = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, waiting, hard, soft, stolen = (
        sum(column) / ticks for column in list(zip(*times, strict=True))[:8]
    )
    busy = user + nice + system + hard + soft
    return busy, stolen, busy + idle + waiting + stolen


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
