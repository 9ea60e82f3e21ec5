"""Everything that an NVIDIA GPU can show, most valuable first, without a network:

    python -m rtseg.scripts.gpu_suite [-o gpu-results] [--budget 540] [--camvid FOLDER]

Needs a checkout linked as `rtseg` on the path and a PyTorch with CUDA; what else is there is used,
and what is missing leaves its steps out, with the reason. `scripts/gpu_suite_wheels.sh` fetches
missing packages for a machine without a network. Every step is a process of its own: one that
hangs, dies or breaks the GPU's context costs its own time and nothing more.

In the folder: `gpu_suite.json`, written anew after every step; `gpu_suite.log`, what the steps
said; and `csfcn_nano_camvid.safetensors`, if there was time to train.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from .gpu_job import OUT_OF_TIME, SKIPPED
from .gpu_shares import add_shares

PACKAGE = Path(__file__).parents[1]  # not resolved: the link is called `rtseg`, its target need not
RESULTS, LOG = "gpu_suite.json", "gpu_suite.log"
STATUSES = {0: "done", SKIPPED: "skipped", OUT_OF_TIME: "out of time"}  # by exit status
MARGIN_S = 3.0  # between the end that a step is told and the one that it is held to
LEAST_S = 4.0  # what a step needs to start at all


@dataclass(frozen=True)
class Step:
    """weight: its share of the time that is left, beside the weights of the steps after it; what
    it does not use is theirs. modules: packages without which it does not start."""

    name: str
    weight: float
    modules: tuple[str, ...] = ()


TORCH = ("torch", "pydantic", "safetensors", "cv2", "psutil")
EXPORT = (*TORCH, "onnx", "onnxscript", "onnxslim", "onnxruntime")
STEPS = (
    Step("machine", 1, ("torch", "pydantic", "psutil")),
    Step("torch", 10, TORCH),
    Step("compile", 8, TORCH),
    Step("kernels", 4, (*TORCH, "triton")),
    Step("driver", 2, (*EXPORT[:1], "pydantic", "triton", "onnx", "onnxslim", "onnxruntime")),
    Step("ceilings", 2, ("torch",)),
    Step("tensorrt", 10, EXPORT),
    Step("onnxruntime", 6, EXPORT),
    Step("in_flight", 2, TORCH),
    Step("cameras", 5, TORCH),
    Step("training", 6, (*TORCH, "yaml", "matplotlib")),
)


@dataclass
class Record:
    """What came of a step. status: done, skipped, failed or "out of time"; rows: its facts, also
    those that it had before it ended badly."""

    step: str
    status: str
    why: str = ""
    seconds: float = 0.0
    limit_s: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)


Command = Callable[[Step, float, Path], list[str]]  # of a step, its limit in s, the file for rows


class Suite:
    """Runs steps within `budget_s` and keeps the results in `folder`."""

    def __init__(
        self,
        folder: Path,
        device: str,
        budget_s: float,
        command: Command,
        now: Callable[[], float] = time.monotonic,
    ):
        self.folder, self.device, self.budget_s = folder, device, budget_s
        self.command, self.now = command, now
        self.records: list[Record] = []
        self._began = now()

    def run(self, steps: Sequence[Step]) -> list[Record]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("w") as log:
            for place, step in enumerate(steps):
                left = self.budget_s - (self.now() - self._began)
                limit = left * step.weight / sum(each.weight for each in steps[place:])
                self.records.append(self._run(step, limit, log))
                self._write()
        return self.records

    def _run(self, step: Step, limit: float, log: IO[str]) -> Record:
        if missing := find_missing(step.modules):
            return Record(step.name, "skipped", f"not installed: {', '.join(missing)}")
        if limit < LEAST_S:
            return Record(step.name, "out of time", f"only {max(0.0, limit):.1f} s were left")
        log.write(f"== {step.name}, at most {limit:.0f} s\n")
        log.flush()
        began = self.now()
        with tempfile.TemporaryDirectory(prefix="gpu-suite-") as scratch:
            rows = Path(scratch) / "rows.jsonl"
            status, why = _supervise(self.command(step, limit, rows), limit, log, scratch)
            record = Record(step.name, status, why, round(self.now() - began, 2), round(limit, 1))
            for line in rows.read_text().splitlines() if rows.exists() else ():
                with contextlib.suppress(ValueError):  # a line that a kill cut off
                    record.rows.append(json.loads(line))
        ends = [row.pop("why") for row in record.rows if set(row) == {"why"}]
        record.rows = [row for row in record.rows if row]
        record.why = ends[-1] if ends else record.why
        return record

    def _write(self) -> None:
        add_shares([row for record in self.records for row in record.rows])
        value = {
            "suite": 1,
            "device": self.device,
            "budget_s": self.budget_s,
            "seconds": round(self.now() - self._began, 2),
            "steps": [asdict(record) for record in self.records],
        }
        path = self.folder / RESULTS
        beside = path.with_suffix(".json.new")
        beside.write_text(json.dumps(value, indent=1) + "\n")
        beside.replace(path)  # a reader, or a suite that is killed, never leaves half of it


def find_missing(modules: Sequence[str]) -> list[str]:
    """Those of the packages that do not import."""

    def is_there(name: str) -> bool:
        try:
            return importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            return False

    return [name for name in modules if not is_there(name)]


def _supervise(command: list[str], limit: float, log: IO[str], scratch: str) -> tuple[str, str]:
    """(status, why) of a command, which is killed with all its children after `limit` seconds."""
    environment = os.environ | {"TMPDIR": scratch}
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        code = process.wait(limit)
    except subprocess.TimeoutExpired:
        return "out of time", f"it was ended after its {limit:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children too, such as compilers
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if code in STATUSES:
        return STATUSES[code], ""
    return "failed", f"it ended with status {code}: see {LOG}"


def command_for(given: argparse.Namespace) -> Command:
    """The command that runs one step in a process of its own."""

    def command(step: Step, limit: float, rows: Path) -> list[str]:
        options = ["--device", given.device, "--out", str(given.out), "--rows", str(rows)]
        options += ["--seconds", str(max(1.0, limit - MARGIN_S))]
        options += ["--camvid", str(given.camvid)] if given.camvid else []
        return [sys.executable, "-m", "rtseg.scripts.gpu_steps", step.name, *options]

    return command


def prepare_path(wheels: Path, scratch: Path) -> None:
    """Let this process and the steps find the package, and packages brought along as wheels, which
    are unpacked; the machine's own come first."""
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
    sys.path += [str(PACKAGE.parent), str(scratch)]
    before = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.environ["PYTHONPATH"] = os.pathsep.join([*before, str(PACKAGE.parent)])
    # Not in PYTHONPATH, which comes before what is installed: the steps put it at the end.
    os.environ["RTSEG_SUITE_WHEELS"] = str(scratch)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m rtseg.scripts.gpu_suite", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a dry run")
    parser.add_argument("--budget", type=float, default=540, help="seconds for all steps")
    parser.add_argument("--only", nargs="+", choices=[s.name for s in STEPS], help="these steps")
    parser.add_argument("--camvid", type=Path, help="CamVid, or what `gpu_steps pack` made of it")
    parser.add_argument("--wheels", type=Path, default=Path("gpu-wheels"), help="packages to use")
    given = parser.parse_args(arguments)
    given.out, given.camvid = given.out.resolve(), given.camvid and given.camvid.resolve()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the step too
    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as scratch:
        prepare_path(given.wheels, Path(scratch) / "packages")
        os.environ.setdefault("XDG_CACHE_HOME", str(Path(scratch) / "cache"))
        # `torch.compile` searches for minutes, and three steps need what it finds.
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(scratch) / "inductor"))
        suite = Suite(given.out, given.device, given.budget, command_for(given))
        records = suite.run([step for step in STEPS if not given.only or step.name in given.only])
    for record in records:
        why = f": {record.why}" if record.why else ""
        rows = f", {len(record.rows)} rows" if record.rows else ""
        sys.stdout.write(f"{record.step}: {record.status} in {record.seconds:.0f} s{rows}{why}\n")
    sys.stdout.write(f"{given.out / RESULTS}\n")
    return 1 if any(record.status == "failed" for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
