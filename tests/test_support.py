"""The table of GPUs and runtimes, and everything that has to say the same as it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from rtseg.errors import UsageError
from rtseg.gpu import Gpu
from rtseg.runtime import support
from rtseg.runtime.support import (
    GPUS,
    RUNTIMES,
    SOURCES,
    find_capability,
    find_support,
    tensorrt_for,
)

H100 = Gpu(0, "NVIDIA H100", "9.0", "580.65", 80 << 30)
T4 = replace(H100, name="Tesla T4", compute_capability="7.5")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("gpu", GPUS)
def test_every_gpu_has_an_answer_for_every_runtime(gpu: str, runtime: support.Runtime) -> None:
    """One that works, or what to install; and who says so."""
    answer = find_support(gpu, runtime)
    assert answer.works or (answer.why and answer.fix)
    assert answer.source in SOURCES[runtime]
    assert any(find_support(gpu, other).works for other in RUNTIMES)


@pytest.mark.parametrize(
    ("gpu", "capability"),
    [
        ("h100", "9.0"), ("NVIDIA H200", "9.0"), ("GeForce RTX 4090", "8.9"), ("rtx 2080", "7.5"),
        ("RTX 50", "12.0"), ("L4", "8.9"), ("l40s", "8.9"), ("thor", "11.0"), ("8.6", "8.6"),
    ],
)  # fmt: skip
def test_gpus_are_known_by_name_or_capability(gpu: str, capability: str) -> None:
    assert find_capability(gpu) == capability


def test_an_unknown_gpu_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'H100'"):
        find_capability("H10")
    with pytest.raises(UsageError, match=r"choose from T4, .*or give its compute capability"):
        find_capability("voodoo")


def test_where_rtx_does_not_run_the_full_package_is_named() -> None:
    answer = find_support(H100, "tensorrt_rtx")
    assert (answer.works, answer.fix) == (False, 'pip install "rtseg[tensorrt]"')
    assert tensorrt_for(H100) == 'pip install "rtseg[tensorrt]"'
    assert tensorrt_for("RTX 4090") == 'pip install "rtseg[tensorrt-rtx]"'
    assert "JetPack" in tensorrt_for("Orin")


@pytest.mark.parametrize(
    ("gpu", "version", "works"),
    [
        ("H100", "10.3.0", True), ("H100", "11.4.1", True), ("B200", "10.3.0", False),
        ("B200", "10.8.0", True), ("RTX 50", "10.7.0", False), ("Orin", "10.3.0.30", True),
        ("Orin", "11.3.0", False), ("Orin", "11.4.1", True), ("Thor", "10.3.0", False),
        ("Thor", "10.13.3", True), ("Thor", "11.2.1", False), ("7.0", "10.3.0", False),
    ],
)  # fmt: skip
def test_versions_of_full_tensorrt(gpu: str, version: str, works: bool) -> None:
    answer = find_support(gpu, "tensorrt", version)
    assert answer.works == works
    assert works or answer.fix


def test_rtx_runs_on_what_its_builder_offers() -> None:
    """The table against the installed package: a capability that it gains or loses fails here."""
    trt = pytest.importorskip("tensorrt_rtx")
    offered = {
        f"{name[2:-1]}.{name[-1]}"
        for name in trt.ComputeCapability.__members__
        if name.startswith("SM")
    }
    assert offered == set(support.OF_RTX)


def test_the_documents_hold_the_table() -> None:
    text = (ROOT / "docs" / "howto" / "gpu.md").read_text()
    assert support.table() in text, "put rtseg.runtime.support.table() into docs/howto/gpu.md"


def test_the_extras_are_those_that_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **facts: given.update(facts))
    source = (ROOT / "setup.py").read_text()
    exec(compile(source, str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py")})
    extras = given["extras_require"]
    assert any(need.startswith("tensorrt>=") for need in extras["tensorrt"])
    assert any(need.startswith("tensorrt-rtx") for need in extras["tensorrt-rtx"])
    assert not any("rtx" in need for need in extras["tensorrt"])
    for runtime in RUNTIMES:
        for gpu in GPUS:
            fix = find_support(gpu, runtime).fix
            if "rtseg[" in fix:
                assert fix.partition("[")[2].partition("]")[0] in extras


def test_documents_name_no_extra_that_there_is_not() -> None:
    import re

    text = (ROOT / "setup.py").read_text()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for names in re.findall(r"rtseg\[([a-z,\-]+)\]", Path(page).read_text()):
            for name in names.split(","):
                assert f'"{name}"' in text, f"{page.name} names the extra {name}"
