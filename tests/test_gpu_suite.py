"""The GPU suite without a GPU: all of it as a dry run, its time budget, and its driver step on a
pretended GPU that misbehaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from fake_cuda import (
    COARSE_SHAPE,
    SIZE,
    PretendedKernel,
    World,
    coarse_logits,
    picture,
    pretend,
    write_engine,
)
from labels_plain import plain
from rtseg.gpu import Gpu
from rtseg.runtime.backends import cuda as cuda_module
from rtseg.runtime.packages import Package
from rtseg.scripts import gpu_suite
from rtseg.scripts.gpu_suite import LOG, RESULTS, STEPS, Step, Suite

pytest.importorskip("torch")
RTX = {"tensorrt_rtx": Package("tensorrt_rtx", "1.7.1.116", 13)}
PACKAGES = {"openvino", "onnx", "onnxruntime", "onnxscript", "onnxslim", "numba", "tensorrt_rtx"}


def run_suite(folder: Path, *options: str, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "rtseg.scripts.gpu_suite", "--device", "cpu", "-o", folder]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, env=os.environ | environment
    )
    log = (folder / LOG).read_text()
    assert done.returncode == 0, done.stdout + log[-3000:]
    results: dict[str, Any] = json.loads((folder / RESULTS).read_text())
    results["steps"] = {step["step"]: step for step in results["steps"]}
    return results


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("suite") / "results"
    return folder, run_suite(folder, "--budget", "900")


def test_every_step_runs_without_a_gpu(dry_run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = dry_run
    assert list(results["steps"]) == [step.name for step in STEPS]
    for name, step in results["steps"].items():
        optional = name in ("tensorrt", "kernels", "driver") and step["status"] == "skipped"
        assert step["status"] == "done" or (optional and "not installed" in step["why"]), step
        assert [row for row in step["rows"] if "failed" in row] == []
        assert optional or step["rows"]
    assert len(list(folder.iterdir())) <= 4


def test_the_dry_run_compares_labels_and_times(dry_run: tuple[Path, dict[str, Any]]) -> None:
    steps = dry_run[1]["steps"]
    rows = {row["contestant"]: row for row in steps["torch"]["rows"] if "network" in row}
    assert rows["torch fp32"]["against eager"].keys() == {"frame_to_labels", "network"}
    compared = [row for row in steps["torch"]["rows"] if "labels_differ" in row]
    assert len(compared) == 2
    assert all(row["labels_differ"] <= 0.001 * row["pixels"] for row in compared)
    assert any("against compile" in row for row in steps["compile"]["rows"])
    assert {row["peer"] for row in steps["onnxruntime"]["rows"] if "peer" in row} == set()
    assert steps["training"]["rows"][-1]["miou"] > 0
    assert (dry_run[0] / "csfcn_nano_camvid.safetensors").is_file()


def test_the_dry_run_has_frames_in_flight_and_of_cameras(
    dry_run: tuple[Path, dict[str, Any]],
) -> None:
    steps = dry_run[1]["steps"]
    cpu, pretended = steps["in_flight"]["rows"]
    assert [(row["backend"], row["in_flight"]) for row in (cpu, pretended)] == [
        ("torch", 1),  # a CPU takes one frame at a time
        ("tensorrt", 2),
    ]
    assert cpu["labels_differ"] == pretended["labels_differ"] == 0
    assert len(pretended["gains"]) == 3
    assert [row["input"] for row in steps["cameras"]["rows"]] == ["nv12", "yuyv", "bayer_rggb"]
    for row in steps["cameras"]["rows"]:
        assert row["labels_differ"] == 0
        assert all(row[way]["runs"] > 0 for way in ("from_host", "from_device", "by_opencv"))


def test_the_dry_run_runs_the_kernels(dry_run: tuple[Path, dict[str, Any]]) -> None:
    pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")
    steps = dry_run[1]["steps"]
    cases, cost = steps["kernels"]["rows"]
    assert (cases["cases"], cases["wrong"]) == (2, {})
    assert cost["different_pixels"] == 0
    *ways, end = steps["driver"]["rows"]
    assert [row["kernel"] for row in ways] == ["bilinear", "bilinear_aligned"]
    assert all(wrong == {"launched": 0, "replayed": 0} for r in ways for wrong in r["wrong_pixels"])
    assert end == {"alive": 0, "modules": 0}


def test_a_bare_machine_runs_what_it_can_and_says_what_it_lacks(tmp_path: Path) -> None:
    """Only PyTorch and what cards need: the rest is not found."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "def find_others(name, path=None, target=None):\n"
        f"    return None if name.partition('.')[0] in {PACKAGES} else find(name, path, target)\n"
        "PathFinder.find_spec = find_others\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    only = ("torch", "tensorrt", "onnxruntime")
    steps = run_suite(tmp_path / "results", "--only", *only, PYTHONPATH=path)["steps"]
    assert [steps[name]["status"] for name in only] == ["done", "skipped", "skipped"]
    assert steps["tensorrt"]["why"] == "not installed: onnx, onnxscript, onnxslim, onnxruntime"
    assert all("failed" not in row for row in steps["torch"]["rows"])


