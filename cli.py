"""The front door: one thin function per subcommand. Only this file prints."""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from typer import Argument, Option

from . import __version__

if TYPE_CHECKING:
    from .data.classes import ClassSet

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Street-scene segmentation: export a network, prove it, measure it, run it.",
)
out = Console()
err = Console(stderr=True)


class Target(str, Enum):
    onnx = "onnx"
    tensorrt = "tensorrt"
    openvino = "openvino"
    torch = "torch"


class Precision(str, Enum):
    fp32 = "fp32"
    fp16 = "fp16"


class Outputs(str, Enum):
    labels = "labels"
    logits = "logits"
    both = "both"


class JobFailed(Exception):
    """The command ran and its answer is no: exit code 1, after the message if there is one."""


Json = Annotated[bool, Option("--json", help="Print one JSON value and nothing else on stdout.")]
Sizes = Annotated[
    list[str] | None, Option("--size", help="HxW in pixels, such as 512x1024; may be repeated.")
]
Classes = Annotated[
    str | None, Option(help="Class set: cityscapes, camvid, or a YAML file of your own.")
]
Device = Annotated[str | None, Option(help="cpu, cuda or cuda:N.")]


@app.callback()
def options(
    debug: Annotated[bool, Option("--debug", help="Show tracebacks of errors.")] = False,
    version: Annotated[
        bool, Option("--version", is_eager=True, callback=lambda v: _version(v), help="And stop.")
    ] = False,
) -> None:
    pass


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"rtseg {__version__}")
        raise typer.Exit


