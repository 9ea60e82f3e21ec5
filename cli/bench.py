"""Latency and FPS: one subcommand per protocol, with shared options and output."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from ._console import note, show, working
from ._help import CONTEXT, Command
from ._options import (
    MACHINE,
    NETWORK,
    Classes,
    Device,
    Json,
    RequireSignature,
    Root,
    Sizes,
    Split,
    Threads,
    Weights,
    complete_backends,
    complete_data,
    complete_models,
    in_group,
    parse_sizes,
)

if TYPE_CHECKING:
    from ..reporting import Progress
    from ..speed.bench import Setup
    from ..speed.config import BenchConfig
    from ..speed.frontier import Frontier
    from ..speed.result import Report
    from ..speed.table import SpeedTable

TIMING, PEERS, OUTPUT = "Timing", "Comparison", "Results"

Out = Annotated[Path, in_group(OUTPUT, "-o", "--out", help="Folder to write into.")]
Rate = Annotated[float, in_group(TIMING, help="The camera's Hz.")]
Deadline = Annotated[
    float | None, in_group(TIMING, help="ms after which a frame is missed; by default one period.")
]
Stall = Annotated[
    float, in_group(TIMING, help="Hold frames up for so many ms every 10 s, as a check.")
]


class _Protocols(TyperGroup):
    """`rtseg bench MODEL` means `rtseg bench latency MODEL`; `--protocol P` names another."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        # `bench` was one command once, and its plain form stays.
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = _named_first(args)
        return super().parse_args(ctx, args)


def _named_first(args: list[str]) -> list[str]:
    """The arguments with the protocol in front, wherever it was given."""
    args = [part for arg in args for part in _split(arg)]
    if "--protocol" in args:
        place = args.index("--protocol")
        return [*args[place + 1 : place + 2], *args[:place], *args[place + 2 :]]
    if "--table" in args:
        note("--table is now a command of its own: rtseg bench table")
        return ["table", *(arg for arg in args if arg != "--table")]
    return ["sequence" if "--sequence" in args else "latency", *args]


def _split(arg: str) -> list[str]:
    return arg.split("=", 1) if arg.startswith("--protocol=") else [arg]


app = typer.Typer(
    cls=_Protocols,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure latency and FPS, beside plain PyTorch.\n\n"
    "`rtseg bench MODEL` is `rtseg bench latency MODEL`.",
    context_settings=CONTEXT,
)


class Start:
    """Sets up a benchmark from the shared options and the changes that a protocol makes."""

    def __init__(self, options: dict[str, Any], progress: Progress):
        self.options, self.progress = options, progress

    def config(self, **changes: Any) -> BenchConfig:
        from ..speed.config import BenchConfig

        return BenchConfig(**self.options | changes)

    def __call__(self, **changes: Any) -> Setup:
        from ..speed.bench import set_up

        return set_up(self.config(**changes), self.progress)


