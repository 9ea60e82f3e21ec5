"""Will this file run here? Asked of the card and the machine, without loading a model."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU. compute_capability: such as "8.6"; driver: version, "" if unknown;
    memory_bytes: in all, None if the driver does not tell (integrated GPUs)."""

    index: int
    name: str
    compute_capability: str
    driver: str
    memory_bytes: int | None


def gpus() -> list[Gpu]:
    """The NVIDIA GPUs whose driver answers; [] without one. Never raises."""
    try:
        import pynvml
    except ImportError:
        return _gpus_of_libcuda()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return _gpus_of_libcuda()
    try:
        return list(_gpus_of_nvml(pynvml))
    except pynvml.NVMLError:  # integrated GPUs answer only some of the questions
        return _gpus_of_libcuda()
    finally:
        pynvml.nvmlShutdown()


def _gpus_of_nvml(nvml: Any) -> Iterator[Gpu]:
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = None
        with contextlib.suppress(nvml.NVMLError):
            memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        yield Gpu(index, _text(nvml.nvmlDeviceGetName(handle)), f"{major}.{minor}", driver, memory)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _gpus_of_libcuda() -> list[Gpu]:
    """From the CUDA driver's library itself, where NVML is absent or incomplete."""
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
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    # 75 and 76 are CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
    total = None if cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device) else memory.value
    capability = f"{major.value}.{minor.value}"
    return Gpu(index, name.value.decode(errors="replace"), capability, _driver_on_disk(), total)


def _driver_on_disk() -> str:
    """The driver's version from /proc on Linux, else ""."""
    try:
        with open("/proc/driver/nvidia/version") as file:
            words = file.readline().split()
    except OSError:
        return ""
    return next((word for word in words if word[0].isdigit() and "." in word), "")


def this_platform() -> str:
    """Such as "linux-x86_64", "linux-aarch64", "windows-x86_64"."""
    machine = platform.machine().lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return f"{platform.system().lower()}-{machine}"
