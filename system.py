"""This machine: processors, memory, GPUs, and what a process uses of them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from importlib import metadata
from operator import or_
from pathlib import Path
from typing import Any

import psutil

from . import __version__

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
BUSY = 0.05  # of all core time: others' share above which a figure is not to be trusted
# NVML's bits of the reasons why clocks are lower than they could be, those that spoil figures.
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


CLOCK_STEPS = 0.02  # of the clock: one of NVIDIA's steps, 15 MHz, is half of it


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
    cpus = _usable_cpus()
    if sys.platform == "linux":
        # Two threads of one core share its arithmetic units: more would wait for each other.
        # psutil counts the machine's cores, not those that the affinity leaves.
        siblings = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
        count = len({_text(siblings.format(cpu)) or str(cpu) for cpu in cpus})
    else:
        count = min(psutil.cpu_count(logical=False) or len(cpus), len(cpus))
    return max(1, min(count, _quota() or count))


def _usable_cpus() -> list[int]:
    if hasattr(psutil.Process, "cpu_affinity"):  # not on macOS
        return sorted(psutil.Process().cpu_affinity() or [])
    return list(range(psutil.cpu_count() or 1))


def _quota() -> int | None:
    """Cores' worth of time that a container grants, rounded up, where it grants less than all."""
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").partition(" ")
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
    first = _text("/proc/cpuinfo").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _sysctl(key: str) -> str:
    if sys.platform != "darwin":
        return ""
    found = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


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
    for times in (every[cpu] for cpu in _usable_cpus() if cpu < len(every)):
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
        for line in _text("/proc/self/status").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU that CUDA would give to this process.

    index: CUDA's ("cuda:0" is index 0); compute_capability: such as "8.6"; driver: version, "" if
    unknown; memory_bytes: in all, None if the driver does not tell (integrated GPUs); pci: bus id,
    "" if unknown; uuid: as NVML and CUDA_VISIBLE_DEVICES write it, "" if unknown.
    """

    index: int
    name: str
    compute_capability: str
    driver: str
    memory_bytes: int | None
    pci: str = ""
    uuid: str = ""


def gpus() -> list[Gpu]:
    """List the NVIDIA GPUs whose driver answers, as CUDA counts them; [] without one.

    NVML numbers GPUs by PCI bus id and ignores CUDA_VISIBLE_DEVICES; CUDA puts the fastest first
    unless CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    with _nvml() as nvml:
        if nvml is None:
            return _gpus_of_libcuda()
        try:
            found = list(_gpus_of_nvml(nvml))
        except nvml.NVMLError:  # integrated GPUs answer only some of the questions
            return _gpus_of_libcuda()
    if len({gpu.name for gpu in found}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        # Which of them is the fastest only CUDA itself knows.
        return _gpus_of_libcuda()
    return _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _visible(found: Sequence[Gpu], wanted: str | None) -> list[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES names, in its order; like CUDA, up to the first wrong name.

    A part of a GPU ("MIG-...") cannot be told from NVML's list of whole ones: CUDA is asked.
    """
    if wanted is None:
        return list(found)
    chosen: list[Gpu] = []
    for name in map(str.strip, wanted.split(",")):
        if name.startswith("MIG-"):
            return _gpus_of_libcuda()
        fits = [
            gpu
            for gpu in found
            if name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name))
        ]
        # None, or a prefix that several begin with: CUDA shows the GPUs before it, and no more.
        if len(fits) != 1:
            break
        chosen.append(replace(fits[0], index=len(chosen)))
    return chosen


@contextlib.contextmanager
def _nvml() -> Iterator[Any]:
    """NVIDIA's management library, started; None without nvidia-ml-py or a driver."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _gpus_of_nvml(nvml: Any) -> Iterator[Gpu]:
    driver = _decode(nvml.nvmlSystemGetDriverVersion())
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = _ask(nvml, nvml.nvmlDeviceGetMemoryInfo, handle)
        pci = _ask(nvml, nvml.nvmlDeviceGetPciInfo, handle)
        yield Gpu(
            index=index,
            name=_decode(nvml.nvmlDeviceGetName(handle)),
            compute_capability=f"{major}.{minor}",
            driver=driver,
            memory_bytes=int(memory.total) if memory else None,
            pci=_decode(pci.busId) if pci else "",
            uuid=_decode(_ask(nvml, nvml.nvmlDeviceGetUUID, handle) or ""),
        )


def _ask(nvml: Any, read: Callable[..., object], *arguments: object) -> Any:
    """What the driver answers; None where it does not, as integrated GPUs do for some questions."""
    try:
        return read(*arguments)
    except nvml.NVMLError:
        return None


def _handle(nvml: Any, gpu: Gpu) -> object:
    """By bus id, for NVML's own numbers are not CUDA's; integrated GPUs have none."""
    if gpu.pci:
        return nvml.nvmlDeviceGetHandleByPciBusId(gpu.pci.encode())
    return nvml.nvmlDeviceGetHandleByIndex(gpu.index)


def _decode(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _gpus_of_libcuda() -> list[Gpu]:
    """From the CUDA driver's library itself, where NVML is absent, incomplete or ambiguous."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
            return []
        return [_gpu_of_libcuda(cuda, index) for index in range(count.value)]
    except (OSError, AttributeError):
        return []


def _gpu_of_libcuda(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, pci = ctypes.create_string_buffer(256), ctypes.create_string_buffer(32)
    memory = ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetPCIBusId(pci, len(pci), device)
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    total = None if cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device) else memory.value
    capability = f"{major.value}.{minor.value}"
    title = name.value.decode(errors="replace")
    return Gpu(index, title, capability, _driver_on_disk(), total, pci.value.decode())


def _driver_on_disk() -> str:
    """The driver's version from /proc on Linux, else ""."""
    words = _text("/proc/driver/nvidia/version").partition("\n")[0].split()
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def gpu_memory_used() -> int | None:
    """Bytes in use on all of `gpus()`, by any process; None without one or without NVML."""
    here = gpus()
    with _nvml() as nvml:
        if nvml is None or not here:
            return None
        try:
            handles = [_handle(nvml, gpu) for gpu in here]
            return sum(int(nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in handles)
        except nvml.NVMLError:  # an integrated GPU does not tell
            return None


@dataclass(frozen=True)
class GpuState:
    """Under the load of one contestant; None where the driver does not tell.

    sm_clock_mhz: median, of at most `max_sm_clock_mhz`; power_w: median; temperature_c: highest;
    energy_mj: millijoules a frame, from the driver's own counter; throttled: reasons;
    sm_clock_range_mhz: lowest and highest; pci: its bus id, "" if unknown.
    """

    name: str
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    energy_mj: float | None
    throttled: tuple[str, ...]
    sm_clock_range_mhz: tuple[int, int] | None = None
    pci: str = ""

    def __str__(self) -> str:
        facts = [
            f"{self.sm_clock_mhz} of {self.max_sm_clock_mhz} MHz" if self.sm_clock_mhz else "",
            f"{self.power_w:.0f} W" if self.power_w is not None else "",
            f"{self.temperature_c} °C" if self.temperature_c is not None else "",
            f"{self.energy_mj:.0f} mJ a frame" if self.energy_mj is not None else "",
            f"throttled by {', '.join(self.throttled)}" if self.throttled else "",
        ]
        return f"{self.name} under load: {', '.join(fact for fact in facts if fact)}"

    @property
    def clocks_moved(self) -> bool:
        """Whether the clock moved under the load by more than a few of its steps."""
        if self.sm_clock_range_mhz is None:
            return False
        low, high = self.sm_clock_range_mhz
        return high - low > CLOCK_STEPS * high

    def warning(self, title: str) -> str | None:
        """One line on clocks that spoil figures, with what steadies them."""
        parts = []
        if self.throttled:
            parts.append(f"the GPU's clocks were held down by {', '.join(self.throttled)}")
        if self.clocks_moved and self.sm_clock_range_mhz:
            low, high = self.sm_clock_range_mhz
            which = f" -i {self.pci}" if self.pci else ""
            # The lowest that was seen is one that it holds.
            parts.append(
                f"the GPU's clock moved between {low} and {high} MHz: lock it with "
                f"`sudo nvidia-smi{which} --lock-gpu-clocks={low}`, and afterwards "
                "--reset-gpu-clocks"
            )
        return f"{title}: {'; '.join(parts)}" if parts else None


def watch_gpu(
    call: Callable[[], object],
    index: int = 0,
    seconds: float = 1.0,
    now: Callable[[], int] = time.perf_counter_ns,
) -> GpuState | None:
    """Run `call` for `seconds` and watch its GPU meanwhile.

    Args:
        call: one frame's work, finished when it returns.
        index: CUDA's number of the GPU.
        seconds: of load; the driver renews its power reading about every 100 ms.
        now: a clock in nanoseconds.

    Returns:
        The state, or None without NVML or GPU.
    """
    gpu = next((gpu for gpu in gpus() if gpu.index == index), None)
    with _nvml() as nvml:
        if nvml is None or gpu is None:
            return None
        try:
            handle = _handle(nvml, gpu)
        except nvml.NVMLError:
            return None
        readings = {
            "clock": (nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "power": (nvml.nvmlDeviceGetPowerUsage,),
            "heat": (nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "reasons": (nvml.nvmlDeviceGetCurrentClocksThrottleReasons,),
        }
        told: dict[str, list[int]] = {name: [] for name in readings}
        before, start, frames = _energy_mj(nvml, handle), now(), 0
        while now() - start < 1e9 * seconds:
            call()
            frames += 1
            if frames % 8 == 1:  # a reading takes the driver tens of microseconds
                for name, (read, *arguments) in readings.items():
                    value = _ask(nvml, read, handle, *arguments)
                    told[name] += [] if value is None else [int(value)]
        after = _energy_mj(nvml, handle)
        most = _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM)
    spent = None if before is None or after is None else (after - before) / max(1, frames)
    bits = reduce(or_, told["reasons"], 0)
    return GpuState(
        name=gpu.name,
        sm_clock_mhz=int(statistics.median(told["clock"])) if told["clock"] else None,
        max_sm_clock_mhz=most,
        power_w=round(statistics.median(told["power"]) / 1e3, 1) if told["power"] else None,
        temperature_c=max(told["heat"], default=None),
        energy_mj=None if spent is None else round(spent, 2),
        throttled=tuple(reason for bit, reason in THROTTLES.items() if bits & bit),
        sm_clock_range_mhz=(min(told["clock"]), max(told["clock"])) if told["clock"] else None,
        pci=gpu.pci,
    )


def _energy_mj(nvml: Any, handle: object) -> int | None:
    """Millijoules since the driver was loaded."""
    spent: int | None = _ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return spent
