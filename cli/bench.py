"""Latency and FPS."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..errors import UsageError
from ._console import show, working
from ._options import Classes, Device, Json, Sizes, class_set, parse_sizes

if TYPE_CHECKING:
    from ..speed.preparation import Setup


class Protocol(str, Enum):
    latency = "latency"
    fixed_rate = "fixed-rate"
    throughput = "throughput"
    mlperf = "mlperf"
    profile = "profile"


def bench(
    model: Annotated[
        list[str] | None, Argument(help="Artifacts, models' names or checkpoints.")
    ] = None,
    size: Sizes = None,
    backend: Annotated[
        list[str] | None, Option(help="onnxruntime, openvino, tensorrt, torch; may be repeated.")
    ] = None,
    precision: Annotated[
        list[str] | None, Option(help="fp32, fp16, bf16, int8; may be repeated.")
    ] = None,
    protocol: Annotated[
        Protocol, Option(help="How frames come; profile: the ten costliest layers.")
    ] = Protocol.latency,
    rate: Annotated[
        list[float] | None, Option(help="Camera's Hz, for fixed-rate; may be repeated.")
    ] = None,
    deadline: Annotated[float | None, Option(help="ms after which a frame is missed.")] = None,
    stall: Annotated[float, Option(help="Hold frames up that many ms every 10 s, as a check.")] = 0,
    streams: Annotated[
        list[int] | None, Option(help="For throughput: how many at once; may be repeated.")
    ] = None,
    peers: Annotated[bool, Option("--peers", help="With every peer that is installed.")] = False,
    peer: Annotated[
        list[str] | None,
        Option(help="compile, onnxruntime, openvino, torch_tensorrt, torch2trt, ...; repeatable."),
    ] = None,
    roofline: Annotated[
        bool, Option("--roofline", help="With the machine's ceilings and the share reached.")
    ] = False,
    sequence: Annotated[
        str | None, Option(help="Labeled sequence, such as camvid: mIoU under latency.")
    ] = None,
    root: Annotated[Path | None, Option(help="The sequence's folder.")] = None,
    split: Annotated[str, Option(help="Which part of it.")] = "val",
    table: Annotated[
        bool, Option("--table", help="Write the speed table; goes on where it was stopped.")
    ] = False,
    readme: Annotated[Path | None, Option(help="For --table: page to write it into.")] = None,
    out: Annotated[
        Path, Option("-o", "--out", help="Folder of the table, and of MLPerf's logs.")
    ] = Path("docs/results"),
    seconds: Annotated[float, Option(help="Measuring time for each row, or --runs.")] = 5.0,
    runs: Annotated[int, Option(help="Runs for each row, or --seconds.")] = 100,
    threads: Annotated[int | None, Option(help="CPU threads; by default one per core.")] = None,
    frames: Annotated[Path | None, Option(help="Folder of images; else drawn scenes.")] = None,
    calib: Annotated[Path | None, Option(help="Folder of frames to calibrate int8 on.")] = None,
    classes: Classes = None,
    eager: Annotated[bool, Option(help="With the row of the plain PyTorch network.")] = True,
    device: Device = None,
    markdown: Annotated[Path | None, Option(help="Write the tables there too.")] = None,
    as_json: Json = False,
) -> None:
    """Measure latency and FPS at batch 1, beside the plain PyTorch network in the same run.

    rtseg bench csfcn_tiny --size 512x1024

    rtseg bench csfcn_tiny --size 512x1024 --peers --roofline

    rtseg bench csfcn_nano --size 360x480 --sequence camvid --root data/camvid

    rtseg bench --table --readme README.md
    """
    from ..data.files import write_atomically
    from ..data.frames import read_folder
    from ..speed.preparation import set_up

    asked = [*(["all"] if peers else []), *(peer or [])]
    sizes = parse_sizes(size)
    if table:
        options: dict[str, Any] = {
            "backends": backend or (),
            "precisions": precision or (),
            "peers": asked,
            "seconds": seconds,
            "runs": runs,
            "threads": threads,
            "calib": calib,
            "device": device,
        }
        _table(model or [], sizes, options, out, readme, as_json)
        return
    at_pace = protocol is Protocol.latency and not sequence
    with working() as step:
        setup = set_up(
            model or [],
            sizes,
            backend or [],
            precision or [],
            seconds=seconds,
            runs=runs,
            threads=threads,
            frames=[image for _, image in read_folder(frames)] if frames else None,
            eager=eager,
            peers=asked,
            camera_hz=(rate[0] if rate else 10.0) if at_pace else None,
            deadline_ms=deadline,
            stall_ms=stall,
            roofline=roofline,
            calib=calib,
            classes=class_set(classes),
            device=device,
            progress=lambda line, share: step(f"{line} ({share:.0%})"),
        )
        if sequence:
            report = _under_latency(setup, sequence, root, split, rate)
        else:
            report = _run(setup, protocol, rate, streams, out)
    if markdown:
        write_atomically(markdown, report.to_markdown().encode())
    show(report.to_json(), report.table(), as_json)


def _run(
    setup: Setup,
    protocol: Protocol,
    rates: list[float] | None,
    streams: list[int] | None,
    out: Path,
) -> Any:
    from ..speed import profile as layers
    from ..speed import scenarios as protocols
    from ..speed.bench import race_all
    from ..speed.camera_rate import RATES_HZ

    if protocol is Protocol.fixed_rate:
        return protocols.fixed_rate(setup, rates or RATES_HZ)
    if protocol is Protocol.throughput:
        return protocols.throughput(setup, streams or protocols.STREAMS)
    if protocol is Protocol.mlperf:
        return protocols.mlperf(setup, out / "mlperf")
    if protocol is Protocol.profile:
        return layers.profile(setup)
    return race_all(setup)


def _under_latency(
    setup: Setup, name: str, root: Path | None, split: str, rates: list[float] | None
) -> Any:
    from ..data.datasets import open_data
    from ..speed.sequence import sequence

    if root is None:
        raise UsageError("--sequence needs the data set's folder: add --root")
    return sequence(setup, open_data(name, root, split), name, rates[0] if rates else 15.0)


def _table(
    models: list[str],
    sizes: list[tuple[int, int]],
    options: dict[str, Any],
    out: Path,
    readme: Path | None,
    as_json: bool,
) -> None:
    import json

    from ..speed.pages import write
    from ..speed.table import Wanted, measure

    named: dict[str, Any] = ({"models": models} if models else {}) | (
        {"sizes": sizes} if sizes else {}
    )
    with working() as step:
        path = measure(
            Wanted(**named, **options), out, lambda line, share: step(f"{line} ({share:.0%})")
        )
        written = [path, *write(out, readme)]
    show(json.dumps({"written": list(map(str, written))}), "\n".join(map(str, written)), as_json)
