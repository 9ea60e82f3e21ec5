"""Precisions that pay off on this machine: time against mIoU, and the worst class's loss."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.datasets import SegmentationData
from ..errors import ProofError, UsageError
from ..export import export
from ..export.calibrate import Calibration
from ..models.loading import Model
from ..reporting import Progress, Table
from ..runtime import Segmenter, load
from ..runtime.backends.backend import is_installed
from ..train.evaluate import Confusion, evaluate_frames
from .timing import Lane, Limits, race, warm_up

if TYPE_CHECKING:
    from rich.console import RenderableType

# A gain below this is noise: runs of one file on a quiet machine differ by about as much.
LEAST_GAIN = 0.03
RUNS = 200  # of each way; the 99th percentile is then the third largest time
BACKENDS = ("openvino", "onnxruntime")
PRECISIONS = ("fp32", "fp16", "int8")  # of files; bf16 is how OpenVINO may compute in them


@dataclass(frozen=True)
class Way:
    """A file and how it is run. precision: of the file, computes: of what is not int8 in it."""

    path: Path
    backend: str
    precision: str
    computes: str

    @property
    def name(self) -> str:
        alone = self.precision in ("fp32", self.computes)
        kind = self.computes if alone else f"{self.precision} + {self.computes}"
        return f"{self.backend} {kind}"

    def open(self, threads: int | None) -> Segmenter:
        options: dict[str, Any] = {"threads": threads}
        if self.backend == "openvino":
            options["precision"] = self.computes
        return load(self.path, backend=self.backend, device="cpu", **options)


@dataclass(frozen=True)
class ParetoPoint:
    """What a way takes and gives. Times are of a call, frame in to labels out, in milliseconds;
    miou and worst_loss (of IoU, against the first way in float32) are fractions; front: whether no
    other way is as exact and at least LEAST_GAIN faster or as fast, else `why` names it."""

    way: str
    precision: str
    median_ms: float
    p99_ms: float
    miou: float
    worst_class: str
    worst_loss: float
    front: bool = True
    why: str = ""


@dataclass(frozen=True)
class ParetoFront:
    """The points, fastest first, and what there is to say of int8: `int8` is whether it pays.
    left_out: precisions (also as "int8 in onnxruntime") that no file holds the parity bar in, and
    why."""

    model: str
    size: tuple[int, int]
    images: int
    threads: int
    runs: int
    points: tuple[ParetoPoint, ...]
    int8: bool
    advice: str
    left_out: dict[str, str]

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "size": f"{self.size[0]}x{self.size[1]}"}, indent=2)

    def figures(self) -> Table:
        """A row a way, fastest first."""
        header = ["run by", "median ms", "p99 ms", "mIoU %", "worst class", "front"]
        rows = [
            [
                point.way,
                f"{point.median_ms:.1f}",
                f"{point.p99_ms:.1f}",
                f"{100 * point.miou:.2f}",
                f"{point.worst_class} {-100 * point.worst_loss:+.2f}",
                "yes" if point.front else "no",
            ]
            for point in self.points
        ]
        title = (
            f"{self.model} {self.size[0]}x{self.size[1]} on {self.threads} threads, "
            f"{self.runs} runs each in turn; mIoU on {self.images} frames"
        )
        return Table(header, rows, title, words=["worst class"])

    def table(self) -> RenderableType:
        """The figures, and what there is to say of them, for a terminal."""
        from rich.console import Group
        from rich.text import Text

        whys = [f"{p.way}: {p.why}" for p in self.points if p.why]
        whys += [f"{name} is left out: {why}" for name, why in self.left_out.items()]
        notes = [Text(line, style="dim") for line in whys]
        return Group(self.figures(), *notes, Text(self.advice))


def pareto(
    model: Model,
    size: tuple[int, int],
    data: SegmentationData,
    calibration: Calibration,
    *,
    threads: int | None = None,
    runs: int = RUNS,
    images: int | None = None,
    progress: Progress = lambda step, share: None,
) -> ParetoFront:
    """Hold each way to run a network on this machine's CPU against its mIoU.

    Args:
        model: exported in float32, float16 and int8, each run in every way that the CPU has.
        size: (height, width) in pixels.
        data: labeled frames.
        calibration: frames for int8.
        threads: by default `system.usable_cores()`.
        runs: timed calls of each way, in turns.
        images: how many of `data` to score, spread over it; by default all.
        progress: called with what is being done and the share of it that is done, 0..1.

    Raises:
        ExportError: as `export` does.
        UsageError: where no CPU backend is installed.
    """
    if not any(is_installed(backend) for backend in BACKENDS):
        raise UsageError('no CPU backend is installed: pip install "rtseg[openvino]"')
    # Spread over the split: frames beside each other in a drive are nearly the same.
    chosen = np.linspace(0, len(data) - 1, min(images or len(data), len(data))).round().astype(int)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_ones:
        files, failed = _files(model, size, calibration, Path(folder), progress)
        ways = _ways(files)
        running = [open_ones.enter_context(way.open(threads)) for way in ways]
        progress("time, all ways in turn", 0.0)
        # A few, decoded before: reading files would be in the times.
        times = _times(running, [data[i].image for i in chosen[:32].tolist()], runs)
        counts: list[Confusion] = []
        for way, segment in zip(ways, running, strict=True):
            progress(f"mIoU of {way.name}", len(counts) / len(ways))
            counts.append(evaluate_frames(segment, data, chosen.tolist()).confusion)
        used = running[0].info.threads or 1
    points = judge_points(
        [
            _point(way, spent, count, counts[0], data.classes.names)
            for way, spent, count in zip(ways, times, counts, strict=True)
        ]
    )
    pays, advice = _advice(points, failed.get("int8", ""))
    name = model.network.info.name
    return ParetoFront(name, size, len(chosen), used, runs, tuple(points), pays, advice, failed)


def _files(
    model: Model,
    size: tuple[int, int],
    calibration: Calibration,
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, dict[str, Path]], dict[str, str]]:
    """By precision, the file that each CPU backend reads; and why others are not there."""
    here = [backend for backend in BACKENDS if is_installed(backend)]
    files: dict[str, dict[str, Path]] = {}
    failed: dict[str, str] = {}

    def make(precision: str, targets: Sequence[str]) -> list[Path]:
        calib = calibration if precision == "int8" else None
        made = export(
            model, size, targets, precision, out=folder, calib=calib, progress=progress
        )  # fmt: skip
        return [artifact.path for artifact in made]

    for precision in PRECISIONS:
        # In int8 each has a form of its own: ONNX Runtime is slow on the one that others read.
        own = ("onnxruntime",) if precision == "int8" else ()
        forms = {each: each if each in own else "onnx" for each in here}
        targets = list(dict.fromkeys(forms.values()))
        try:
            paths = dict(zip(targets, make(precision, targets), strict=True))
        except ProofError as error:
            if precision == "fp32":
                raise
            if len(targets) == 1:
                failed[precision] = str(error)
                continue
            try:
                paths = {"onnx": make(precision, ["onnx"])[0]}
            except ProofError as alone:
                failed[precision] = str(alone)
                continue
            failed[f"{precision} in onnxruntime"] = str(error)
        files[precision] = {b: paths[form] for b, form in forms.items() if form in paths}
    return files, failed


def _ways(files: Mapping[str, Mapping[str, Path]]) -> list[Way]:
    return [
        Way(path, backend, precision, computes)
        for precision, paths in files.items()
        for backend, path in paths.items()
        for computes in _computes(backend, precision)
    ]


def _computes(backend: str, precision: str) -> list[str]:
    """What a backend can compute a file's float layers in, on this machine.

    OpenVINO runs a float16 file in float32 where the CPU has no float16 arithmetic.
    """
    if backend != "openvino":
        return ["fp16" if precision == "fp16" else "fp32"]
    able = _capabilities()
    if precision == "fp16":
        return ["fp16" if "FP16" in able else "fp32"]
    return ["fp32", "bf16"] if "BF16" in able else ["fp32"]


def _capabilities() -> list[str]:
    """What OpenVINO finds this CPU to have in hardware."""
    from ..runtime.backends.openvino import the_core

    return list(the_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _times(
    running: Sequence[Segmenter], frames: Sequence[NDArray[np.uint8]], runs: int
) -> list[NDArray[np.float64]]:
    """Milliseconds of each call, by way; they race, so that a busy moment meets all."""
    lanes = []
    for segment in running:
        following = itertools.cycle(frames)
        call = partial(_next, segment, following)
        warm_up(call)
        lanes.append(Lane({"call": call}))
    # By runs, not by seconds: the 99th percentiles are compared, and need as many of each.
    race(lanes, Limits(runs=runs, seconds=float("inf")))
    return [lane.times("call") for lane in lanes]


def _next(segment: Segmenter, frames: Iterator[NDArray[np.uint8]]) -> object:
    return segment(next(frames))


def _point(
    way: Way,
    spent: NDArray[np.float64],
    count: Confusion,
    reference: Confusion,
    names: Sequence[str],
) -> ParetoPoint:
    # A class that is in no frame loses nothing.
    loss = np.nan_to_num(reference.iou() - count.iou())
    worst = int(loss.argmax())
    return ParetoPoint(
        way=way.name,
        precision=way.precision,
        median_ms=float(np.median(spent)),
        p99_ms=float(np.percentile(spent, 99)),
        miou=count.miou(),
        worst_class=names[worst],
        worst_loss=float(loss[worst]),
    )


def judge_points(points: Sequence[ParetoPoint]) -> list[ParetoPoint]:
    """The points fastest first; those off the front say which one beats them.

    int8 has to be clearly faster than what is as exact: a gain below LEAST_GAIN is none.
    """
    judged = []
    # By the 99th percentile: a vehicle's deadline is missed by slow frames, not by the median.
    for point in sorted(points, key=lambda point: point.p99_ms):
        # Only int8 has to earn its place: it is the one that needs calibration, and costs accuracy.
        slack = 1 + LEAST_GAIN if point.precision == "int8" else 1.0
        better = [
            other
            for other in points
            if other is not point
            and other.miou >= point.miou
            and other.p99_ms <= point.p99_ms * slack
            and (other.miou, other.p99_ms) != (point.miou, point.p99_ms)
            and (other.precision != "int8" or other.p99_ms < point.p99_ms)
        ]
        if not better:
            judged.append(point)
            continue
        best = max(better, key=lambda other: other.miou)
        why = (
            f"{best.way} has a p99 of {best.p99_ms:.1f} ms against {point.p99_ms:.1f} ms, and "
            f"{best.miou:.2%} mIoU against {point.miou:.2%}"
        )
        judged.append(replace(point, front=False, why=why))
    return judged


def _advice(points: Sequence[ParetoPoint], failed: str) -> tuple[bool, str]:
    if failed:
        return False, f"int8 is refused: {failed}"
    of_int8 = [point for point in points if point.precision == "int8"]
    kept = [point for point in of_int8 if point.front]
    if kept:
        fastest = kept[0]
        return True, (
            f"int8 pays on this machine, run by {fastest.way}: {fastest.p99_ms:.1f} ms, "
            f"{fastest.miou:.2%} mIoU; {fastest.worst_class} moves most, by "
            f"{-100 * fastest.worst_loss:+.2f} points"
        )
    return False, f"int8 is refused on this machine: {of_int8[0].way} is beaten, {of_int8[0].why}"
