"""Support: which runtimes work on which NVIDIA GPU, and what to install where one does not.

The one table that `rtseg doctor`, `export`, `check`, the documentation and the tests share. It is
taken from the vendors' documents, named in SOURCES; none of it was measured here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from ..errors import UsageError
from ..gpu import Gpu

Runtime = Literal["tensorrt_rtx", "tensorrt", "onnxruntime", "torch"]
RUNTIMES: tuple[Runtime, ...] = ("tensorrt_rtx", "tensorrt", "onnxruntime", "torch")
SOURCES: dict[Runtime, tuple[str, ...]] = {
    "tensorrt_rtx": (
        "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/cpu-engines.html",
        "https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/getting-started/support-matrix.html",
    ),
    "tensorrt": (
        "https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/getting-started/support-matrix.html",
        "https://docs.nvidia.com/deeplearning/tensorrt/10.8.0/getting-started/release-notes.html",
        "https://docs.nvidia.com/deeplearning/tensorrt/11.4.1/api/migration/tensorrt-10x-to-11x-jetson.html",
    ),
    "onnxruntime": ("https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider",),
    "torch": ("https://github.com/pytorch/test-infra/pull/7046",),
}
# By the name under which a GPU is bought; Thor's capability was 10.1 until CUDA 13 renumbered it.
GPUS: dict[str, tuple[str, ...]] = {
    "T4": ("7.5",),
    "RTX 20": ("7.5",),
    "A100": ("8.0",),
    "RTX 30": ("8.6",),
    "Orin": ("8.7",),
    "RTX 40": ("8.9",),
    "L4": ("8.9",),
    "L40S": ("8.9",),
    "H100": ("9.0",),
    "H200": ("9.0",),
    "B200": ("10.0",),
    "Thor": ("11.0", "10.1"),
    "RTX 50": ("12.0",),
}
OLDEST = "7.5"  # of TensorRT, and of CUDA 13
JETSON = ("8.7", "10.1", "11.0")
# TensorRT-RTX runs on these, and on no others of their generations; 12.1 since its 1.5.
OF_RTX = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
NAMED_ONLY = ("7.5",)  # of those: what an engine is not for unless it was asked for
# The first TensorRT that knows a GPU; 10.3 is the first that this package knows.
FIRST = {"10.0": "10.8", "10.1": "10.10", "11.0": "10.13", "12.0": "10.8", "12.1": "10.13"}
FIRST_HERE, FIRST_ON_JETSON_AGAIN = "10.3", "11.4.1"
FIRST_FP8 = "8.9"  # the compute capability

INSTALL_FULL = 'pip install "rtseg[tensorrt]"'
INSTALL_RTX = 'pip install "rtseg[tensorrt-rtx]"'
INSTALL_ORT = 'pip install "rtseg[gpu]"'
JETPACK = "use JetPack's TensorRT: python3 -m venv --system-site-packages venv"
JETSON_WHEEL = "install the {} wheel for your JetPack: https://pypi.jetson-ai-lab.io"


@dataclass(frozen=True)
class Support:
    """Whether a runtime works on a GPU. why: the obstacle, or what to know; fix: the command
    or step that brings what does work; source: the document that says so."""

    works: bool
    why: str = ""
    fix: str = ""
    source: str = ""

    @property
    def cell(self) -> str:
        """For a table."""
        return f"yes{f', {self.why}' if self.why else ''}" if self.works else f"no: {self.why}"


def find_capability(gpu: str) -> str:
    """The compute capability of a GPU by its name ("h100", "RTX 4090") or by itself ("9.0").

    Raises:
        UsageError: if no such GPU is known.
    """
    wanted = "".join(gpu.lower().replace("nvidia", "").replace("geforce", "").split())
    if wanted.replace(".", "", 1).isdigit() and "." in wanted:
        return wanted
    for name, capabilities in GPUS.items():
        short = "".join(name.lower().split())
        # "rtx4090" is of "rtx40"; "l40" alone is no L4, and names no other card's beginning.
        series = short.startswith("rtx") and wanted[: len(short)] == short and wanted[-2:].isdigit()
        if wanted == short or series:
            return capabilities[0]
    near = get_close_matches(gpu, GPUS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(GPUS)}"
    raise UsageError(f"no GPU is known as {gpu!r}: {hint}, or give its compute capability")


def find_support(
    gpu: Gpu | str, runtime: Runtime, version: str | None = None, precision: str = ""
) -> Support:
    """Whether a runtime works on a GPU.

    Args:
        gpu: one of this machine, or as `find_capability` takes it.
        runtime: one of RUNTIMES.
        version: of its package; by default its newest.
        precision: of what it is to run, where that matters.

    Raises:
        UsageError: if no such GPU is known.
    """
    capability = find_capability(gpu) if isinstance(gpu, str) else gpu.compute_capability
    say = {
        "tensorrt_rtx": _rtx, "tensorrt": _tensorrt, "onnxruntime": _onnxruntime, "torch": _torch,
    }[runtime]  # fmt: skip
    if _numbers(capability) < _numbers(OLDEST):
        why = f"compute capability {capability} is older than {OLDEST}"
        fix = "run the ONNX or OpenVINO artifact on the CPU"
        return Support(False, why, fix, SOURCES[runtime][0])
    if precision == "fp8" and not computes_fp8(capability):
        why = f"fp8 needs compute capability {FIRST_FP8} or later, and this is {capability}"
        return Support(False, why, "use --precision int8", SOURCES["tensorrt"][0])
    return say(capability, version)


def computes_fp8(capability: str) -> bool:
    """Whether GPUs of a compute capability have products of eight-bit floats."""
    return _numbers(capability) >= _numbers(FIRST_FP8)


def _rtx(capability: str, version: str | None) -> Support:
    source = SOURCES["tensorrt_rtx"][0]
    if capability not in OF_RTX:
        why = f"it has no code for compute capability {capability}"
        return Support(False, why, JETPACK if capability in JETSON else INSTALL_FULL, source)
    if capability in NAMED_ONLY:
        return Support(True, f"if built with --compute-capability {capability}", "", source)
    return Support(True, source=source)


def _tensorrt(capability: str, version: str | None) -> Support:
    first = max(FIRST.get(capability, FIRST_HERE), FIRST_HERE, key=_numbers)
    source = SOURCES["tensorrt"][1 if first != FIRST_HERE else 0]
    on_jetson = capability in JETSON
    fix = JETPACK if on_jetson else f'pip install "tensorrt>={first}"'
    if version is None:
        note = f"from {first}" if first != FIRST_HERE else ""
        if on_jetson:
            note = f"{first} to 10.x as JetPack brings it, or from {FIRST_ON_JETSON_AGAIN}"
            source = SOURCES["tensorrt"][2]
        return Support(True, note, fix if on_jetson else INSTALL_FULL, source)
    if _numbers(version) < _numbers(first):
        why = f"TensorRT {version} is older than {first}, the first for {capability}"
        return Support(False, why, fix, source)
    if on_jetson and _numbers("11.0") <= _numbers(version) < _numbers(FIRST_ON_JETSON_AGAIN):
        why = f"TensorRT {version} does not run on JetPack; 10.x and {FIRST_ON_JETSON_AGAIN} do"
        return Support(False, why, JETPACK, SOURCES["tensorrt"][2])
    return Support(True, source=source)


def _onnxruntime(capability: str, version: str | None) -> Support:
    source = SOURCES["onnxruntime"][0]
    if capability in JETSON:
        return Support(True, "a wheel for JetPack", JETSON_WHEEL.format("onnxruntime-gpu"), source)
    return Support(True, "", INSTALL_ORT, source)


def _torch(capability: str, version: str | None) -> Support:
    source = SOURCES["torch"][0]
    if capability in JETSON:
        return Support(True, "a wheel for JetPack", JETSON_WHEEL.format("torch"), source)
    newer = _numbers(capability) >= _numbers("10.0")
    note = "a build for CUDA 12.8 or later" if newer else ""
    return Support(True, note, "https://pytorch.org/get-started/locally", source)


def tensorrt_for(gpu: Gpu | str) -> str:
    """The command that brings the TensorRT for a GPU: RTX where it runs, which needs no second
    index; else the full one, on a Jetson the system's."""
    rtx = find_support(gpu, "tensorrt_rtx")
    return INSTALL_RTX if rtx.works else rtx.fix


def rows() -> Iterator[list[str]]:
    """Of the table: GPU, compute capability, and a cell for each runtime."""
    for name, capabilities in GPUS.items():
        cells = [find_support(name, runtime).cell for runtime in RUNTIMES]
        yield [name, " / ".join(capabilities), *cells]


def table() -> str:
    """The table as Markdown, with its sources."""
    lines = [f"| GPU | compute capability | {' | '.join(RUNTIMES)} |", "| --- " * 6 + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows()]
    named = ", ".join(f"[{place}]({url})" for place, url in enumerate(_sources(), 1))
    return "\n".join([*lines, "", f"Sources: {named}."])


def _sources() -> list[str]:
    return [url for urls in SOURCES.values() for url in urls]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
