"""The GPU suite without a GPU: all of it as a dry run, and its driver step on a pretended GPU that
misbehaves."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
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
from rtseg.scripts.gpu_suite import RESULTS, STEPS, Step
from suite_parts import job_of, rows_of, run_suite, suite

pytest.importorskip("torch")
RTX = {"tensorrt_rtx": Package("tensorrt_rtx", "1.7.1.116", 13)}


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("suite") / "results"
    return folder, run_suite(folder, "--budget", "3600")  # a busy machine is slow


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
    assert steps["training"]["rows"][-1]["miou"] > 0
    assert (dry_run[0] / "csfcn_nano_camvid.safetensors").is_file()


@pytest.mark.parametrize("step", ["tensorrt", "onnxruntime"])
def test_each_of_ours_stands_in_one_race_with_its_peers(
    step: str, dry_run: tuple[Path, dict[str, Any]]
) -> None:
    record = dry_run[1]["steps"][step]
    if record["status"] == "skipped":
        pytest.skip(record["why"])
    rows = record["rows"]
    heat = max(row.get("heat", 0) for row in rows)
    last = [row for row in rows if row.get("heat") == heat]
    peers = {row["contestant"] for row in last if row.get("peer")}
    assert peers == {"eager", "compile", "onnxruntime"}
    ours = {row["contestant"]: row for row in last if not row.get("peer")}
    engine = "pretended engine" if step == "tensorrt" else "ours in onnxruntime"
    assert ours.keys() == {"torch fp32", engine}
    for row in ours.values():
        assert against(row) == peers
        assert all(row[f"against {peer}"]["network"]["value"] > 0 for peer in peers)
    absent = {row["contestant"]: row["absent"] for row in rows if "absent" in row}
    assert absent.keys() == {"tensorrt", "torch_tensorrt", "torch2trt"}
    assert all(why.endswith("runs on an NVIDIA GPU only") for why in absent.values())
    assert {row["contestant"] for row in rows if "host_mib_grown" in row} == ours.keys()


def against(row: dict[str, Any]) -> set[str]:
    return {key.removeprefix("against ") for key in row if key.startswith("against ")}


def test_the_dry_run_has_shares_of_the_ceilings(dry_run: tuple[Path, dict[str, Any]]) -> None:
    """Also in rows of steps before that of the ceilings."""
    steps = dry_run[1]["steps"]
    for name in ("torch", "compile", "onnxruntime"):
        rows = [row for row in steps[name]["rows"] if "network" in row]
        shares = [row["roofline"] for row in rows if row["precision"] == "fp32"]
        assert shares
        assert all(0 < share["reached"] < 10 for share in shares)


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
    kinds = [(row["backend"], row["input"]) for row in steps["cameras"]["rows"]]
    assert kinds == [
        (backend, kind)
        for backend in ("torch", "onnxruntime")
        for kind in ("bgr", "nv12", "bayer_rggb")
    ]
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


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_an_engine_is_timed_and_watched(cuda_graph: bool, tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rtseg.scripts.gpu_race import Race

    world = pretend(monkeypatch, tmp_path)
    job = job_of(tmp_path, engine_size=SIZE)
    race = Race(job, "csfcn_nano", SIZE)
    race.enter_artifact("rtx", write_engine(tmp_path), "tensorrt", cuda_graph=cuda_graph)
    race.run()
    race.watch_memory()
    race.close()
    timed, watched = rows_of(job)
    assert timed["options"]["cuda_graph"] == ("on" if cuda_graph else "off")
    assert timed["device_ms"] == (1.0 if cuda_graph else 0.0)  # by the pretended clock of launches
    assert timed["network"]["runs"] > 0
    assert watched["frames"] == job.plan.steady
    assert world.cuda.alive == 0


def test_engines_of_every_kind_race_with_every_peer(tmp_path: Path, monkeypatch: Any) -> None:
    """Peers on a pretended GPU too; one fails as it is opened and one as it runs."""
    pytest.importorskip("tensorrt_rtx")
    from rtseg.errors import ArtifactError
    from rtseg.scripts import gpu_artifacts, gpu_race
    from rtseg.speed.contestant import ArtifactContestant

    def open_peer(job: Any, model: Any, size: Any, name: str, frames: Any) -> Any:
        if name == "torch2trt":
            raise ArtifactError("torch2trt: no converter for grid_sample")
        peer = ArtifactContestant.open(path, "tensorrt", frames)
        peer.subject = replace(peer.subject, peer=True)
        if name == "compile":
            monkeypatch.setattr(peer, "network", lambda: 1 / 0)
        return peer

    pretend(monkeypatch, tmp_path)
    path = write_engine(tmp_path)
    monkeypatch.setattr(gpu_race, "open_peer", open_peer)
    monkeypatch.setattr(gpu_race.Race, "enter_torch", lambda race, precision: None)
    monkeypatch.setattr(gpu_artifacts, "installed_packages", lambda: list(RTX.values()))
    monkeypatch.setattr(gpu_artifacts, "refuse_unsupported", lambda job, package: None)
    monkeypatch.setattr(gpu_artifacts, "export_for", lambda job, target, **options: path)
    job = job_of(tmp_path, engine="csfcn_nano")
    gpu_artifacts.tensorrt(job)
    rows = rows_of(job)
    ran = {"eager", "onnxruntime", "tensorrt", "torch_tensorrt"}
    last = [row for row in rows if row.get("heat") == max(r.get("heat", 0) for r in rows)]
    assert {row["contestant"]: against(row) for row in last if not row.get("peer")} == {
        "tensorrt_rtx kernel graph": ran,
        "tensorrt_rtx kernel": ran,
        "tensorrt_rtx graph": ran,
        "tensorrt_rtx": ran,
    }
    assert {row["contestant"] for row in last if row.get("peer")} == ran
    whys = {row["contestant"]: row.get("absent") or row["failed"] for row in rows
            if "absent" in row or "failed" in row}  # fmt: skip
    assert whys == {
        "torch2trt": "torch2trt: no converter for grid_sample",
        "compile": "ZeroDivisionError: division by zero",
    }
    # An end after the first engine would have left its ratios too.
    first = [row for row in rows if row.get("heat") == 1 and not row.get("peer")]
    assert [against(row) for row in first] == [{"eager", "onnxruntime"}] * 2


def test_the_machines_row_says_that_its_clock_is_not_locked(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Read before the first work; the line is the step's, and the suite prints it."""
    import torch
    from rtseg.scripts import gpu_steps
    from test_system import gpu_of, nvml_of

    ran, real = [], torch.ones
    clock = {"nvmlDeviceGetClockInfo": lambda *_: 1980 if ran else 210}
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(gpu_of(0), **clock))
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ran.append(1) or real(8, 8))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(gpu_steps, "LOAD_S", 0.01)
    job = job_of(tmp_path)
    gpu_steps.machine(job)
    here, one, lock, why = rows_of(job)
    assert here["plan"]["engine"] == "csfcn_nano"
    assert (one["name"], one["clocks"]["sm_clock_mhz"]) == (gpu_of(0).name, 210)
    assert lock["clock_at_rest_mhz"] == 210
    assert "--lock-gpu-clocks=1980" in lock["clock_is_not_locked"] == why["why"]


