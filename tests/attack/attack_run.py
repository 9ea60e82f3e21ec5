"""Cases, the processes that run them, and the judge of what came of them.

A case is right if the command did what it should in spite of what it was given, or ended with one
clear line and the exit code of an error; and if nothing is left behind: no file under a final name
that is not whole, no temporary file, no process, no shared memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

import cv2
import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIMIT_S = 120.0  # on a machine with other work; what hangs hangs longer
MEMORY = 6 << 30  # of addresses, beyond those of the imports
MOST_MB = 2500  # resident, imports included
FILE_SIZE = 1 << 30
MOST_OUTPUT = 16_000  # characters on stderr
RIGHT, ONE_LINE, WRONG = "right", "one line", "wrong"
# Lines of a run that goes on beside what is damaged, of the progress bar, and of two decoders that
# write to stderr themselves.
ASIDE = re.compile(
    r"(skipped: |\S+ +[━╸╺ ]+ |\{\"time\"|\d\d:\d\d:\d\d |rtseg: .* is called .* now|libpng |"
    r"Corrupt JPEG data|Invalid SOS|Premature end of JPEG|Unsupported marker|warning: |"
    r"classes in no image: |\w+, \d+ classes \(|[a-z ]+: \d+, first |python -c )"
)

Build = Callable[[Path], None]
Judge = Callable[[Path, "Outcome"], str]


@dataclass(frozen=True)
class Outcome:
    """What a case did, as `attack_server.run` tells it. code: negative for a signal."""

    code: int
    seconds: float
    peak_mb: int
    timed_out: bool
    survivors: list[str]
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes:
        format: the row of the table.
        name: unique in its format.
        build: writes the input into `in` of the case's folder.
        argv: of the command; or probe: module:function that gets the case's folder.
        judge: what is wrong with a run that ended well, "" if nothing is.
        may_pass: whether exit code 0 can be right at all.
        leaves: names that an error may leave, as a regular expression.
        shoot: a signal and the seconds after which it is sent.
    """

    format: str
    name: str
    build: Build
    argv: tuple[str, ...] | None = None
    probe: str | None = None
    judge: Judge = lambda folder, outcome: ""
    may_pass: bool = True
    leaves: str = ""
    shoot: tuple[int, float] | None = None
    file_size: int = FILE_SIZE
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.format}: {self.name}"


@dataclass(frozen=True)
class Verdict:
    """What became of a case: right, one line or wrong, and why."""

    case: Case
    kind: str
    why: str
    outcome: Outcome


class Server:
    """The process of `attack_server.py`."""

    def __init__(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(
                [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "attack_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        assert self._read() == "ready"

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, **case: Any) -> Outcome:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        return Outcome(**json.loads(self._read()))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:  # libraries' threads that do not end
            self.process.kill()
            self.process.wait()


def run_case(case: Case, server: Server, parent: Path) -> Verdict:
    """Build a case's input, run it, judge it and clear up."""
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="case-"))
    try:
        (folder / "in").mkdir()
        (folder / "tmp").mkdir()
        case.build(folder)
        before = _tree(folder)
        shared = set(os.listdir("/dev/shm"))
        outcome = server.ask(
            folder=str(folder),
            argv=None if case.argv is None else list(case.argv),
            probe=case.probe,
            limit_s=LIMIT_S,
            memory=MEMORY,
            file_size=case.file_size,
            signal=case.shoot,
            environment=case.environment,
        )
        kind, why = judge(case, folder, outcome, before)
        left = {name for name in set(os.listdir("/dev/shm")) - shared if "rtseg" in name}
        if left and kind != WRONG:
            kind, why = WRONG, f"left in shared memory: {', '.join(sorted(left))}"
        return Verdict(case, kind, why, outcome)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge(
    case: Case, folder: Path, outcome: Outcome, before: dict[str, tuple[int, int]]
) -> tuple[str, str]:
    """(right, one line or wrong; why)."""
    for wrong, why in (
        (outcome.timed_out, f"not done within {LIMIT_S:.0f} s"),
        (outcome.survivors, f"processes left: {outcome.survivors}"),
        (outcome.peak_mb > MOST_MB, f"took {outcome.peak_mb} MB"),
        (len(outcome.stderr) > MOST_OUTPUT, f"{len(outcome.stderr)} characters on stderr"),
        ("Traceback" in outcome.stderr, f"a traceback: {_last(outcome.stderr)}"),
    ):
        if wrong:
            return WRONG, why
    if why := _find_left(case, folder, outcome, before):
        return WRONG, why
    if outcome.code == 0:
        if not case.may_pass:
            return WRONG, f"taken: {_last(outcome.stdout) or _last(outcome.stderr)}"
        why = find_noise(outcome.stderr, told=False) or case.judge(folder, outcome)
        return (WRONG, why) if why else (RIGHT, "")
    if case.shoot and outcome.code in (130, 143, -case.shoot[0]):
        return ONE_LINE, "stopped"
    if outcome.code not in (1, 2):
        return WRONG, f"exit code {outcome.code}: {_last(outcome.stderr)}"
    why = find_noise(outcome.stderr, told=True, quiet=bool(outcome.stdout))
    return (WRONG, why) if why else (ONE_LINE, _last(outcome.stderr))


