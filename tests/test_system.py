"""The machine, what else ran on it, the memory a process took, and GPUs from made-up drivers."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rtseg import gpu, system, usage
from rtseg.gpu import Gpu, gpus
from rtseg.usage import Noise, NoiseWatch
from speed_parts import Clock

X86 = """processor : 0
model name\t: Fast CPU
flags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16

processor : 1
flags : none"""
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm bf16"


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        (X86, ("avx2", "avx512", "vnni", "amx_bf16")),
        (ARM, ("bf16", "neon", "dotprod", "i8mm")),
        ("", ()),
    ],
)
def test_instruction_sets_are_read_from_the_kernel(monkeypatch, text, sets):
    monkeypatch.setattr(system, "read_text", lambda path: text if path == "/proc/cpuinfo" else "")
    here = system.read_system()
    assert here.instruction_sets == sets
    assert here.cpu == "Fast CPU" if text == X86 else here.cpu


def linux_of(monkeypatch, cpus: int, files: dict[str, str]) -> None:
    monkeypatch.setattr(system.sys, "platform", "linux")
    monkeypatch.setattr(system, "usable_cpus", lambda: list(range(cpus)))
    monkeypatch.setattr(system, "read_text", lambda path: files.get(path, ""))


def test_two_threads_of_a_core_count_once(monkeypatch):
    name = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    linux_of(monkeypatch, 4, {name.format(cpu): f"{cpu % 2},{cpu % 2 + 2}" for cpu in range(4)})
    assert system.usable_cores() == 2


def test_a_container_may_grant_less_than_all_cores(monkeypatch):
    linux_of(monkeypatch, 8, {"/sys/fs/cgroup/cpu.max": "150000 100000"})
    assert system.usable_cores() == 2
    linux_of(monkeypatch, 8, {"/sys/fs/cgroup/cpu.max": "max 100000"})
    assert system.usable_cores() == 8


def test_noise_is_what_others_did_while_we_ran(monkeypatch):
    processors = iter([(100.0, 0.0, 1000.0), (116.0, 2.0, 1020.0)])
    own = iter([50.0, 60.0])
    monkeypatch.setattr(usage, "_processor_seconds", lambda: next(processors))
    monkeypatch.setattr(usage, "_own_seconds", lambda: next(own))
    noise = NoiseWatch().noise()
    assert (noise.others, noise.stolen) == (0.3, 0.1)
    assert not noise.quiet
    assert "30%" in (noise.warning() or "")


def test_noise_is_not_claimed_where_nobody_can_tell():
    noise = Noise(None, None, 0.1)
    assert noise.warning() is None
    assert not noise.quiet
    assert Noise(0.01, 0.0, 0.1).quiet


def test_the_vehicle_runs_on_as_many_threads_as_the_bench_times():
    for name in ("onnxruntime", "openvino", "pytorch"):
        module = pytest.importorskip(f"rtseg.runtime.backends.{name}")
        assert module.usable_cores is system.usable_cores


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set's peak")
def test_peak_memory_is_of_what_ran_meanwhile():
    peak = usage.PeakMemory()
    block = np.ones(64 * 2**20, np.uint8)
    assert block.any()
    del block
    assert 60 < (peak.host_mib() or 0) < 90
    assert (usage.PeakMemory().host_mib() or 0) < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set's peak")
def test_memory_that_an_earlier_contestant_freed_is_counted_for_the_next():
    blocks = [bytes(60_000) for _ in range(1000)]  # too small to be mapped on their own
    last = blocks[-1]
    del blocks
    peak = usage.PeakMemory()
    blocks = [bytes(60_000) for _ in range(1000)]
    assert (peak.host_mib() or 0) > 40
    assert len(last) == len(blocks[0])


class NvmlError(Exception):
    pass


def nvml_of(*found: Gpu, clock: Clock | None = None, **told_else: Any) -> ModuleType:
    """A pynvml whose GPUs, by PCI bus id, take 200 W, run at 1500 of 2000 MHz and are hot.

    told_else: by the function's name, what it tells instead; True: nothing.
    """
    nvml = ModuleType("pynvml")

    def told(name: str, value):
        def read(*arguments):
            if told_else.get(name) is True:
                raise NvmlError
            found = told_else.get(name, value)
            return found(*arguments) if callable(found) else found

        return read

    def by_bus(pci: bytes) -> Gpu:
        return next(gpu for gpu in found if gpu.pci.encode() == pci)

    facts = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlSystemGetDriverVersion": b"580.65.06",
        "nvmlDeviceGetCount": len(found),
        "nvmlDeviceGetHandleByIndex": lambda index: found[index],
        "nvmlDeviceGetHandleByPciBusId": by_bus,
        "nvmlDeviceGetCudaComputeCapability": (8, 9),
        "nvmlDeviceGetName": lambda gpu: gpu.name.encode(),
        "nvmlDeviceGetUUID": lambda gpu: gpu.uuid,
        "nvmlDeviceGetPciInfo": lambda gpu: SimpleNamespace(busId=gpu.pci),
        "nvmlDeviceGetMemoryInfo": lambda gpu: SimpleNamespace(total=gpu.memory_bytes, used=7),
        "nvmlDeviceGetClockInfo": 1500,
        "nvmlDeviceGetMaxClockInfo": 2000,
        "nvmlDeviceGetPowerUsage": 200_000,
        "nvmlDeviceGetTemperature": 81,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20 | 0x1,
        "nvmlDeviceGetTotalEnergyConsumption": lambda gpu: clock.ns * 200 / 1e6,
    }
    for name, value in (dict.fromkeys(told_else) | facts).items():
        setattr(nvml, name, told(name, value))
    nvml.NVML_CLOCK_SM = nvml.NVML_TEMPERATURE_GPU = 0
    nvml.NVMLError = NvmlError
    return nvml


def gpu_of(index: int, name: str = "NVIDIA RTX 4090") -> Gpu:
    pci = f"00000000:0{index + 1}:00.0"
    return Gpu(index, name, "8.9", "580.65.06", 24 << 30, pci, f"GPU-{index}a-1")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


def use(monkeypatch, nvml) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_gpus_are_read_from_the_driver(monkeypatch):
    use(monkeypatch, nvml_of(gpu_of(0)))
    assert gpus() == [gpu_of(0)]
    # integrated GPUs share the machine's memory and sit on no bus
    silent = dict.fromkeys(("nvmlDeviceGetMemoryInfo", "nvmlDeviceGetPciInfo"), True)
    use(monkeypatch, nvml_of(gpu_of(0), **silent))
    assert gpus() == [replace(gpu_of(0), memory_bytes=None, pci="")]


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("2,0", [2, 0]), ("GPU-1a", [1]), ("1,-1,0", [1]), ("", []), ("GPU-", []), ("0, 1", [0, 1])],
)
def test_gpus_are_counted_as_cuda_counts_them(monkeypatch, wanted, chosen):
    use(monkeypatch, nvml_of(*map(gpu_of, range(3))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert gpus() == [replace(gpu_of(number), index=i) for i, number in enumerate(chosen)]


def test_unlike_gpus_and_parts_of_them_are_counted_by_cuda_itself(monkeypatch):
    slow, fast = gpu_of(0, "slow"), gpu_of(1, "fast")
    as_cuda = [replace(fast, index=0), replace(slow, index=1)]
    monkeypatch.setattr(gpu, "_gpus_of_libcuda", lambda: as_cuda)
    use(monkeypatch, nvml_of(slow, fast))
    assert gpus() == as_cuda
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert gpus() == [slow, fast]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-7")
    assert gpus() == as_cuda


def test_the_gpu_that_is_watched_is_cudas(monkeypatch):
    clock = Clock()
    use(monkeypatch, nvml_of(gpu_of(0), gpu_of(1), clock=clock))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    watched = []
    monkeypatch.setattr(gpu, "_handle", lambda nvml, one: watched.append(one) or one)
    assert gpu.watch_gpu(lambda: clock.work(500), 0, now=clock) is not None
    assert [gpu.pci for gpu in watched] == ["00000000:02:00.0"]
    assert gpu.watch_gpu(lambda: clock.work(500), 2, now=clock) is None
    assert gpu.gpu_memory_used() == 14


def test_without_a_driver_there_are_no_gpus(monkeypatch):
    monkeypatch.setattr(gpu, "_gpus_of_libcuda", list)
    for absent in (None, nvml_of(nvmlInit=True)):  # the package, the driver
        use(monkeypatch, absent)
        assert gpus() == []
        assert gpu.watch_gpu(lambda: None) is None
        assert gpu.gpu_memory_used() is None


def test_libcuda_that_is_absent_means_no_gpus(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(gpu.ctypes, "CDLL", absent)
    assert gpu._gpus_of_libcuda() == []


def test_energy_and_clocks_are_told_under_load(monkeypatch):
    clock = Clock()
    use(monkeypatch, nvml_of(gpu_of(0, "Some GPU"), clock=clock))
    state = gpu.watch_gpu(lambda: clock.work(5), now=clock)
    assert state.energy_mj == pytest.approx(1000)  # 200 W for 5 ms
    assert (state.sm_clock_mhz, state.max_sm_clock_mhz) == (1500, 2000)
    assert (state.power_w, state.temperature_c, state.name) == (200, 81, "Some GPU")
    assert state.throttled == ("heat (software)",)
    assert "held down by heat" in state.warning("row")
    assert "1000 mJ a frame" in str(state)


def test_clocks_that_move_are_told_with_the_command_that_locks_them(monkeypatch):
    clock, told = Clock(), iter([1500, 1980, 1740] * 100)
    here = gpu_of(0)
    steady = {"nvmlDeviceGetCurrentClocksThrottleReasons": 0}
    moving = nvml_of(here, clock=clock, nvmlDeviceGetClockInfo=lambda *_: next(told), **steady)
    use(monkeypatch, moving)
    state = gpu.watch_gpu(lambda: clock.work(5), now=clock)
    assert state.sm_clock_range_mhz == (1500, 1980)
    warning = state.warning("row")
    assert "moved between 1500 and 1980 MHz" in warning
    assert f"sudo nvidia-smi -i {here.pci} --lock-gpu-clocks=1500" in warning
    use(monkeypatch, nvml_of(here, clock=clock, nvmlDeviceGetClockInfo=lambda *_: 1500, **steady))
    assert gpu.watch_gpu(lambda: clock.work(5), now=clock).warning("row") is None


def test_clocks_now_are_told_with_what_holds_them_down(monkeypatch):
    use(monkeypatch, nvml_of(gpu_of(0)))
    clocks = gpu.read_clocks(gpu_of(0))
    assert str(clocks) == "1500 of 2000 MHz, held down by heat (software)"
    # As drivers from 535 on name it, and pynvml offers it whatever the driver has.
    reasons = "nvmlDeviceGetCurrentClocksEventReasons"
    newer = nvml_of(gpu_of(0), **{reasons: 0x84})
    use(monkeypatch, newer)
    assert gpu.read_clocks(gpu_of(0)).throttled == ("power cap", "power brake")
    use(monkeypatch, nvml_of(gpu_of(0), **{reasons: True}))
    assert gpu.read_clocks(gpu_of(0)).throttled == ("heat (software)",)
    use(monkeypatch, nvml_of(gpu_of(0), nvmlDeviceGetCurrentClocksThrottleReasons=True))
    assert str(gpu.read_clocks(gpu_of(0))) == "1500 of 2000 MHz"
    use(monkeypatch, nvml_of(nvmlInit=True))
    assert gpu.read_clocks(gpu_of(0)) is None


@pytest.mark.parametrize(
    ("at_rest", "warm", "bits", "locked"),
    [
        (210, 1980, 0x0, False),
        (1980, 1980, 0x0, True),
        (1980, 1965, 0x0, True),  # a step of the clock
        (345, 1200, 0x2, True),  # the driver says that a clock which somebody set holds it
        (345, 1200, 0x4, False),
        (None, 1980, 0x0, True),  # not told
        (210, None, 0x0, True),
    ],
)
def test_a_clock_that_rises_with_the_first_work_is_not_locked(
    monkeypatch, at_rest, warm, bits, locked
):
    told, here = iter([at_rest, warm]), gpu_of(1)

    def clock(*_):
        if (value := next(told)) is None:
            raise NvmlError
        return value

    facts = {"nvmlDeviceGetCurrentClocksThrottleReasons": bits, "nvmlDeviceGetClockInfo": clock}
    use(monkeypatch, nvml_of(gpu_of(0), here, **facts))
    rest = gpu.ClockAtRest.read(1)
    line = rest.find_lock_missing() if rest else None
    if locked:
        assert line is None
    else:
        assert f"its clock was {at_rest} MHz at rest and is {warm} MHz after the warm-up" in line
        assert f"`sudo nvidia-smi -i {here.pci} --lock-gpu-clocks={warm}`" in line


def test_without_a_driver_no_clock_is_doubted(monkeypatch):
    monkeypatch.setattr(gpu, "_gpus_of_libcuda", list)
    use(monkeypatch, None)
    assert gpu.ClockAtRest.read() is None
    rest = gpu.ClockAtRest(gpu_of(0), 210)
    assert rest.find_lock_missing() is None


def test_what_the_driver_does_not_tell_is_none(monkeypatch):
    clock = Clock()
    silent = nvml_of(
        gpu_of(0),
        nvmlDeviceGetTotalEnergyConsumption=True,
        nvmlDeviceGetCurrentClocksThrottleReasons=True,
        nvmlDeviceGetPowerUsage=True,
    )
    use(monkeypatch, silent)
    state = gpu.watch_gpu(lambda: clock.work(5), now=clock)
    assert (state.energy_mj, state.power_w, state.throttled) == (None, None, ())
    assert state.warning("row") is None
    assert state.sm_clock_mhz == 1500
