"""What this machine can do: its processors, and each backend or what is missing for it."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..runtime.backends.backend import BACKENDS, installed
from ..runtime.packages import (
    INSTALL,
    INSTALL_CUDA,
    pip_line,
)
from ..system import Gpu, SystemInfo, gpus, read_system

EXPORT = ("torch", "onnx", "onnxscript", "onnxslim", "safetensors")
BUILDS = "builds engines here; running them needs an NVIDIA GPU"


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
class Findings:
    """`backends`: one a backend, then `export`."""

    machine: SystemInfo
    gpus: Sequence[Gpu]
    backends: Sequence[Finding]

    def to_json(self) -> str:
        value = {
            "machine": asdict(self.machine),
            "gpus": [asdict(gpu) for gpu in self.gpus],
            "backends": [asdict(finding) for finding in self.backends],
        }
        return json.dumps(value, indent=2)

    def table(self) -> RenderableType:
        rows = Table(title_justify="left", title="What runs here")
        for name in ("", "ready", "version", "runs on", "note"):
            rows.add_column(name, overflow="fold")
        for finding in self.backends:
            rows.add_row(*map(Text, _cells(finding)))
        return Group(_machine_table(self.machine, self.gpus), rows)


def _cells(finding: Finding) -> list[str]:
    single = list(finding.versions) == [finding.name]
    versions = (v if single else f"{name} {v}" for name, v in finding.versions.items())
    notes = "\n".join(line for line in (finding.note, finding.fix) if line)
    ready = "yes" if finding.ready else "no"
    return [finding.name, ready, "\n".join(versions), ", ".join(finding.devices), notes]


def _machine_table(here: SystemInfo, found: Sequence[Gpu]) -> Table:
    table = Table(show_header=False, title="Machine", title_justify="left")
    memory = f"{here.memory_gib:g} GiB" if here.memory_gib else "unknown"
    table.add_row("CPU", Text(f"{here.cpu}, {here.cores} cores for this process"))
    table.add_row("instruction sets", Text(" ".join(here.instruction_sets) or "unknown"))
    table.add_row("memory", memory)
    for gpu in found:
        table.add_row(f"GPU {gpu.index}", Text(_gpu_line(gpu)))
    if not found:
        table.add_row("GPU", "no NVIDIA GPU answers: engines can be built, not run")
    table.add_row("system", Text(f"{here.system}, Python {here.python}"))
    return table


def _gpu_line(gpu: Gpu) -> str:
    memory = f", {gpu.memory_bytes / 2**30:.0f} GiB" if gpu.memory_bytes else ""
    driver = f", driver {gpu.driver}" if gpu.driver else ""
    return f"{gpu.name}, compute capability {gpu.compute_capability}{memory}{driver}"


def examine() -> Findings:
    """Look at the machine and import each backend; a broken one is a finding, not an error."""
    found = gpus()
    backends = [_backend(name, found) for name in BACKENDS]
    return Findings(read_system(), found, [*backends, _export()])


def _backend(name: str, found: Sequence[Gpu]) -> Finding:
    entry = BACKENDS[name]
    fix, loads = pip_line(entry.extra), entry.suffixes
    if name == "onnxruntime" and (both := _both_runtimes()):
        note = "both packages are installed, and each has written over the other's files"
        fix = INSTALL_CUDA if found else INSTALL_CUDA.replace("[gpu]", "[cpu]")
        return Finding(name, False, both, (), loads, note, fix)
    if not installed(name):
        note = f"{' or '.join(entry.packages)} is not installed"
        return Finding(name, False, {}, (), loads, note, fix)
    try:
        here = entry.diagnose(found)
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
    missing += [] if installed("onnxruntime") else ["onnxruntime"]
    note = f"missing: {', '.join(missing)}" if missing else ""
    fix = pip_line("export") if missing else ""
    if not missing and not installed("tensorrt"):
        note, fix = "to build TensorRT engines too (no GPU needed)", INSTALL
    where = (platform.machine(),) if not missing else ()
    return Finding("export", not missing, versions, where, (), note, fix)