def _measured(
    model: Annotated[
        list[str] | None,
        Argument(help="Artifacts, models' names or checkpoints.", autocompletion=complete_models),
    ] = None,
    size: Sizes = None,
    precision: Annotated[
        list[str] | None,
        Option(help="fp32, fp16, bf16, int8, fp8, or auto (the default); may be repeated."),
    ] = None,
    batch: Annotated[
        int | None,
        Option(min=1, max=32, help="Frames that a call takes, one of each of so many cameras."),
    ] = None,
    weights: Weights = None,
    classes: Classes = None,
    calib: Annotated[
        Path | None, in_group(NETWORK, help="Folder of frames to calibrate int8 or fp8 on.")
    ] = None,
    backend: Annotated[
        list[str] | None,
        in_group(
            MACHINE,
            help="One that `rtseg doctor` lists; may be repeated.",
            autocompletion=complete_backends,
        ),
    ] = None,
    device: Device = None,
    require_signature: RequireSignature = None,
    threads: Threads = None,
    peers: Annotated[
        bool,
        in_group(
            PEERS, "--peers", help="Add every peer; one that cannot run is listed with the reason."
        ),
    ] = False,
    peer: Annotated[
        list[str] | None,
        in_group(
            PEERS,
            help="compile, onnxruntime, openvino, tensorrt, torch_tensorrt, ...; may be repeated.",
        ),
    ] = None,
    eager: Annotated[bool, in_group(PEERS, help="Add the row of plain PyTorch.")] = True,
    seconds: Annotated[
        float, in_group(TIMING, help="Seconds to measure each row, or --runs.")
    ] = 5.0,
    runs: Annotated[int, in_group(TIMING, help="Runs of each row, or --seconds.")] = 100,
    frames: Annotated[
        Path | None, in_group(TIMING, help="Folder of images; by default drawn scenes.")
    ] = None,
) -> dict[str, Any]:
    """The fields of `BenchConfig` that every protocol takes."""
    return {
        "models": model or [],
        "sizes": parse_sizes(size),
        "backends": backend or [],
        "precisions": precision or [],
        "batch": batch,
        "peers": [*(["all"] if peers else []), *(peer or [])],
        "eager": eager,
        "seconds": seconds,
        "runs": runs,
        "threads": threads,
        "frames": frames,
        "weights": weights,
        "calib": calib,
        "classes": classes,
        "device": device,
    }


def _shown(
    report: Report | SpeedTable | Frontier,
    format: Annotated[
        str | None, in_group(OUTPUT, "--format", help="Print tables as md, csv, latex or html.")
    ] = None,
    markdown: Annotated[
        Path | None, in_group(OUTPUT, help="File for the tables as Markdown.")
    ] = None,
    as_json: Json = False,
) -> None:
    from ..data.files import write_atomically

    if markdown:
        write_atomically(markdown, report.format("md").encode())
    if format and not as_json:
        sys.stdout.write(report.format(format))
    else:
        show(report.to_json(), report.table(), as_json)


def protocol(run: Callable[..., Any]) -> Callable[..., Any]:
    """A subcommand: the options of `_measured` and `_shown` around those of `run` itself."""
    measured, own, shown = (
        {
            name: parameter.replace(
                # Annotations are strings here (`from __future__`), and typer reads the objects.
                annotation=eval(parameter.annotation, globals()),
                kind=inspect.Parameter.KEYWORD_ONLY,
            )
            for name, parameter in inspect.signature(function).parameters.items()
            if name not in ("start", "report")
        }
        for function in (_measured, run, _shown)
    )

    def command(**given: Any) -> None:
        groups = [{name: given[name] for name in each} for each in (measured, own, shown)]
        with working() as step:
            report = run(Start(_measured(**groups[0]), step), **groups[1])
        _shown(report, **groups[2])

    parameters = measured | own | shown
    command.__doc__ = run.__doc__
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    # typer reads the signature: this is how one function has the options of three.
    vars(command)["__signature__"] = inspect.Signature(list(parameters.values()))
    name = run.__name__.replace("_", "-")
    app.command(name, cls=Command, context_settings=CONTEXT)(command)
    return run


@protocol
def latency(
    start: Start,
    rate: Rate = 10.0,
    deadline: Deadline = None,
    stall: Stall = 0,
    roofline: Annotated[
        bool,
        in_group(PEERS, "--roofline", help="Add the machine's ceilings and the share reached."),
    ] = False,
) -> Report:
    """Measure bursts, a camera, and the network alone.

    rtseg bench csfcn_tiny --size 512x1024

    rtseg bench csfcn_tiny --size 512x1024 --peers --roofline

    rtseg bench csfcn_tiny --size 512x1024 --batch 4 --peers

    rtseg bench artifacts/*.onnx --format latex
    """
    from ..speed.bench import measure_latency

    return measure_latency(
        start(camera_hz=rate or None, deadline_ms=deadline, stall_ms=stall, roofline=roofline)
    )


