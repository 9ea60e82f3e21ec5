"""What the tests of the GPU suite share: a run of it, steps made up, a job and its rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rtseg.scripts.gpu_job import DRY, Job
from rtseg.scripts.gpu_suite import LOG, RESULTS, Step, Suite


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


def suite(folder: Path, budget_s: float, programs: dict[str, str]) -> Suite:
    """Steps that are programs of Python; ROWS is the file for their rows."""

    def command(step: Step, limit: float, rows: Path) -> list[str]:
        program = f"import json, os, subprocess, sys, time\nROWS = {str(rows)!r}\n"
        program += "def row(**facts):\n    open(ROWS, 'a').write(json.dumps(facts) + '\\n')\n"
        return [sys.executable, "-c", program + programs[step.name]]

    return Suite(folder, "cpu", budget_s, command)


def job_of(folder: Path, **plan: Any) -> Job:
    job = Job("cuda", folder / "rows.jsonl", folder, time.monotonic() + 3600)
    job.plan = replace(DRY, **plan)
    return job


def rows_of(job: Job) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.rows.read_text().splitlines()]
