"""GPUs of this machine, as NVML or the driver tells them, and their clocks under load."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

# NVML's bits of the reasons why clocks are lower than they could be, those that spoil figures.
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
A_CLOCK_THAT_WAS_SET = 0x2  # NVML's bit for a limit that somebody chose
CLOCK_STEPS = 0.02  # of the clock: one of NVIDIA's steps, 15 MHz, is half of it


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
    try:
        first = Path("/proc/driver/nvidia/version").read_text().partition("\n")[0]
    except OSError:
        return ""
    return next((word for word in first.split() if word[0].isdigit() and "." in word), "")


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


def gpu_energy_j() -> float | None:
    """Joules that all of `gpus()` took since their driver was loaded; None where none tells."""
    here = gpus()
    with _nvml() as nvml:
        if nvml is None or not here:
            return None
        try:
            spent = [_energy_mj(nvml, _handle(nvml, gpu)) for gpu in here]
        except nvml.NVMLError:
            return None
        told = [each for each in spent if each is not None]
        return sum(told) / 1e3 if told else None


@dataclass(frozen=True)
class GpuClocks:
    """Of a GPU as it is now, most of the time idle; None where the driver does not tell.

    sm_clock_mhz: of at most `max_sm_clock_mhz`; throttled: reasons why it is held down;
    set_by_user: whether a clock that somebody set holds it.
    """

    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    throttled: tuple[str, ...]
    set_by_user: bool = False

    def __str__(self) -> str:
        facts = [
            f"{self.sm_clock_mhz} of {self.max_sm_clock_mhz} MHz" if self.sm_clock_mhz else "",
            f"held down by {', '.join(self.throttled)}" if self.throttled else "",
        ]
        return ", ".join(fact for fact in facts if fact)


def read_clocks(gpu: Gpu) -> GpuClocks | None:
    """A GPU's clocks now; None without NVML."""
    with _nvml() as nvml:
        handle = _ask(nvml, _handle, nvml, gpu) if nvml is not None else None
        if handle is None:
            return None
        bits = _read_reasons(nvml, handle) or 0
        return GpuClocks(
            _ask(nvml, nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            _ask(nvml, nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            _name_reasons(bits),
            bool(bits & A_CLOCK_THAT_WAS_SET),
        )


@dataclass
class ClockAtRest:
    """A GPU's clock before this process gave it anything to do.

    No driver tells whether a clock is locked. One that is stays where it is; one that is not falls
    while the GPU rests, and rises with its first work.
    """

    gpu: Gpu
    sm_clock_mhz: int

    @classmethod
    def read(cls, index: int = 0) -> ClockAtRest | None:
        """Of the GPU with CUDA's number `index`; None where no driver tells."""
        gpu = next((gpu for gpu in gpus() if gpu.index == index), None)
        clocks = read_clocks(gpu) if gpu is not None else None
        if gpu is None or clocks is None or clocks.sm_clock_mhz is None:
            return None
        return cls(gpu, clocks.sm_clock_mhz)

    def find_lock_missing(self) -> str | None:
        """Right behind the first work: one line where the clock is not locked, with the command
        that locks it."""
        clocks = read_clocks(self.gpu)
        warm = clocks.sm_clock_mhz if clocks is not None else None
        if clocks is None or warm is None or clocks.set_by_user:
            return None
        if not _differ(self.sm_clock_mhz, warm):
            return None
        return (
            f"{self.gpu.name}: its clock was {self.sm_clock_mhz} MHz at rest and is {warm} MHz "
            f"after the warm-up, so it is not locked, and times move with it: "
            f"{_advise_lock(self.gpu.pci, warm)}"
        )


def _differ(one: int, other: int) -> bool:
    """Whether two clocks are more than a few of their steps apart."""
    return abs(one - other) > CLOCK_STEPS * max(one, other)


def _advise_lock(pci: str, mhz: int) -> str:
    which = f" -i {pci}" if pci else ""
    return (
        f"lock it with `sudo nvidia-smi{which} --lock-gpu-clocks={mhz}`, and afterwards "
        "--reset-gpu-clocks"
    )


def _read_reasons(nvml: Any, handle: object) -> int | None:
    """NVML's bits of why clocks are lower than they could be."""
    # Drivers of branch 535 and later have the new name; the old one is gone from NVIDIA's
    # documentation, but all drivers before have no other.
    for name in ("EventReasons", "ThrottleReasons"):
        read = getattr(nvml, f"nvmlDeviceGetCurrentClocks{name}", None)
        bits = _ask(nvml, read, handle) if read else None
        if bits is not None:
            return int(bits)
    return None


def _name_reasons(bits: int) -> tuple[str, ...]:
    return tuple(reason for bit, reason in THROTTLES.items() if bits & bit)


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
        return _differ(*self.sm_clock_range_mhz)

    def warning(self, title: str) -> str | None:
        """One line on clocks that spoil figures, with what steadies them."""
        parts = []
        if self.throttled:
            parts.append(f"the GPU's clocks were held down by {', '.join(self.throttled)}")
        if self.clocks_moved and self.sm_clock_range_mhz:
            low, high = self.sm_clock_range_mhz
            # The lowest that was seen is one that it holds.
            advice = _advise_lock(self.pci, low)
            parts.append(f"the GPU's clock moved between {low} and {high} MHz: {advice}")
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
            "reasons": (partial(_read_reasons, nvml),),
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
        throttled=_name_reasons(bits),
        sm_clock_range_mhz=(min(told["clock"]), max(told["clock"])) if told["clock"] else None,
        pci=gpu.pci,
    )


def _energy_mj(nvml: Any, handle: object) -> int | None:
    """Millijoules since the driver was loaded."""
    spent: int | None = _ask(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
    return spent