# The budget.


def suite(folder: Path, budget_s: float, programs: dict[str, str]) -> Suite:
    """Steps that are programs of Python; ROWS is the file for their rows."""

    def command(step: Step, limit: float, rows: Path) -> list[str]:
        program = f"import json, os, subprocess, sys, time\nROWS = {str(rows)!r}\n"
        program += "def row(**facts):\n    open(ROWS, 'a').write(json.dumps(facts) + '\\n')\n"
        return [sys.executable, "-c", program + programs[step.name]]

    return Suite(folder, "cpu", budget_s, command)


def test_a_slow_step_does_not_take_the_others_time(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_suite, "LEAST_S", 0.5)
    programs = {
        "slow": "row(part=1)\nsubprocess.Popen(['sleep', '333'])\ntime.sleep(60)",
        "breaks": "row(part=1)\nsys.exit(3)",
        "last": f"row(before=json.load(open({str(tmp_path / RESULTS)!r}))['steps'])",
    }
    steps = [Step("slow", 1), Step("breaks", 1), Step("last", 2), Step("absent", 1, ("nowhere",))]
    began = time.monotonic()
    records = suite(tmp_path, 10.0, programs).run(steps)
    assert time.monotonic() - began < 10
    assert [record.status for record in records] == ["out of time", "failed", "done", "skipped"]
    slow, breaks, last, absent = records
    assert slow.limit_s == 2.0
    assert "ended after its 2 s" in slow.why
    assert slow.rows == breaks.rows == [{"part": 1}]  # what was there when it ended is kept
    assert breaks.why.startswith("it ended with status 3")
    assert breaks.limit_s == pytest.approx(2.0, abs=0.2)  # an equal share of what is left
    assert last.limit_s > 4
    assert absent.why == "not installed: nowhere"
    # The results were written after each step, and a later one could read them.
    assert [step["step"] for step in last.rows[0]["before"]] == ["slow", "breaks"]
    time.sleep(0.1)
    assert "sleep 333" not in subprocess.run(["ps", "ax"], capture_output=True, text=True).stdout


def test_without_time_steps_are_not_started(tmp_path: Path) -> None:
    records = suite(tmp_path, 1.0, {"one": "row(ran=1)"}).run([Step("one", 1), Step("two", 1)])
    assert [record.status for record in records] == ["out of time"] * 2
    assert len(json.loads((tmp_path / RESULTS).read_text())["steps"]) == 2


# The driver's step on a GPU that misbehaves.


