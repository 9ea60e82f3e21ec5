"""Export every variant of the zoo, prove each, and keep a table that a killed run goes on from."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.files import write_atomically
from ..data.scenes import scenes
from ..errors import ProofError, UsageError
from ..models import VARIANTS, build, count
from ..models.loading import open_source
from .export import export
from .graph import DTYPES

TABLE = "zoo.json"
DEFAULT_TARGETS = ("onnx", "openvino", "tensorrt")
WHY = 300  # characters of an error that the table keeps; the whole of it goes to a file


@dataclass(frozen=True)
class Job:
    """One row's work: a variant at a size (height, width) in a precision, to some targets."""

    model: str
    size: tuple[int, int]
    precision: str
    targets: tuple[str, ...]
    scenes: int

    @property
    def name(self) -> str:
        return f"{self.model}_{self.size[0]}x{self.size[1]}_{self.precision}"


@dataclass
class Row:
    """What became of a job. Sizes are bytes of the files by target, weights included; `layers` and
    `build_seconds` are the engine's; `runs` the verdicts of every way it was run; `faults` empty if
    nothing failed."""

    model: str
    size: str
    precision: str
    targets: tuple[str, ...]
    scenes: int
    version: str = __version__
    params: int = 0
    macs: int = 0
    bytes: dict[str, int] = field(default_factory=dict)
    layers: int | None = None
    build_seconds: float | None = None
    seconds: float = 0.0
    weights_from: str = ""
    tools: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def key(self) -> str:
        return f"{self.model}_{self.size}_{self.precision}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def answers(self, job: Job) -> bool:
        """It passed, and holds all that the job asks for, by this version of the package."""
        whole = set(job.targets) <= set(self.targets) and job.scenes <= self.scenes
        return whole and not self.faults and self.version == __version__


def export_all(
    names: Sequence[str],
    size: tuple[int, int],
    out: Path,
    *,
    precisions: Sequence[str] = ("fp16", "fp32"),
    targets: Sequence[str] = DEFAULT_TARGETS,
    frames: int = 1,
    keep: bool = True,
    progress: Callable[[str], None] = lambda step: None,
) -> list[Row]:
    """Export variants at `size` (height, width), those of few parameters first, one at a time.

    Each variant and precision runs in a process of its own, which gives its memory back, and a
    failure of it, a crash too, becomes its row's fault. `frames`: drawn scenes to prove it on.
    keep=False deletes its files once they are in the table. After every row `zoo.json` in `out` is
    written anew; passed rows that stand there already are not made again. Returns the wanted rows.

    Raises ValueError for an unknown variant or precision, or a table of another format.
    """
    if unknown := [name for name in names if name not in VARIANTS]:
        build(unknown[0])  # says what the name might have been
    if unknown := [precision for precision in precisions if precision not in DTYPES]:
        raise UsageError(f"precision is {' or '.join(DTYPES)}, not {unknown[0]!r}")
    held = read_rows(out / TABLE)
    jobs = [
        Job(name, size, precision, tuple(targets), frames)
        for precision in precisions
        for name in sorted(names, key=_params)
    ]
    for number, job in enumerate(jobs, 1):
        if job.name in held and held[job.name].answers(job):
            continue
        progress(f"{number} of {len(jobs)}: {job.name}")
        held[job.name] = run_apart(job, out, keep)
        write_rows(out / TABLE, list(held.values()))
    return [held[job.name] for job in jobs]


def matching(patterns: Sequence[str]) -> list[str]:
    """The variants that one of the patterns, such as "sfnet_*", fits; all without a pattern.

    Raises ValueError for a pattern that fits none.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in VARIANTS):
            raise UsageError(f"no variant fits {pattern!r}: `rtseg models` lists them")
    wanted = patterns or ["*"]
    return [name for name in VARIANTS if any(fnmatch(name, pattern) for pattern in wanted)]


def _params(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(name).parameters())


def run_apart(job: Job, out: Path, keep: bool) -> Row:
    """The job's row, made in a fresh process; if that fails or dies, the row says how."""
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            row = pool.submit(run_job, job, out, keep).result()
        except Exception as error:
            row = _failed(job, error, out)
    row.seconds = round(time.monotonic() - began, 1)
    return row


def _failed(job: Job, error: Exception, out: Path) -> Row:
    log = out / f"{job.name}.error.txt"
    write_atomically(log, "".join(traceback.format_exception(error)).encode())
    why = " ".join(f"{type(error).__name__}: {error}".split())[:WHY]
    size = f"{job.size[0]}x{job.size[1]}"
    return Row(
        job.model, size, job.precision, job.targets, job.scenes, faults=[f"{why} (log: {log.name})"]
    )


def run_job(job: Job, out: Path, keep: bool) -> Row:
    """Export and prove in this process. Raises what `export` raises, but for a failed proof, which
    is in the row's faults."""
    source = open_source(job.model)
    frames = [(f"scene {i}", scene) for i, scene in enumerate(scenes(job.scenes, job.size))]
    cost = count(source.network, job.size)
    with _folder(out, keep) as folder:
        with suppress(ProofError):  # the report has the figures
            export(
                source.network,
                [job.size],
                job.targets,
                job.precision,
                out=folder,
                classes=source.classes,
                weights_from=source.weights_from,
                trained=source.trained,
                frames=frames,
            )
        row = _row(job, folder)
    row.params, row.macs, row.weights_from = cost.params, cost.macs, source.weights_from
    return row


@contextmanager
def _folder(out: Path, keep: bool) -> Iterator[Path]:
    if keep:
        yield out
        return
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".zoo-") as folder:
        yield Path(folder)


def _row(job: Job, folder: Path) -> Row:
    """Gathers a job's row from the export's report and its files."""
    size = f"{job.size[0]}x{job.size[1]}"
    row = Row(job.model, size, job.precision, job.targets, job.scenes)
    report = json.loads((folder / "report.json").read_text())
    for name, entry in report.items():
        if not name.startswith(f"{job.name}."):
            continue
        row.bytes[entry["target"]] = _bytes(folder, name)
        row.tools |= entry["tools"]
        row.runs += entry["runs"]
        if entry["engine"]:
            row.layers = entry["engine"]["layers"]
            row.build_seconds = entry["engine"]["build_seconds"]
        row.faults += [
            f"{run['backend']} {run['precision']}: {fault}"
            for run in entry["runs"]
            if run["precision"] != "bf16"  # optional: the runtime leaves it out where it falls
            for fault in run["faults"]
        ]
    return row


def _bytes(folder: Path, name: str) -> int:
    """Bytes of an artifact, with the weights that OpenVINO keeps in a file of their own."""
    weights = folder / name.replace(".xml", ".bin")
    return sum(path.stat().st_size for path in {folder / name, weights})


def read_rows(table: Path) -> dict[str, Row]:
    """The rows of a `zoo.json` by their keys; {} if there is none yet."""
    if not table.is_file():
        return {}
    try:
        rows = [Row(**entry) for entry in json.loads(table.read_text())]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{table} is not a table of this version: move it away") from error
    return {row.key: row for row in rows}


def write_rows(table: Path, rows: Sequence[Row]) -> None:
    """Write the table as JSON, and beside it for people as `zoo.md`."""
    from .all_table import markdown

    write_atomically(table, (json.dumps([row.as_json() for row in rows], indent=1) + "\n").encode())
    write_atomically(table.with_suffix(".md"), markdown(rows).encode())