def test_a_timed_row_has_the_gpus_state_under_it(tmp_path: Path, monkeypatch: Any) -> None:
    pytest.importorskip("tensorrt_rtx")
    from rtseg.scripts import gpu_race
    from test_system import Clock, gpu_of, nvml_of

    pretend(monkeypatch, tmp_path)
    monkeypatch.setitem(sys.modules, "pynvml", nvml_of(gpu_of(0), clock=Clock()))
    monkeypatch.setattr(gpu_race, "WATCHED_S", 0.01)
    job = job_of(tmp_path, engine_size=SIZE)
    race = gpu_race.Race(job, "csfcn_nano", SIZE)
    race.enter_artifact("rtx", write_engine(tmp_path), "tensorrt")
    race.run()
    race.close()
    (row,) = rows_of(job)
    assert (row["gpu"]["sm_clock_mhz"], row["gpu"]["power_w"]) == (1500, 200)
    assert "held down by heat (software)" in row["doubt"]


def test_what_takes_no_cameras_here_is_told(tmp_path: Path, monkeypatch: Any) -> None:
    """A machine with the CPU's ONNX Runtime and no TensorRT."""
    onnxruntime = pytest.importorskip("onnxruntime")
    from rtseg.scripts import gpu_frames

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("rtseg.runtime.packages.find_package", lambda flavour: None)
    job = job_of(tmp_path)
    assert gpu_frames.makers(job).keys() == {"torch"}
    assert {row["backend"]: row["absent"] for row in rows_of(job)} == {
        "onnxruntime": "this ONNX Runtime was built without CUDA: install onnxruntime-gpu",
        "tensorrt": "neither tensorrt nor tensorrt_rtx is installed",
    }


