"""Findings on this machine: its processors, and each backend or what is missing for it."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import zip_longest
from typing import TYPE_CHECKING

from ..gpu import Gpu, GpuClocks, gpus, read_clocks
from ..install import localize
from ..reporting import Table
from ..runtime.backends.backend import BACKENDS, is_installed
from ..runtime.packages import INSTALL_CUDA, pip_line
from ..system import SystemInfo, read_system

if TYPE_CHECKING:
    from rich.console import RenderableType

EXPORT = ("torch", "onnx", "onnxscript", "onnxslim", "safetensors")


@dataclass(frozen=True)
class Finding:
    """A backend, or the job of exporting. ready: whether it works here; versions: by package;
    devices: that it runs on here; loads: file endings; note: what holds it back; fix: the command
    that brings what is missing, "" where none does."""

    name: str
    ready: bool
    versions: dict[str, str]
    devices: tuple[str, ...]
    loads: tuple[str, ...]
    note: str = ""
    fix: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """`backends`: one a backend, then `export`; `clocks`: of each of `gpus`, as they are now."""

    machine: SystemInfo
    gpus: Sequence[Gpu]
    backends: Sequence[Finding]
    clocks: Sequence[GpuClocks | None] = ()

    def to_json(self) -> str:
        value = {
            "machine": asdict(self.machine),
            "gpus": [
                asdict(gpu) | {"clocks": asdict(clocks) if clocks else None}
                for gpu, clocks in zip_longest(self.gpus, self.clocks)
            ],
            "backends": [asdict(f) | {"fix": localize(f.fix)} for f in self.backends],
        }
        return json.dumps(value, indent=2)

    def table(self) -> RenderableType:
        """The machine and what runs on it, for a terminal."""
        from rich.console import Group

        header = ["", "ready", "version", "runs on", "note"]
        cells = [_cells(finding) for finding in self.backends]
        words = ("version", "runs on", "note")
        backends = Table(header, cells, "What runs here", words=words)
        return Group(_machine_table(self.machine, self.gpus, self.clocks), backends)


def _cells(finding: Finding) -> list[str]:
    single = list(finding.versions) == [finding.name]
    versions = (v if single else f"{name} {v}" for name, v in finding.versions.items())
    notes = "\n".join(line for line in (finding.note, localize(finding.fix)) if line)
    ready = "yes" if finding.ready else "no"
    return [finding.name, ready, "\n".join(versions), ", ".join(finding.devices), notes]


def _machine_table(
    here: SystemInfo, found: Sequence[Gpu], clocks: Sequence[GpuClocks | None]
) -> Table:
    cards = []
    for gpu, now in zip_longest(found, clocks):
        cards.append((f"GPU {gpu.index}", _gpu_line(gpu)))
        if now is not None and str(now):
            cards.append(("its clock", str(now)))
    rows = [
        ("CPU", f"{here.cpu}, {here.cores} cores for this process"),
        ("instruction sets", " ".join(here.instruction_sets) or "unknown"),
        ("memory", f"{here.memory_gib:g} GiB" if here.memory_gib else "unknown"),
        *(cards or [("GPU", "no NVIDIA GPU answers: engines can be built, not run")]),
        ("system", f"{here.system}, Python {here.python}"),
    ]
    return Table(["", ""], rows, "Machine", words=[""])


def _gpu_line(gpu: Gpu) -> str:
    memory = f", {gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else ""
    driver = f", driver {gpu.driver}" if gpu.driver else ""
    return f"{gpu.name}, compute capability {gpu.compute_capability}{memory}{driver}"


def examine() -> DoctorReport:
    """Look at the machine and import each backend; a broken one is a finding, not an error."""
    found = gpus()
    backends = [_backend(name, found) for name in BACKENDS]
    clocks = [read_clocks(gpu) for gpu in found]
    return DoctorReport(read_system(), found, [*backends, _export()], clocks)


def _backend(name: str, found: Sequence[Gpu]) -> Finding:
    entry = BACKENDS[name]
    fix, loads = pip_line(entry.extra), entry.suffixes
    if name == "onnxruntime" and (both := _both_runtimes()):
        note = "both packages are installed, and each has written over the other's files"
        # Both out and one in: to uninstall only one takes files of the other along.
        fix = INSTALL_CUDA if found else INSTALL_CUDA.replace("[gpu]", "[cpu]")
        return Finding(name, False, both, (), loads, note, fix)
    if not is_installed(name):
        note = f"{' or '.join(entry.packages)} is not installed"
        return Finding(name, False, {}, (), loads, note, fix)
    try:
        here = entry.load().diagnose(found)
    except Exception as error:  # a broken install can raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        note = f"installed, but does not load: {reason[0][:200]}"
        return Finding(name, False, {}, (), loads, note, fix.replace("install", REPAIR))
    return Finding(
        name, bool(here.devices), here.versions, here.devices, loads, here.note, here.fix
    )


def _both_runtimes() -> dict[str, str]:
    """The versions of ONNX Runtime's two packages, where both are installed."""
    versions: dict[str, str] = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions if len(versions) == 2 else {}


REPAIR = "install --force-reinstall"


def _export() -> Finding:
    """Whether networks can be exported here, and engines built."""
    versions: dict[str, str] = {}
    for name in EXPORT:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    missing = [name for name in EXPORT if name not in versions]
    # By import and not by its record: the GPU build has another name there.
    missing += [] if is_installed("onnxruntime") else ["onnxruntime"]
    note = f"missing: {', '.join(missing)}" if missing else ""
    fix = pip_line("export") if missing else ""
    if not missing and not is_installed("tensorrt"):
        note, fix = "to build TensorRT engines too (no GPU needed)", pip_line("tensorrt-rtx")
    where = (platform.machine(),) if not missing else ()
    return Finding("export", not missing, versions, where, (), note, fix)
