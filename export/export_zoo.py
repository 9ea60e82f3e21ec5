"""Export every variant of the zoo, prove each, and keep a table from which a killed run resumes."""

from __future__ import annotations

import json
import multiprocessing
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..data.files import scratch_folder, write_atomically
from ..data.limits import read_json
from ..data.scenes import scenes
from ..errors import ProofError, UsageError
from ..models import VARIANTS, build, count
from ..models.loading import load_model
from ..reporting import Progress, Table
from .export import export
from .graph import DTYPES

TABLE = "zoo.json"
DEFAULT_TARGETS = ("onnx", "openvino", "tensorrt")
WHY = 300  # characters of an error that the table keeps; the whole of it goes to a file
HEADINGS = (
    "variant",
    "M params",
    "GMACs",
    "ONNX, MiB",
    "engine, MiB",
    "TensorRT layers",
    "engine built, s",
    "ONNX Runtime",
    "OpenVINO",
    "OpenVINO, bf16",
    "verdict",
)
OPTIONAL = ("OpenVINO, bf16", "engine built, s", "TensorRT layers", "engine, MiB", "ONNX, MiB")


@dataclass(frozen=True)
class ZooJob:
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
class ZooRow:
    """What became of a job.

    Attributes:
        bytes: of the files by target, weights included.
        layers, build_seconds: of the engine.
        runs: results of every way it was run.
        faults: empty if nothing failed.
    """

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

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def answers(self, job: ZooJob) -> bool:
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
    progress: Progress = lambda step, share: None,
) -> list[ZooRow]:
    """Export variants one at a time, those of few parameters first.

    Each variant and precision runs in a process of its own, which gives its memory back, and a
    failure of it, a crash too, becomes its row's fault. After every row `zoo.json` in `out` is
    written anew; passed rows that stand there already are not made again.

    Args:
        names: of variants.
        size: (height, width) in pixels.
        out: folder for the table and the files.
        precisions: as `export` takes them.
        targets: likewise.
        frames: drawn scenes to prove each on.
        keep: False deletes its files once they are in the table.
        progress: called with what is being done and the share of it that is done, 0..1.

    Returns:
        The wanted rows.

    Raises:
        UsageError: a variant or precision is unknown, or the table is of another format.
    """
    if unknown := [name for name in names if name not in VARIANTS]:
        build(unknown[0])  # says what the name might have been
    if unknown := [precision for precision in precisions if precision not in DTYPES]:
        raise UsageError(f"precision is {' or '.join(DTYPES)}, not {unknown[0]!r}")
    held = read_rows(out / TABLE)
    jobs = [
        ZooJob(name, size, precision, tuple(targets), frames)
        for precision in precisions
        # Small ones first: what is wrong everywhere shows early.
        for name in sorted(names, key=_params)
    ]
    for number, job in enumerate(jobs, 1):
        if job.name in held and held[job.name].answers(job):
            continue
        progress(f"{number} of {len(jobs)}: {job.name}", (number - 1) / len(jobs))
        held[job.name] = run_in_process(job, out, keep)
        # After every row: a killed run resumes from here.
        write_rows(out / TABLE, list(held.values()))
    return [held[job.name] for job in jobs]


def select_variants(patterns: Sequence[str]) -> list[str]:
    """The variants that match one of the patterns, such as "sfnet_*"; all without a pattern.

    Raises:
        UsageError: a pattern matches none.
    """
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in VARIANTS):
            raise UsageError(f"no variant fits {pattern!r}: `rtseg models` lists them")
    wanted = patterns or ["*"]
    return [name for name in VARIANTS if any(fnmatch(name, pattern) for pattern in wanted)]


def _params(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(name).parameters())


def run_in_process(job: ZooJob, out: Path, keep: bool) -> ZooRow:
    """The job's row, made in a fresh process; if that fails or dies, the row says how."""
    began = time.monotonic()
    # Not fork: PyTorch and ONNX Runtime have threads running by now.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            row = pool.submit(run_job, job, out, keep).result()
        # A crash too: the pool then raises that its process died.
        except Exception as error:
            row = _failed_row(job, error, out)
    row.seconds = round(time.monotonic() - began, 1)
    return row


def _failed_row(job: ZooJob, error: Exception, out: Path) -> ZooRow:
    log = out / f"{job.name}.error.txt"
    write_atomically(log, "".join(traceback.format_exception(error)).encode())
    why = " ".join(f"{type(error).__name__}: {error}".split())[:WHY]
    size = f"{job.size[0]}x{job.size[1]}"
    return ZooRow(
        job.model, size, job.precision, job.targets, job.scenes, faults=[f"{why} (log: {log.name})"]
    )


def run_job(job: ZooJob, out: Path, keep: bool) -> ZooRow:
    """Export and prove in this process. Raises what `export` raises, but for a failed proof, which
    is in the row's faults."""
    source = load_model(job.model)
    frames = [(f"scene {i}", scene) for i, scene in enumerate(scenes(job.scenes, job.size))]
    cost = count(source.network, job.size)
    with nullcontext(out) if keep else scratch_folder(out, "zoo") as folder:
        with suppress(ProofError):  # the report has the figures
            export(source, job.size, job.targets, job.precision, out=folder, frames=frames)
        row = _row(job, folder)
    row.params, row.macs, row.weights_from = cost.params, cost.macs, source.weights_from
    return row