@pytest.mark.parametrize(("free_mb", "workers"), [(0, 0), (64, 2), (8000, 6)])
def test_a_loader_has_no_more_workers_than_shared_memory_holds(
    free_mb: int, workers: int, tmp_path: Path, monkeypatch: Any
) -> None:
    from rtseg.scripts import gpu_training

    room = SimpleNamespace(free=free_mb * 1_000_000)
    monkeypatch.setattr(gpu_training.shutil, "disk_usage", lambda folder: room)
    monkeypatch.setattr(gpu_training.os, "cpu_count", lambda: 8)
    assert gpu_training.count_workers(tmp_path) == workers
    assert gpu_training.count_workers(tmp_path / "absent") == 6


# Shares of the ceilings.


def test_shares_are_those_of_the_roofline(tmp_path: Path) -> None:
    """The ceilings come last, and the steps before have them all the same."""
    from rtseg.speed.result import Subject
    from rtseg.speed.roofline import Ceilings, Work, share

    ceilings = Ceilings("GPU", None, {"fp16": 4e14, "fp32": 3e13}, {}, 3e12)
    heavy, light = Work(50_000_000_000, 2_000_000, 512 * 1024), Work(1_000, 2_000_000, 512 * 1024)
    rows = [
        {"work": {"macs": work.macs, "minimal_bytes": work.minimal_bytes("fp16"),
                  "arithmetic": "fp16"}, "network": {"p50_ms": 0.5}, "device_ms": 0.25}
        for work in (heavy, light)
    ]  # fmt: skip
    rows.append({"label_cost": "csfcn", "bytes_per_s": 1.5e12})
    programs = {
        "one": f"for each in {rows!r}: row(**each)",
        "ceilings": "row(macs_per_s={'fp16': 4e14, 'fp32': 3e13}, bytes_per_s=3e12)",
    }
    suite(tmp_path, 60, programs).run([Step("one", 1), Step("ceilings", 1)])
    found = json.loads((tmp_path / RESULTS).read_text())["steps"][0]["rows"]
    subject = Subject(
        model="m", weights="", trained=False, size=(512, 1024), precision="fp16",
        backend="tensorrt", version="", device="GPU", threads=None, options={}, macs=1, artifact="",
    )  # fmt: skip
    for work, row, by in zip((heavy, light), found, ("arithmetic", "bandwidth"), strict=False):
        expected = share(work, subject, 0.5, ceilings)
        assert expected is not None
        assert row["roofline"] == {
            "limit_ms": expected.limit_ms,
            "limited_by": by,
            "reached": expected.reached,
            "reached_on_device": pytest.approx(2 * expected.reached, abs=2e-4),
        }
    assert found[2]["of_bandwidth"] == 0.5
    ended = json.loads((tmp_path / RESULTS).read_text())["steps"][1]["rows"]
    assert "of_bandwidth" not in ended[0]


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


def test_camvid_that_is_packed_large_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    from rtseg.scripts import gpu_steps, gpu_training
    from tiny_camvid import write_camvid

    source = write_camvid(tmp_path / "camvid", frames=2)
    monkeypatch.setattr(gpu_training, "PACKED_BYTES", 1000)
    assert gpu_steps.main(["pack", str(source), str(tmp_path / "packed")]) == 1
    assert not (tmp_path / "packed").exists()


def test_the_real_camvid_is_packed_small(shared_data: Path, tmp_path: Path) -> None:
    from rtseg.scripts.gpu_training import pack

    if not (shared_data / "camvid" / "val").is_dir():
        pytest.skip(f"{shared_data} has no CamVid")
    pack(shared_data / "camvid", tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".jpg"]) == 367 + 101
    assert 10e6 < sum(path.stat().st_size for path in files) < 40e6