@app.command()
def quickstart(
    folder: Annotated[Path, Option("-o", "--out", help="Folder for all that it makes.")] = Path(
        "rtseg-quickstart"
    ),
    model: Annotated[str, Option(help="A name that `rtseg models` lists.")] = "csfcn_nano",
    frames: Annotated[Path | None, Option(help="Folder of images to run on.")] = None,
    seconds: Annotated[float, Option(help="Measuring time for each table row.")] = 2.0,
) -> None:
    """See the whole job once: export, proof, engines, speed at three sizes, segmented frames.

    rtseg quickstart
    """
    need("torch", "PyTorch", "all", "quickstart")
    from .demo.quickstart import run

    with working() as step:
        result = run(folder, model, frames, seconds, step)
    for table in result.tables:
        out.print(table)
    for line in result.notes:
        out.print(line, highlight=False)
    out.print(f"Report: {result.report}", soft_wrap=True)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Show what this machine can do: CPU, GPUs, and each backend or how to get it.

    rtseg doctor
    """
    from .speed.doctor import examine

    findings = examine()
    show(findings.to_json(), findings.table(), as_json)


@app.command()
def models(as_json: Json = False) -> None:
    """List the networks with their size and cost.

    rtseg models
    """
    need("torch", "PyTorch", "export", "models")
    from .models.zoo import rows

    zoo = rows()
    table = Table("model", "params", "GMACs 512x1024", "GMACs 1024x2048", "weights", "source")
    for row in zoo:
        table.add_row(
            row["model"],
            f"{row['params'] / 1e6:.2f} M",
            f"{row['macs_512x1024'] / 1e9:.2f}",
            f"{row['macs_1024x2048'] / 1e9:.2f}",
            row["weights"] or "-",
            row["paper"],
        )
    show(json.dumps(zoo, indent=2), table, as_json)


@app.command()
def export(
    model: Annotated[str, Argument(help="A name that `rtseg models` lists, or a checkpoint.")],
    weights: Annotated[Path | None, Option(help="Checkpoint to load into the named model.")] = None,
    classes: Classes = None,
    size: Sizes = None,
    to: Annotated[list[Target] | None, Option(help="What to write; may be repeated.")] = None,
    precision: Annotated[Precision, Option(help="Precision inside the graph.")] = Precision.fp32,
    output: Annotated[Outputs, Option(help="What the graph gives.")] = Outputs.labels,
    frames: Annotated[Path | None, Option(help="Images to prove it on; else drawn scenes.")] = None,
    labels: Annotated[
        Path | None, Option(help="Label PNGs of the frames, by the same names: proves the mIoU.")
    ] = None,
    compute_capability: Annotated[
        list[str] | None, Option(help="GPU generation for TensorRT, such as 8.6; may be repeated.")
    ] = None,
    log: Annotated[str, Option(help="Level of the TensorRT build log.")] = "warning",
    folder: Annotated[Path, Option("-o", "--out", help="Folder for the artifacts.")] = Path(
        "artifacts"
    ),
    as_json: Json = False,
) -> None:
    """Write a model as ONNX, a TensorRT engine or OpenVINO, and prove that it is still right.

    rtseg export csfcn_tiny --size 512x1024 --to onnx --to tensorrt --precision fp16 -o artifacts
    """
    need("torch", "PyTorch", "export", "export")
    from .export import ProofError
    from .export import export as run
    from .export.main import entry
    from .export.present import artifact_table
    from .export.proof import read_frames
    from .models import VARIANTS
    from .models.source import open_source

    sizes = parse_sizes(size)
    source = open_source(model, weights, class_set(classes))
    pictures, truth = read_frames(frames, labels)
    targets = [target.value for target in to or [Target.onnx]]
    note(
        f"{source.network.info.name}, {len(source.classes)} classes ({source.classes.name}), "
        f"weights: {source.weights_from}"
    )
    try:
        with working() as step:
            artifacts = run(
                source.network,
                sizes or [VARIANTS[source.network.info.name].size],
                targets,
                precision.value,
                out=folder,
                outputs=output.value,
                classes=source.classes,
                weights_from=source.weights_from,
                trained=source.trained,
                frames=pictures,
                truth=truth,
                engine={"compute_capabilities": tuple(compute_capability or ()), "log_level": log},
                progress=step,
            )
    except ProofError as error:
        raise JobFailed(str(error)) from error
    show(
        json.dumps([entry(a) | {"file": str(a.path)} for a in artifacts], indent=2),
        artifact_table(artifacts),
        as_json,
    )


@app.command()
def inspect(
    file: Annotated[Path, Argument(help="An artifact or a checkpoint.")], as_json: Json = False
) -> None:
    """Show what a file is: network, classes, size, precision, digests, tools, proof.

    rtseg inspect artifacts/csfcn_512x1024_fp16.engine
    """
    from .runtime.describe import describe

    facts = describe(file)
    table = Table(show_header=False)
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), _shown(value))
    show(json.dumps(facts, indent=2), table, as_json)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{k or 'file'}: {_shown(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value))
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10_000:
        return f"{value:,}"
    return str(value)


@app.command()
def check(file: Annotated[Path, Argument(help="An artifact.")], as_json: Json = False) -> None:
    """Say in a moment, without loading it, whether an artifact will run on this machine.

    rtseg check artifacts/csfcn_512x1024_fp16.engine
    """
    from dataclasses import asdict

    from .runtime.preflight import check as examine

    verdict = examine(file)
    show(json.dumps(asdict(verdict)), str(verdict), as_json)
    if not verdict.ok:
        raise JobFailed


@app.command()
def predict(
    source: Annotated[str, Argument(metavar="INPUT", help="Image, folder, quoted glob or video.")],
    model: Annotated[str, Option("--model", help="An artifact, a model's name or a checkpoint.")],
    folder: Annotated[Path, Option("-o", "--out", help="Folder for labels and overlays.")] = Path(
        "predictions"
    ),
    label_ids: Annotated[
        bool, Option("--label-ids", help="Write the data set's own ids (Cityscapes: 7, 8, 11...).")
    ] = False,
    backend: Annotated[str | None, Option(help="As `rtseg doctor` lists them.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Segment images or a video: label PNGs and colour overlays.

    rtseg predict drive.mp4 --model artifacts/csfcn_nano_512x1024_fp32.onnx -o predictions
    """
    from .data.frames import Frame, Unreadable, open_source
    from .demo.predict import predict as run

    frames = open_source(source)
    with open_model(model, backend, device) as segmenter, bar("frames") as progress:
        task = progress.add_task("predict", total=frames.count or None)

        def advance(frame: Frame | Unreadable) -> None:
            progress.advance(task)
            if isinstance(frame, Unreadable):
                err.print(f"skipped: {frame.reason}", soft_wrap=True)

        summary = run(frames, segmenter, folder, label_ids, progress=advance)
    facts = {
        "frames": summary.frames,
        "skipped": summary.skipped,
        "mean_ms": round(summary.ms, 3),
        "out": str(folder),
    }
    line = f"{summary.frames} frames in {folder}, {summary.ms:.1f} ms each"
    show(json.dumps(facts), f"{line}, {len(summary.skipped)} skipped", as_json)
    if not summary.frames:
        raise JobFailed("no frame could be read")