def _row(job: ZooJob, folder: Path) -> ZooRow:
    """Gathers a job's row from the export's report and its files."""
    size = f"{job.size[0]}x{job.size[1]}"
    row = ZooRow(job.model, size, job.precision, job.targets, job.scenes)
    report = read_json(folder / "report.json")
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


def read_rows(table: Path) -> dict[str, ZooRow]:
    """The rows of a `zoo.json` by their keys; {} if there is none yet."""
    if not table.is_file():
        return {}
    try:
        rows = [ZooRow(**entry) for entry in read_json(table)]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{table} is not a table of this version: move it away") from error
    return {row.key: row for row in rows}


def write_rows(table: Path, rows: Sequence[ZooRow]) -> None:
    """Write the table as JSON, and beside it for people as `zoo.md`."""
    write_atomically(table, (json.dumps([row.as_dict() for row in rows], indent=1) + "\n").encode())
    write_atomically(table.with_suffix(".md"), write_markdown(rows).encode())


def write_markdown(rows: Sequence[ZooRow]) -> str:
    """A table per size and precision, what they mean above, what failed below."""
    parts = [EXPLANATION]
    for title in dict.fromkeys((row.size, row.precision) for row in rows):
        chosen = [row for row in rows if (row.size, row.precision) == title]
        parts += [
            f"## {title[0]}, {title[1]}",
            _summary(chosen),
            Table(HEADINGS, [_cells(row) for row in chosen]).markdown(),
        ]
    if faults := list_faults(rows):
        parts += ["## What failed", "\n".join(f"- {fault}" for fault in faults)]
    tools: dict[str, str] = {}
    for row in rows:
        tools |= row.tools
    parts.append(f"Made with {', '.join(f'{n} {v}' for n, v in sorted(tools.items()))}.")
    return "\n\n".join(parts) + "\n"


EXPLANATION = """# Exports of the whole zoo

Every variant, exported and proven by `rtseg export --all`; written by that command.

Runs are given as the share of pixels with the label of the float32 PyTorch network, and the root \
mean square error of the logits over the logits' own (bars: 0.001 in fp32, 0.02 in fp16). Random \
weights give neighboring logits nearly equal values, so that their share of equal labels is \
reported and not judged; no pixel may differ where the network was sure. OpenVINO's bfloat16 is \
optional: where it is below its bar, marked (!), the runtime computes in float32. TensorRT layers \
are those of the parsed network, before fusion, frame in and labels out included. Engines are \
built without a GPU and proven on the first machine that loads them."""


def _summary(rows: Sequence[ZooRow]) -> str:
    failed = sum(bool(row.faults) for row in rows)
    targets = " or ".join(sorted({", ".join(row.targets) for row in rows}))
    scenes = min(row.scenes for row in rows)
    return (
        f"{len(rows)} exported to {targets}, {failed} failed; each proven on {scenes} drawn "
        f"{'scene' if scenes == 1 else 'scenes'}."
    )


def _cells(row: ZooRow) -> list[str]:
    return [
        f"`{row.model}`" + ("" if row.weights_from.startswith("random") else " (trained)"),
        f"{row.params / 1e6:.2f}",
        f"{row.macs / 1e9:.1f}",
        _mebibytes(row, "onnx"),
        _mebibytes(row, "tensorrt"),
        "-" if row.layers is None else str(row.layers),
        "-" if row.build_seconds is None else f"{row.build_seconds:.1f}",
        _run(row, "onnxruntime"),
        _run(row, "openvino"),
        _run(row, "openvino", "bf16"),
        "**failed**" if row.faults else "passed",
    ]


def build_table(rows: Sequence[ZooRow]) -> Table:
    """For a terminal: the reasons of failed rows are in `list_faults`."""
    cells = [
        [*(cell.replace("`", "").replace("*", "") for cell in _cells(row)), row.precision]
        for row in rows
    ]
    return Table([*HEADINGS, "precision"], cells, optional=OPTIONAL)


def list_faults(rows: Sequence[ZooRow]) -> list[str]:
    """One line for each fault, under the key of its row."""
    return [f"{row.key}: {fault}" for row in rows for fault in row.faults]


def _mebibytes(row: ZooRow, target: str) -> str:
    return f"{row.bytes[target] / 2**20:.1f}" if target in row.bytes else "-"


def _run(row: ZooRow, backend: str, precision: str | None = None) -> str:
    """Agreement in % and logits error of a run, such as "99.98, 2e-04"."""
    for run in row.runs:
        if run["backend"] == backend and run["precision"] == (precision or row.precision):
            error = run["logits_error"]
            shown = f"{100 * run['agreement']:.2f}" + ("" if error is None else f", {error:.0e}")
            return shown + (" (!)" if run["faults"] else "")
    return "-"
