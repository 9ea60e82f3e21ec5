"""This machine: processors, memory, operating system."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from . import __version__
from .gpu import gpus

MIB = 2**20
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


@dataclass(frozen=True)
class SystemInfo:
    """The machine that figures were measured on.

    `cores`: physical ones that this process may use; `memory_gib`: of the machine; `gpus`: as the
    driver names them; `packages`: versions by name.
    """

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

    def lines(self) -> list[str]:
        """Two lines for a report: the machine, then the system and the packages."""
        packages = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return [str(self), f"{self.system}, Python {self.python}; {packages}"]


def read_system() -> SystemInfo:
    """Describe the machine that this process runs on."""
    flags = _cpu_flags()
    return SystemInfo(
        cpu=_cpu_name(),
        cores=usable_cores(),
        instruction_sets=tuple(name for name, any_of in INSTRUCTION_SETS.items() if flags & any_of),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        gpus=tuple(gpu.name for gpu in gpus()),
        packages=package_versions(),
    )


def package_versions() -> dict[str, str]:
    """Versions of rtseg and of those of PACKAGES that are installed."""
    versions = {"rtseg": __version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def usable_cores() -> int:
    """Count the physical cores that this process may use: the default number of threads everywhere.

    Bounded by the process's affinity and by a container's quota; at least 1.
    """
    cpus = usable_cpus()
    if sys.platform == "linux":
        # Two threads of one core share its arithmetic units: more would wait for each other.
        # psutil counts the machine's cores, not those that the affinity leaves.
        siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        count = len({read_text(siblings.format(cpu)) or str(cpu) for cpu in cpus})
    else:
        count = min(psutil.cpu_count(logical=False) or len(cpus), len(cpus))
    return max(1, min(count, _quota() or count))


def usable_cpus() -> list[int]:
    """Numbers of the logical CPUs that this process may run on."""
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        return sorted(psutil.Process().cpu_affinity() or [])
    return list(range(psutil.cpu_count() or 1))


def _quota() -> int | None:
    """Cores' worth of time that a container grants, rounded up, where it grants less than all."""
    quota, _, period = read_text("/sys/fs/cgroup/cpu.max").partition(" ")
    # Rounded up: half a core still is a thread.
    return -(-int(quota) // int(period)) if quota.isdigit() and period.isdigit() else None


def _cpu_name() -> str:
    name = _cpuinfo().get("model name") or _sysctl("machdep.cpu.brand_string")
    return name or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    fields = _cpuinfo()
    if fields:
        return set((fields.get("flags") or fields.get("Features") or "").split())
    return {flag for key, flag in MACOS_FEATURES.items() if _sysctl(key) == "1"}


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields; {} where the system has no /proc/cpuinfo."""
    first = read_text("/proc/cpuinfo").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _sysctl(key: str) -> str:
    if sys.platform != "darwin":
        return ""
    found = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def read_text(path: str) -> str:
    """A small file of the kernel's; empty where it is missing or may not be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