@app.command()
def bench(
    model: Annotated[list[str], Argument(help="Artifacts, models' names or checkpoints.")],
    size: Sizes = None,
    backend: Annotated[
        list[str] | None, Option(help="onnxruntime, openvino, tensorrt, torch; may be repeated.")
    ] = None,
    precision: Annotated[
        list[str] | None, Option(help="fp32, fp16, bf16; may be repeated.")
    ] = None,
    seconds: Annotated[float, Option(help="Measuring time for each row, or --runs.")] = 5.0,
    runs: Annotated[int, Option(help="Runs for each row, or --seconds.")] = 100,
    threads: Annotated[int | None, Option(help="CPU threads; by default one per core.")] = None,
    frames: Annotated[Path | None, Option(help="Folder of images; else drawn scenes.")] = None,
    eager: Annotated[bool, Option(help="With the row of the plain PyTorch network.")] = True,
    device: Device = None,
    markdown: Annotated[Path | None, Option(help="Write the tables there too.")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and FPS at batch 1, beside the plain PyTorch network in the same run.

    rtseg bench csfcn_tiny --size 512x1024
    """
    from .data.files import write_atomically
    from .data.frames import read_folder
    from .speed import bench as run

    with working() as step:
        report = run(
            model,
            parse_sizes(size),
            backend or [],
            precision or [],
            seconds=seconds,
            runs=runs,
            threads=threads,
            frames=[image for _, image in read_folder(frames)] if frames else None,
            eager=eager,
            device=device,
            progress=lambda line, share: step(f"{line} ({share:.0%})"),
        )
    if markdown:
        write_atomically(markdown, report.to_markdown().encode())
    show(report.to_json(), report.table(), as_json)


@app.command()
def train(
    recipe: Annotated[str, Argument(help="A recipe's file, or the name of a shipped one.")],
    changes: Annotated[
        list[str] | None, Argument(metavar="[KEY=VALUE]...", help="Such as data.root=DIR.")
    ] = None,
    folder: Annotated[
        Path | None, Option("-o", "--out", help="Folder for the run; by default runs/RECIPE.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on where the run stopped.")] = False,
    as_json: Json = False,
) -> None:
    """Train a network by a recipe; its best weights are OUT/best.safetensors.

    rtseg train csfcn_nano_camvid data.root=data/camvid schedule.epochs=2
    """
    need("torch", "PyTorch", "train", "train")
    from .train.loop import BEST
    from .train.loop import train as run
    from .train.recipe import load_recipe

    folder = folder or Path("runs") / Path(recipe).stem
    outcome = run(load_recipe(recipe, changes or ()), folder, resume)
    facts = {
        "weights": str(folder / BEST),
        "iterations": outcome.iteration,
        "finished": outcome.finished,
        "miou": outcome.miou,
    }
    if outcome.first and (outcome.finished or as_json):
        show(json.dumps(facts), f"best mIoU {outcome.miou:.2%}: {folder / BEST}", as_json)
    if not outcome.finished:
        raise JobFailed(f"stopped and saved at iteration {outcome.iteration}: --resume goes on")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, Argument(help="A model's name, a checkpoint or an artifact.")],
    dataset: Annotated[str, Argument(help="camvid, cityscapes, folder, ...")],
    root: Annotated[Path, Option(help="The data set's folder.")],
    split: Annotated[str, Option(help="Which part of it.")] = "val",
    weights: Annotated[Path | None, Option(help="Checkpoint to load into the named model.")] = None,
    classes: Classes = None,
    size: Annotated[str | None, Option(help="HxW the frame is brought to; else its own.")] = None,
    scale: Annotated[
        list[float] | None, Option(help="Factor on that size; several are averaged.")
    ] = None,
    flip: Annotated[bool, Option("--flip", help="Average with the mirrored frame.")] = False,
    window: Annotated[str | None, Option(help="HxW of a sliding window; else whole.")] = None,
    precision: Annotated[str, Option(help="fp32, bf16 or fp16, of a network.")] = "fp32",
    backend: Annotated[str | None, Option(help="As `rtseg doctor` lists them.")] = None,
    device: Device = None,
    worst: Annotated[Path | None, Option(help="Picture of the worst frames to write.")] = None,
    as_json: Json = False,
) -> None:
    """Measure mIoU on labelled frames: of a network, or of an artifact as it will run.

    rtseg eval artifacts/csfcn_nano_360x480_fp32.onnx camvid --root data/camvid
    """
    need("torch", "PyTorch", "train", "eval")
    from .data.datasets import open_data
    from .data.files import write_atomically
    from .data.sheet import png
    from .train.evaluate import evaluate as run
    from .train.report import table, worst_frames

    data = open_data(dataset, root, split, class_set(classes) if dataset == "folder" else None)
    views = (size, scale, flip, window, precision)
    job = labeller(model, weights, classes, backend, device, views)
    with job as (segment, names), bar("frames") as steps:
        check_classes(names, data.classes)
        task = steps.add_task("eval", total=len(data))
        result = run(segment, data, seen=lambda index: steps.advance(task))
        picture = worst_frames(result, segment, data) if worst else None
    if worst and picture is not None:
        write_atomically(worst, png(picture))
    show(result.to_json(), table(result, f"{model} on {dataset} {split}"), as_json)


@app.command()
def submit(
    model: Annotated[str, Argument(help="A model's name, a checkpoint or an artifact.")],
    root: Annotated[Path, Option(help="The folder of Cityscapes.")],
    split: Annotated[str, Option(help="Which part of it.")] = "test",
    weights: Annotated[Path | None, Option(help="Checkpoint to load into the named model.")] = None,
    size: Annotated[str | None, Option(help="HxW the frame is brought to; else its own.")] = None,
    scale: Annotated[
        list[float] | None, Option(help="Factor on that size; several are averaged.")
    ] = None,
    flip: Annotated[bool, Option("--flip", help="Average with the mirrored frame.")] = False,
    window: Annotated[str | None, Option(help="HxW of a sliding window; else whole.")] = None,
    precision: Annotated[str, Option(help="fp32, bf16 or fp16, of a network.")] = "fp32",
    backend: Annotated[str | None, Option(help="As `rtseg doctor` lists them.")] = None,
    device: Device = None,
    archive: Annotated[Path, Option("-o", "--out", help="The zip to upload.")] = Path(
        "cityscapes_test.zip"
    ),
) -> None:
    """Predict the frames of Cityscapes test as its server wants them: label ids, in a zip.

    rtseg submit runs/csfcn/best.safetensors --root data/cityscapes -o submission.zip
    """
    need("torch", "PyTorch", "train", "submit")
    from .data.datasets import open_data
    from .train.submit import submit as run

    data = open_data("cityscapes", root, split)
    views = (size, scale, flip, window, precision)
    job = labeller(model, weights, None, backend, device, views)
    with job as (segment, names), bar("frames") as steps:
        check_classes(names, data.classes)
        task = steps.add_task("submit", total=len(data))
        count = run(segment, data, archive, seen=lambda index: steps.advance(task))
    out.print(f"{count} frames: {archive}", soft_wrap=True)


data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at data sets.")
app.add_typer(data_app, name="data")


@data_app.command(name="check")
def check_data(
    root: Annotated[Path, Argument(help="The data set's folder.")],
    dataset: Annotated[str, Option("--as", help="camvid, cityscapes, folder, ...")] = "folder",
    split: Annotated[str, Option(help="Which part of it.")] = "train",
    classes: Classes = None,
    sheet: Annotated[Path | None, Option("--sheet", help="Contact sheet to write, a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Read every file of a split and say what is wrong; exit code 1 if anything is.

    rtseg data check data/camvid --as camvid --split train --sheet camvid.png
    """
    from .data.check import check as run
    from .data.check import contact_sheet
    from .data.datasets import open_data
    from .data.files import write_atomically
    from .data.sheet import png

    data = open_data(dataset, root, split, class_set(classes) if dataset == "folder" else None)
    with bar("frames") as steps:
        task = steps.add_task("check", total=len(data))
        found = run(data, seen=lambda index: steps.advance(task))
    if sheet:
        write_atomically(sheet, png(contact_sheet(data)))
    facts = found.as_dict()
    rows = Table("class", "frequency %", "images", title=f"{found.images} images")
    for name, row in facts["classes"].items():
        rows.add_row(name, f"{100 * row['frequency']:.2f}", str(row["images"]))
    show(json.dumps(facts), rows, as_json)
    for kind, lines in found.problems.items():
        note(f"{kind}: {len(lines)}, first {lines[0]}")
    if not found.good:
        raise JobFailed(f"problems: {sum(map(len, found.problems.values()))}")


@contextmanager
def labeller(
    model: str,
    weights: Path | None,
    classes: str | None,
    backend: str | None,
    device: str | None,
    views: tuple[str | None, list[float] | None, bool, str | None, str],
) -> Iterator[tuple[Any, Sequence[str]]]:
    """(frame -> labels, class names) of an artifact, or of a network as it is without `backend`.

    views: size, scales, flip, window and precision, which an artifact has settled already.
    """
    from .speed.plan import is_artifact

    size, scales, flip, window, precision = views
    if backend or is_artifact(model):
        if size or scales or flip or window or precision != "fp32":
            raise ValueError("an artifact runs as exported: leave out --size, --scale, --flip, ...")
        with open_model(model, backend, device) as segmenter:
            yield segmenter, segmenter.card.classes
        return
    from .models.source import open_source
    from .train.predict import Predictor

    source = open_source(model, weights, class_set(classes))
    note(f"{source.network.info.name}, weights: {source.weights_from}")
    yield (
        Predictor(
            source.network.to(device or "cpu"),
            size=parse_sizes([size])[0] if size else None,
            scales=scales or (1.0,),
            flip=flip,
            window=parse_sizes([window])[0] if window else None,
            precision=precision,
        ),
        source.classes.names,
    )


def check_classes(names: Sequence[str], classes: ClassSet) -> None:
    """Raises ValueError where a model answers in other classes than the labels are in."""
    if tuple(names) != classes.names:
        raise ValueError(
            f"the model knows {len(names)} classes ({', '.join(names[:3])}, ...), "
            f"the data {len(classes)} ({', '.join(classes.names[:3])}, ...): they must be the same"
        )


def open_model(model: str, backend: str | None, device: str | None) -> Any:
    """A Segmenter of an artifact, or of a variant or checkpoint that is exported first."""
    from .runtime import load
    from .speed.plan import exported_model, is_artifact

    if is_artifact(model):
        return load(model, backend, device)
    need("torch", "PyTorch", "export", "predict")
    with working() as step:
        path = exported_model(model, backend, step)
    return load(path, backend, device)


def parse_sizes(texts: list[str] | None) -> list[tuple[int, int]]:
    """Raises ValueError for a size that is not HxW."""
    sizes = []
    for text in texts or ():
        height, _, width = text.lower().partition("x")
        if not (height.isdigit() and width.isdigit()):
            raise ValueError(f"a size is HEIGHTxWIDTH, such as 512x1024, not {text!r}")
        sizes.append((int(height), int(width)))
    return sizes


def class_set(name: str | None) -> ClassSet | None:
    if name is None:
        return None
    from .data.classes import load_class_set

    return load_class_set(name)


def need(module: str, title: str, extra: str, command: str) -> None:
    """Raises JobFailed with the pip line if an extra is missing."""
    if importlib.util.find_spec(module) is None:
        raise JobFailed(f'rtseg {command} needs {title}: pip install "rtseg[{extra}]"')


def show(as_text: str, table: Any, as_json: bool) -> None:
    """One JSON value on stdout, or the table."""
    if as_json:
        sys.stdout.write(as_text.rstrip() + "\n")
    else:
        out.print(table, soft_wrap=isinstance(table, str), highlight=not isinstance(table, str))


def note(line: str) -> None:
    err.print(line, style="dim", soft_wrap=True, highlight=False)


def bar(unit: str) -> Progress:
    """A progress bar with rate and remaining time, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=err,
    )


class Rate(ProgressColumn):
    """Steps a second."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} {self.unit}/s" if task.speed else f"- {self.unit}/s")


class working:
    """A spinner on stderr that says what is being done; gives a function that changes the line."""

    def __enter__(self) -> Any:
        self.progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self.progress.start()
        task = self.progress.add_task("starting")
        return lambda line: self.progress.update(task, description=line)

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 the job failed, 2 wrong usage."""
    from .runtime.backend import MissingPackage

    try:
        app()
    except (JobFailed, MissingPackage, OSError, RuntimeError) as error:
        fail(error, 1)
    except ValueError as error:
        fail(error, 2)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(error: Exception, code: int) -> None:
    if "--debug" in sys.argv:
        traceback.print_exception(error)
    elif str(error):
        err.print(f"rtseg: {error}", soft_wrap=True, highlight=False, markup=False)
    sys.exit(code)
