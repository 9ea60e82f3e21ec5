"""The GPU's state under load: clocks, power, temperature, energy a frame, and what throttles it."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .timing import MS, Call, Now

# NVML's bits of the reasons why clocks are lower than they could be, those that spoil figures.
THROTTLES = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x20: "heat (software)",
    0x40: "heat (hardware)",
    0x80: "power brake",
}
SECONDS = 1.0  # of load; the driver renews its power reading about every 100 ms


@dataclass(frozen=True)
class GpuState:
    """Under the load of one contestant; None where the driver does not tell.

    sm_clock_mhz: median, of at most `max_sm_clock_mhz`; power_w: median; temperature_c: highest;
    energy_mj: millijoules a frame, from the driver's own counter; throttled: reasons.
    """

    name: str
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    energy_mj: float | None
    throttled: tuple[str, ...]

    def __str__(self) -> str:
        facts = [
            f"{self.sm_clock_mhz} of {self.max_sm_clock_mhz} MHz" if self.sm_clock_mhz else "",
            f"{self.power_w:.0f} W" if self.power_w is not None else "",
            f"{self.temperature_c} °C" if self.temperature_c is not None else "",
            f"{self.energy_mj:.0f} mJ a frame" if self.energy_mj is not None else "",
            f"throttled by {', '.join(self.throttled)}" if self.throttled else "",
        ]
        return f"{self.name} under load: {', '.join(fact for fact in facts if fact)}"

    def warning(self, title: str) -> str | None:
        if not self.throttled:
            return None
        return f"{title}: the GPU's clocks were held down by {', '.join(self.throttled)}"


def under_load(
    call: Call, index: int = 0, seconds: float = SECONDS, now: Now = time.perf_counter_ns
) -> GpuState | None:
    """Run `call` for `seconds` and watch GPU `index`; None without NVML or GPU."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # the package is absent, or no driver answers: errors of its own making
        return None
    try:
        return _Watch(nvml, nvml.nvmlDeviceGetHandleByIndex(index)).run(call, seconds, now)
    except nvml.NVMLError:
        return None
    finally:
        nvml.nvmlShutdown()


class _Watch:
    def __init__(self, nvml: Any, handle: Any):
        self.nvml, self.handle = nvml, handle
        self.samples: dict[str, list[int]] = {"clock": [], "power": [], "heat": [], "reasons": []}

    def run(self, call: Call, seconds: float, now: Now) -> GpuState:
        before, start, frames = self._energy(), now(), 0
        while (now() - start) * MS < 1e3 * seconds:
            call()
            frames += 1
            if frames % 8 == 1:  # a reading takes the driver tens of microseconds
                self._sample()
        after = self._energy()
        spent = None if before is None or after is None else (after - before) / max(1, frames)
        return self._state(spent)

    def _sample(self) -> None:
        nvml, handle = self.nvml, self.handle
        self._add("clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
        self._add("power", lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        self._add("heat", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        self._add("reasons", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))

    def _add(self, name: str, read: Callable[[], Any]) -> None:
        value = self._told(read)
        if value is not None:
            self.samples[name].append(value)

    def _energy(self) -> int | None:
        """Millijoules since the driver was loaded."""
        return self._told(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))

    def _told(self, read: Callable[[], Any]) -> int | None:
        try:
            return int(read())
        except self.nvml.NVMLError:  # integrated GPUs answer only some of the questions
            return None

    def _state(self, energy_mj: float | None) -> GpuState:
        nvml, samples = self.nvml, self.samples
        name = nvml.nvmlDeviceGetName(self.handle)
        most = self._told(lambda: nvml.nvmlDeviceGetMaxClockInfo(self.handle, nvml.NVML_CLOCK_SM))
        power, clock = samples["power"], samples["clock"]
        bits = 0
        for reasons in samples["reasons"]:
            bits |= reasons
        return GpuState(
            name=name.decode() if isinstance(name, bytes) else name,
            sm_clock_mhz=int(statistics.median(clock)) if clock else None,
            max_sm_clock_mhz=most,
            power_w=round(statistics.median(power) / 1e3, 1) if power else None,
            temperature_c=max(samples["heat"], default=None),
            energy_mj=None if energy_mj is None else round(energy_mj, 2),
            throttled=tuple(reason for bit, reason in THROTTLES.items() if bits & bit),
        )
