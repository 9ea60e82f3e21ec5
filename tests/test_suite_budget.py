"""The GPU suite's time, and the packages that it finds: what is late or lacking costs no more than
its own step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rtseg.runtime.backends import cuda as cuda_module
from rtseg.scripts import gpu_suite
from rtseg.scripts.gpu_job import OUT_OF_TIME, SKIPPED, Skip
from rtseg.scripts.gpu_suite import RESULTS, Step
from suite_parts import job_of, rows_of, run_suite, suite

pytest.importorskip("torch")
PACKAGES = {"openvino", "onnx", "onnxruntime", "onnxscript", "onnxslim", "numba", "tensorrt_rtx"}


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


def test_a_step_that_ends_itself_for_time_is_out_of_time(tmp_path: Path) -> None:
    program = f"row(ms=1)\nrow(why='no time was left')\nsys.exit({OUT_OF_TIME})"
    (record,) = suite(tmp_path, 60, {"one": program}).run([Step("one", 1)])
    assert (record.status, record.why) == ("out of time", "no time was left")
    assert record.rows == [{"ms": 1}]


def test_a_step_whose_time_is_over_ends_with_its_rows(tmp_path: Path, monkeypatch: Any) -> None:
    """At once, from parts of parts too: a row for the innermost, and nothing after it."""
    from rtseg.scripts import gpu_steps

    def run(job: Any) -> None:
        with job.part(model="first"):
            job.row(model="first", ms=1)
        with job.part(model="second"):
            job.ends = 0
            with job.part(model="second", precision="fp16"):
                raise AssertionError("it began without time")
            raise AssertionError("it went on without time")

    monkeypatch.setitem(gpu_steps.STEPS, "torch", run)
    rows = tmp_path / "rows.jsonl"
    arguments = ["torch", "--device", "cpu", "--rows", str(rows)]
    assert gpu_steps.main(arguments) == OUT_OF_TIME
    last = "no time was left"
    assert [json.loads(line) for line in rows.read_text().splitlines()] == [
        {"model": "first", "ms": 1},
        {"model": "second", "precision": "fp16", "absent": last},
        {"why": last},
    ]


def test_a_part_that_cannot_run_here_leaves_the_next_one_to_run(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    with job.part(model="first"):
        with job.part(model="first", precision="fp8"):
            raise Skip("no such kernels")
        job.row(model="first", ms=1)
    assert rows_of(job) == [
        {"model": "first", "precision": "fp8", "absent": "no such kernels"},
        {"model": "first", "ms": 1},
    ]


# Packages.


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
    only = ("torch", "tensorrt", "onnxruntime", "cameras")
    steps = run_suite(tmp_path / "results", "--only", *only, PYTHONPATH=path)["steps"]
    assert [steps[name]["status"] for name in only] == [
        "done", "skipped", "skipped", "done",
    ]  # fmt: skip
    assert steps["tensorrt"]["why"] == "not installed: onnx, onnxscript, onnxslim, onnxruntime"
    assert all("failed" not in row for row in steps["torch"]["rows"])
    lacking, *rows = sorted(steps["cameras"]["rows"], key=lambda row: "absent" not in row)
    assert lacking["absent"] == "not installed: onnx, onnxscript, onnxslim, onnxruntime"
    assert {row["backend"] for row in rows} == {"torch"}


def test_steps_that_lack_a_package_are_skipped_with_the_cure(
    tmp_path: Path, monkeypatch: Any
) -> None:
    import torch
    from rtseg.errors import MissingPackage
    from rtseg.scripts import gpu_steps

    def absent(api: str = "runtime") -> Any:
        raise MissingPackage("engines need cuda-bindings: pip install cuda-bindings")

    pytest.importorskip("onnx")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda_module, "_bindings", absent)
    rows = tmp_path / "rows.jsonl"
    assert gpu_steps.main(["driver", "--rows", str(rows)]) == SKIPPED
    assert "cuda-bindings" in json.loads(rows.read_text())["why"]


def test_packages_that_were_brought_along_are_found_by_the_steps(tmp_path: Path) -> None:
    """After the machine's own, of which the first has the same name."""
    import zipfile

    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "brought-1-py3-none-any.whl", "w") as archive:
        archive.writestr("brought.py", "HERE = 'wheel'")
        archive.writestr("json/__init__.py", "raise ImportError('the machine has its own')")
    program = (
        "import os, pathlib, subprocess, sys\n"
        "from rtseg.scripts import gpu_suite, gpu_steps\n"
        f"gpu_suite.prepare_path(pathlib.Path({str(wheels)!r}), pathlib.Path({str(tmp_path)!r}))\n"
        "import brought, json\n"
        "print(brought.HERE, gpu_suite.find_missing(['brought']))\n"
        "step = 'import sys; from rtseg.scripts import gpu_steps; "
        'gpu_steps.Job = lambda *_: sys.exit(__import__("brought").HERE); '
        'gpu_steps.main(["machine", "--rows", "x"])\'\n'
        "sys.exit(subprocess.run([sys.executable, '-c', step]).returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "wheel []\n"
    assert done.stderr == "wheel\n"


@pytest.mark.parametrize(("megabytes", "code"), [((6, 6), 0), ((9, 9, 9), 1)])
def test_the_wheels_script_holds_its_limit(
    megabytes: tuple[int, ...], code: int, tmp_path: Path
) -> None:
    """A pip that writes wheels of these sizes; what it is asked for is what the suite may lack."""
    pip = tmp_path / "pip.py"
    pip.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('-d') + 1])\n"
        f"for number, size in enumerate({megabytes}):\n"
        "    (folder / f'{number}.whl').write_bytes(os.urandom(size << 20))\n"
        "(folder / 'asked').write_text(' '.join(sys.argv))\n"
    )
    pip.chmod(0o755)
    script, folder = ROOT / "scripts" / "gpu_suite_wheels.sh", tmp_path / "wheels"
    folder.mkdir()
    (folder / "old.whl").write_bytes(bytes(30 << 20))  # of an earlier run: counts no more
    done = subprocess.run(
        ["bash", script, folder], capture_output=True, text=True, env=os.environ | {"PYTHON": pip}
    )
    assert done.returncode == code, done.stderr
    total = sum(megabytes)
    if code:
        assert f"{total} MB of wheels are more than 20" in done.stderr
    else:
        assert f"{len(megabytes)} packages, {total} MB" in done.stdout
    asked = (folder / "asked").read_text().split()
    assert asked[1:4] == ["-m", "pip", "download"]
    assert {"pydantic-core", "onnxslim", "psutil", "safetensors", "PyYAML"} <= set(asked)