@protocol
def fixed_rate(
    start: Start,
    rate: Annotated[
        list[float] | None,
        in_group(TIMING, help="The camera's Hz; may be repeated; by default 10, 17, 30, 60."),
    ] = None,
    deadline: Deadline = None,
    stall: Stall = 0,
) -> Report:
    """Play a camera at several rates; count waits and misses.

    rtseg bench fixed-rate csfcn_tiny --size 512x1024 --rate 30
    """
    from ..speed import scenarios

    return scenarios.fixed_rate(start(deadline_ms=deadline, stall_ms=stall), rate or None)


@protocol
def throughput(
    start: Start,
    streams: Annotated[
        list[int] | None,
        in_group(TIMING, help="How many at once; may be repeated; by default 1 and 2."),
    ] = None,
) -> Report:
    """Run several streams at once.

    rtseg bench throughput csfcn_tiny --size 512x1024 --streams 1 --streams 4
    """
    from ..speed import scenarios

    return scenarios.throughput(start(), streams or scenarios.STREAMS)


@protocol
def mlperf(start: Start, out: Out = Path("mlperf")) -> Report:
    """Run MLPerf LoadGen's SingleStream; its logs are kept.

    rtseg bench mlperf csfcn_tiny --size 512x1024 --seconds 600
    """
    from ..speed import scenarios

    return scenarios.mlperf(start(), out)


@protocol
def profile(start: Start) -> Report:
    """List the ten costliest layers, as the runtime reports them.

    rtseg bench profile csfcn_tiny --size 512x1024 --backend openvino
    """
    from ..speed.profile import profile as profile_layers

    return profile_layers(start(eager=False, peers=[]))


@protocol
def sequence(
    start: Start,
    root: Root,
    data: Annotated[
        str,
        Option(
            "--data", "--sequence", help="camvid, cityscapes, ...", autocompletion=complete_data
        ),
    ] = "camvid",
    split: Split = "val",
    rate: Rate = 15.0,
) -> Report:
    """Measure mIoU under latency on a labeled sequence.

    rtseg bench sequence csfcn_nano --size 184x240 --size 360x480 --data camvid --root data/camvid
    """
    from ..api import shipped_for
    from ..data.datasets import open_data
    from ..speed.sequence import sequence as play_sequence

    frames, own = open_data(data, root, split), {}
    if start.options["weights"] is None and start.options["classes"] is None:
        fitting = {shipped_for(model, frames.classes) for model in start.options["models"]}
        own = {"classes": frames.classes} if fitting == {frames.classes} else {}
    return play_sequence(start(**own), frames, data, rate)


@protocol
def table(
    start: Start,
    rate: Rate = 10.0,
    readme: Annotated[
        Path | None, in_group(OUTPUT, help="Page to write the short table into.")
    ] = None,
    out: Out = Path("speed-table"),
) -> SpeedTable:
    """Write the speed table of many networks and sizes.

    By default it takes all real-time networks at three sizes. It continues where it was stopped,
    and merges the tables of several machines in one folder.

    rtseg bench table csfcn pidnet_s --size 512x1024 -o results
    """
    from ..speed import table as speed_table

    models = start.options["models"] or speed_table.REAL_TIME
    config = start.config(models=models, camera_hz=rate or None)
    path = speed_table.measure(config, out, start.progress)
    return speed_table.write_pages(out, readme, path)


@protocol
def frontier(
    start: Start,
    rounds: Annotated[
        int, in_group(TIMING, min=1, help="Rounds over all networks, --seconds each.")
    ] = 4,
    out: Out = Path("frontier"),
) -> Frontier:
    """Draw published mIoU against the time of a frame here.

    By default it takes all real-time networks, each at the size that its score is published for.
    In every round each network takes turns with pidnet_s, and the ratio of the two is what counts,
    so a busy moment affects both. It continues where it was stopped.

    rtseg bench frontier --size 512x1024 --seconds 1.5 -o results
    """
    from ..speed.frontier import measure_frontier
    from ..speed.table import REAL_TIME

    config = start.config(models=start.options["models"] or REAL_TIME)
    return measure_frontier(config, out, rounds, start.progress)
