"""The GPU's state under load, from a driver that is made up."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from rtseg.speed import gpu
from speed_parts import Clock


class Silent(Exception):
    pass


def nvml_of(clock: Clock, **silent: bool) -> ModuleType:
    """A pynvml whose GPU takes 200 W, runs at 1500 of 2000 MHz and is held down by heat."""
    nvml = ModuleType("pynvml")

    def told(name: str, value):
        def read(*arguments):
            if silent.get(name):
                raise Silent
            return value() if callable(value) else value

        return read

    facts = {
        "nvmlDeviceGetClockInfo": 1500,
        "nvmlDeviceGetMaxClockInfo": 2000,
        "nvmlDeviceGetPowerUsage": 200_000,
        "nvmlDeviceGetTemperature": 81,
        "nvmlDeviceGetCurrentClocksThrottleReasons": 0x20 | 0x1,
        "nvmlDeviceGetTotalEnergyConsumption": lambda: clock.ns * 200 / 1e6,
        "nvmlDeviceGetName": b"Some GPU",
        "nvmlDeviceGetHandleByIndex": 0,
    }
    for name, value in facts.items():
        setattr(nvml, name, told(name, value))
    nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
    nvml.NVML_CLOCK_SM = nvml.NVML_TEMPERATURE_GPU = 0
    nvml.NVMLError = Silent
    return nvml


def test_energy_and_clocks_are_told_under_load(monkeypatch):
    clock = Clock()
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(clock))
    state = gpu.under_load(lambda: clock.work(5), now=clock)
    assert state.energy_mj == pytest.approx(1000)  # 200 W for 5 ms
    assert (state.sm_clock_mhz, state.max_sm_clock_mhz) == (1500, 2000)
    assert (state.power_w, state.temperature_c, state.name) == (200, 81, "Some GPU")
    assert state.throttled == ("heat (software)",)
    assert "held down by heat" in state.warning("row")
    assert "1000 mJ a frame" in str(state)


def test_what_the_driver_does_not_tell_is_none(monkeypatch):
    clock = Clock()
    silent = nvml_of(
        clock,
        nvmlDeviceGetTotalEnergyConsumption=True,
        nvmlDeviceGetCurrentClocksThrottleReasons=True,
        nvmlDeviceGetPowerUsage=True,
    )
    monkeypatch.setitem(sys.modules, "pynvml", silent)
    state = gpu.under_load(lambda: clock.work(5), now=clock)
    assert (state.energy_mj, state.power_w, state.throttled) == (None, None, ())
    assert state.warning("row") is None
    assert state.sm_clock_mhz == 1500


def test_without_a_driver_nothing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu.under_load(lambda: None) is None