class Faults:
    """What the pretended driver does wrong."""

    @staticmethod
    def nothing_launched(world: Any) -> None:
        world.driver.cuLaunchKernel = lambda *arguments: (0,)

    @staticmethod
    def empty_graph(world: Any) -> None:
        """As one that was captured on another device."""
        world.cuda.cudaStreamEndCapture = lambda stream: (
            setattr(world.cuda, "recording", None)
            or (
                0,
                [],
            )
        )


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [(None, (0, 0)), ("nothing_launched", (1, 1)), ("empty_graph", (0, 1))],
)
def test_labels_left_from_an_earlier_run_do_not_pass(
    fault: str | None, wrong: tuple[int, int], monkeypatch: Any
) -> None:
    pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")
    pytest.importorskip("onnx")
    from rtseg.export.argmax_kernel import CutGraph, compile_kernel
    from rtseg.scripts.gpu_kernels import run_kernel

    world = World()
    monkeypatch.setattr(cuda_module, "_bindings", lambda api="runtime": world.api[api])
    ending = CutGraph(None, "bilinear", COARSE_SHAPE, np.dtype(np.float16))
    file = compile_kernel(ending, SIZE, ["8.9"])
    PretendedKernel(world, file)
    if fault:
        getattr(Faults, fault)(world)
    inputs = [coarse_logits(picture(seed)) for seed in range(2)]
    expected = [plain(each, SIZE, False) for each in inputs]
    found = run_kernel(cuda_module.Cuda(0), file, inputs, expected, SIZE)
    assert [found[way] > 0 for way in ("launched", "replayed")] == [bool(each) for each in wrong]
    assert world.cuda.alive == 0


# What only a GPU's run of the suite calls, on pretended ones.


def job_of(folder: Path, **plan: Any) -> Any:
    from rtseg.scripts.gpu_job import DRY, Job

    job = Job("cuda", folder / "rows.jsonl", folder, time.monotonic() + 60)
    job.plan = replace(DRY, **plan)
    return job


def rows_of(job: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.rows.read_text().splitlines()]


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_an_engine_is_served_timed_and_watched(
    cuda_graph: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rtseg.scripts.gpu_artifacts import serve

    world = pretend(monkeypatch, tmp_path)
    job = job_of(tmp_path, engine_size=SIZE)
    serve(job, write_engine(tmp_path), "tensorrt", {"flavour": "rtx"}, cuda_graph=cuda_graph)
    (row,) = rows_of(job)
    assert row["frames"] == job.plan.steady
    assert row["options"]["cuda_graph"] == ("on" if cuda_graph else "off")
    assert row["device_ms"] == (1.0 if cuda_graph else 0.0)  # by the pretended clock of launches
    assert row["network"]["runs"] > 0
    assert world.cuda.alive == 0


def test_a_tensorrt_that_has_no_code_for_the_gpu_is_left_out_with_the_cure(
    tmp_path: Path, monkeypatch: Any
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rtseg.scripts import gpu_artifacts

    h200 = Gpu(0, "NVIDIA H200", "9.0", "580.65", 141 << 30)
    monkeypatch.setattr("rtseg.gpu.gpus", lambda: [h200])
    monkeypatch.setattr("rtseg.runtime.packages.find_package", lambda flavour: RTX.get(flavour))
    job = job_of(tmp_path)
    gpu_artifacts.tensorrt(job)
    (row,) = rows_of(job)
    assert row["flavour"] == "tensorrt_rtx"
    assert "no code for compute capability 9.0" in row["absent"]
    assert "[tensorrt]" in row["absent"]


def test_camvid_is_packed_small_and_read_again(tmp_path: Path) -> None:
    from rtseg.data.classes import CAMVID
    from rtseg.data.datasets import open_data
    from rtseg.scripts.gpu_training import pack
    from tiny_camvid import write_camvid

    source = write_camvid(tmp_path / "camvid", frames=2)
    pack(source, tmp_path / "packed")
    packed = open_data("folder", tmp_path / "packed", "train")
    assert packed.classes.names == CAMVID.names
    for ours, theirs in zip(packed, open_data("camvid", source, "train"), strict=True):
        np.testing.assert_array_equal(ours.label, theirs.label)
        assert (
            np.abs(ours.image.astype(int) - theirs.image).mean() < 16
        )  # blocks of one color, the hardest for JPEG


def test_the_wheels_script_names_packages_that_the_suite_may_lack() -> None:
    text = (ROOT / "scripts" / "gpu_suite_wheels.sh").read_text()
    assert subprocess.run(["bash", "-n", ROOT / "scripts" / "gpu_suite_wheels.sh"]).returncode == 0
    for name in ("pydantic-core", "onnxslim", "psutil", "safetensors", "PyYAML"):
        assert name in text