def find_noise(stderr: str, told: bool, quiet: bool = False) -> str:
    """What is wrong with the lines on stderr. told: an error needs its one line, unless `quiet`,
    which is where stdout has the answer."""
    lines = [line for line in stderr.replace("\r", "\n").splitlines() if line.strip()]
    if lines and lines[0].startswith("Usage: "):  # the command line's own form
        errors = [line for line in lines if line.startswith("Error: ")]
        return "" if len(errors) == 1 else f"{len(errors)} errors: {lines[-1]}"
    lines = [line for line in lines if not ASIDE.match(line)]
    errors = [line for line in lines if line.startswith("rtseg: ")]
    if strays := [line for line in lines if not line.startswith(("rtseg: ", "live page: "))]:
        return f"{len(strays)} lines of others, first: {strays[0][:200]}"
    if told and len(errors) != 1 and not (quiet and not errors):
        return f"{len(errors)} lines instead of one: {' / '.join(errors)[:300]}"
    return ""


def _find_left(
    case: Case, folder: Path, outcome: Outcome, before: dict[str, tuple[int, int]]
) -> str:
    after = _tree(folder)
    if changed := [
        n for n, facts in before.items() if n.startswith("in/") and after.get(n) != facts
    ]:
        return f"the input was changed: {changed[0]}"
    allowed = re.compile(case.leaves) if case.leaves else None
    for name in sorted(set(after) - set(before)):
        if allowed and allowed.search(name):
            continue
        path = folder / name
        if name.startswith("tmp/") or path.name.startswith(".") or ".partial" in path.name:
            return f"left: {name}"
        if outcome.code not in (0, 1) or not is_whole(path):
            return f"left{'' if outcome.code in (0, 1) else ' after an error'}: {name}"
    return ""


def is_whole(path: Path) -> bool:
    """Whether a file's content is what its name says."""
    try:
        if path.suffix == ".png":
            content = np.fromfile(path, np.uint8)
            return cv2.imdecode(content, cv2.IMREAD_UNCHANGED) is not None
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".npz":
            with np.load(path) as content:
                return len(content.files) > 0
        if path.suffix == ".mp4":
            return cv2.VideoCapture(str(path)).isOpened()
    except (OSError, ValueError):
        return False
    return path.stat().st_size > 0


def _tree(folder: Path) -> dict[str, tuple[int, int]]:
    """(size, time of the last change) by name of all that are no folders."""
    return {
        path.relative_to(folder).as_posix(): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if not path.is_dir() or path.is_symlink()
    }


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def run_all(
    cases: Sequence[Case],
    workers: int = 1,
    seen: Callable[[Verdict], None] = lambda verdict: None,
) -> list[Verdict]:
    """All verdicts, in the cases' order."""
    servers: Queue[Server] = Queue()
    for _ in range(workers):
        servers.put(Server())

    def one(case: Case) -> Verdict:
        server = servers.get()
        try:
            verdict = run_case(case, server, Path(parent))
        finally:
            servers.put(server)
        seen(verdict)
        return verdict

    with (
        tempfile.TemporaryDirectory(prefix="rtseg-attack-") as parent,
        ThreadPoolExecutor(workers) as pool,
    ):
        verdicts = list(pool.map(one, cases))
    while not servers.empty():
        servers.get().close()
    return verdicts


def build_table(verdicts: Iterable[Verdict]) -> str:
    """Markdown: cases of each format, how many were right, told in one line, and wrong."""
    rows: dict[str, dict[str, int]] = defaultdict(
        lambda: dict.fromkeys((RIGHT, ONE_LINE, WRONG), 0)
    )
    for verdict in verdicts:
        rows[verdict.case.format][verdict.kind] += 1
    lines = ["| format | cases | right | one line | wrong |", "| --- | --- | --- | --- | --- |"]
    total = dict.fromkeys((RIGHT, ONE_LINE, WRONG), 0)
    for name, row in rows.items():
        lines.append(_row(name, row))
        total = {kind: total[kind] + row[kind] for kind in total}
    return "\n".join([*lines, _row("**all**", total)])


def _row(name: str, counts: dict[str, int]) -> str:
    return f"| {name} | {sum(counts.values())} | {' | '.join(map(str, counts.values()))} |"
