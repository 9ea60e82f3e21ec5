"""What `rtseg doctor` finds, on this machine and on ones it is told of."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from rtseg.gpu import Gpu, GpuClocks
from rtseg.runtime.backends.backend import BACKENDS
from rtseg.speed import doctor

GPU = Gpu(0, "NVIDIA Test", "8.6", "580.65", 8 * 2**30)


def finding_of(name: str) -> doctor.Finding:
    return next(f for f in doctor.examine().backends if f.name == name)


def test_every_backend_is_examined_and_ready_or_has_a_note():
    findings = doctor.examine()
    assert [f.name for f in findings.backends] == [*BACKENDS, "export"]
    for finding in findings.backends:
        assert finding.ready or finding.note
        assert not finding.ready or finding.versions
    ready = {f.name: f for f in findings.backends}["onnxruntime"]
    assert ready.ready
    assert "cpu" in ready.devices


def test_the_findings_are_one_json_value():
    value = json.loads(doctor.examine().to_json())
    assert set(value) == {"machine", "gpus", "backends"}
    assert value["machine"]["cores"] >= 1
    assert {"name", "ready", "versions", "devices", "loads", "note", "fix"} <= set(
        value["backends"][0]
    )


def test_the_table_fits_a_terminal_and_shows_machine_and_backends():
    console = Console(width=80, file=io.StringIO())
    console.print(doctor.examine().table())
    text = console.file.getvalue()
    assert "instruction sets" in text
    assert all(name in text for name in BACKENDS)


def test_the_clocks_of_a_gpu_are_told_with_what_holds_them_down(monkeypatch):
    hot = GpuClocks(1200, 1980, ("heat (software)",))
    monkeypatch.setattr(doctor, "gpus", lambda: [GPU, replace(GPU, index=1)])
    monkeypatch.setattr(doctor, "read_clocks", lambda gpu: None if gpu.index else hot)
    report = doctor.examine()
    console = Console(width=80, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert text.count("its clock") == 1
    assert "1200 of 1980 MHz, held down by heat (software)" in text
    told = [gpu["clocks"] for gpu in json.loads(report.to_json())["gpus"]]
    assert told[0]["throttled"] == ["heat (software)"]
    assert told[1] is None


@pytest.mark.parametrize("name", ["openvino", "torch", "tensorrt"])
def test_an_absent_backend_comes_with_the_line_that_brings_it(monkeypatch, name):
    monkeypatch.setattr(doctor, "is_installed", lambda backend: backend != name)
    finding = finding_of(name)
    assert not finding.ready
    assert "is not installed" in finding.note
    assert finding.fix == f'pip install "rtseg[{BACKENDS[name].extra}]"'


def test_a_broken_backend_is_a_finding_rather_than_an_error(monkeypatch):
    def broken(gpus):
        raise OSError("libsomething.so: cannot open\nmore")

    monkeypatch.setattr(doctor, "is_installed", lambda backend: True)
    monkeypatch.setattr("rtseg.runtime.backends.openvino.OpenVino.diagnose", broken)
    finding = finding_of("openvino")
    assert not finding.ready
    assert finding.note == "installed, but does not load: libsomething.so: cannot open"
    assert finding.fix == 'pip install --force-reinstall "rtseg[openvino]"'


def test_without_a_gpu_tensorrt_says_what_it_can_still_do(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(doctor, "gpus", list)
    finding = finding_of("tensorrt")
    assert not finding.ready
    assert "tensorrt_rtx" in finding.versions
    assert finding.note == "builds engines here; running them needs an NVIDIA GPU"


@pytest.mark.parametrize(
    ("gpu", "ready", "note", "fix"),
    [
        ("9.0", False, "no code for compute capability 9.0", 'pip install "rtseg[tensorrt]"'),
        ("8.7", False, "no code for compute capability 8.7", "use JetPack's TensorRT"),
        ("7.5", True, "if built with --compute-capability 7.5", ""),
        ("8.6", True, "", ""),
    ],
)
def test_tensorrt_is_ready_where_it_has_code_for_the_gpu(monkeypatch, gpu, ready, note, fix):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(doctor, "gpus", lambda: [replace(GPU, compute_capability=gpu)])
    finding = finding_of("tensorrt")
    assert finding.ready == ready
    assert note in finding.note
    assert fix in finding.fix


def test_bindings_newer_than_the_driver_are_told(monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("rtseg.runtime.preflight.bindings_version", lambda: "13.5.0")
    monkeypatch.setattr(doctor, "gpus", lambda: [replace(GPU, driver="550.54")])
    finding = finding_of("tensorrt")
    assert not finding.ready
    assert finding.fix == 'pip install "cuda-bindings<13"'


@pytest.mark.parametrize(("capability", "extra"), [("8.6", "tensorrt-rtx"), ("9.0", "tensorrt")])
def test_an_absent_tensorrt_is_that_of_the_gpu(monkeypatch, capability, extra):
    here = [replace(GPU, compute_capability=capability)]
    monkeypatch.setattr(doctor, "gpus", lambda: here)
    monkeypatch.setattr("rtseg.runtime.packages.gpus", lambda: here)
    monkeypatch.setattr(doctor, "is_installed", lambda backend: backend != "tensorrt")
    assert finding_of("tensorrt").fix == f'pip install "rtseg[{extra}]"'
    assert finding_of("export").fix in ("", f'pip install "rtseg[{extra}]"')


def test_a_gpu_that_a_cpu_build_leaves_idle_is_pointed_out(monkeypatch):
    monkeypatch.setattr(doctor, "gpus", lambda: [GPU])
    monkeypatch.setattr("rtseg.runtime.backends.onnxruntime.cuda_available", lambda: False)
    findings = doctor.examine()
    finding = {f.name: f for f in findings.backends}["onnxruntime"]
    assert finding.ready
    assert finding.note == "this build does not use the GPU"
    assert "rtseg[gpu]" in finding.fix
    console = Console(width=100, file=io.StringIO())
    console.print(findings.table())
    assert "NVIDIA Test, compute capability 8.6, 8 GiB, driver 580.65" in console.file.getvalue()


def test_a_missing_export_package_is_named(monkeypatch):
    version = doctor.metadata.version

    def without(name: str) -> str:
        if name == "onnxslim":
            raise doctor.metadata.PackageNotFoundError
        return version(name)

    monkeypatch.setattr(doctor.metadata, "version", without)
    finding = finding_of("export")
    assert not finding.ready
    assert "onnxslim" in finding.note
    assert finding.fix == 'pip install "rtseg[export]"'


@pytest.mark.parametrize(("here", "extra"), [([GPU], "gpu"), ([], "cpu")])
def test_both_packages_of_onnx_runtime_are_told_with_the_cure(monkeypatch, here, extra):
    version = doctor.metadata.version
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.0"}
    monkeypatch.setattr(doctor.metadata, "version", lambda name: both.get(name) or version(name))
    monkeypatch.setattr(doctor, "gpus", lambda: here)
    finding = finding_of("onnxruntime")
    assert not finding.ready
    assert finding.versions == both
    assert "both packages are installed" in finding.note
    assert finding.fix == (
        f'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "rtseg[{extra}]"'
    )
