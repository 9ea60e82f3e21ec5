"""What a measurement ran on, whether anything else ran beside it, and the memory it took."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from rtseg.speed import machine, memory
from rtseg.speed.machine import Noise, Watch

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
    monkeypatch.setattr(machine, "_text", lambda path: text if path == "/proc/cpuinfo" else "")
    here = machine.machine()
    assert here.instruction_sets == sets
    assert here.cpu == "Fast CPU" if text == X86 else here.cpu


def linux_of(monkeypatch, cpus: int, files: dict[str, str]) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine, "_usable_cpus", lambda: list(range(cpus)))
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))


def test_two_threads_of_a_core_count_once(monkeypatch):
    name = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    linux_of(monkeypatch, 4, {name.format(cpu): f"{cpu % 2},{cpu % 2 + 2}" for cpu in range(4)})
    assert machine.usable_cores() == 2


def test_a_container_may_grant_less_than_all_cores(monkeypatch):
    linux_of(monkeypatch, 8, {"/sys/fs/cgroup/cpu.max": "150000 100000"})
    assert machine.usable_cores() == 2
    linux_of(monkeypatch, 8, {"/sys/fs/cgroup/cpu.max": "max 100000"})
    assert machine.usable_cores() == 8


def test_noise_is_what_others_did_while_we_ran(monkeypatch):
    processors = iter([(100.0, 0.0, 1000.0), (116.0, 2.0, 1020.0)])
    own = iter([50.0, 60.0])
    monkeypatch.setattr(machine, "_processor_seconds", lambda: next(processors))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    noise = Watch().noise()
    assert (noise.others, noise.stolen) == (0.3, 0.1)
    assert not noise.quiet
    assert "30%" in (noise.warning() or "")


def test_noise_is_not_claimed_where_nobody_can_tell(monkeypatch):
    monkeypatch.setattr(machine, "_processor_seconds", lambda: None)
    noise = Watch().noise()
    assert noise.others is None
    assert noise.warning() is None
    assert not noise.quiet
    assert Noise(0.01, 0.0, 0.1).quiet


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set's peak")
def test_peak_memory_is_of_what_ran_meanwhile():
    peak = memory.PeakMemory()
    block = np.ones(64 * 2**20, np.uint8)
    assert block.any()
    del block
    assert 60 < (peak.host_mib() or 0) < 90
    assert (memory.PeakMemory().host_mib() or 0) < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set's peak")
def test_memory_that_an_earlier_contestant_freed_is_counted_for_the_next():
    blocks = [bytes(60_000) for _ in range(1000)]  # too small to be mapped on their own
    last = blocks[-1]
    del blocks
    peak = memory.PeakMemory()
    blocks = [bytes(60_000) for _ in range(1000)]
    assert (peak.host_mib() or 0) > 40
    assert len(last) == len(blocks[0])
