"""The vehicle loop."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import note, working
from ._drive_compare import compare_with_bench, tell_age
from ._drive_report import tell_report, what_ran
from ._live import Host, Port, Token, new_page, serving
from ._options import Backend, Device, Json

if TYPE_CHECKING:
    from ..runtime.drive.faults import FaultPlan
    from ..runtime.drive.messages import Health


def drive(
    source: Annotated[
        str, Argument(help="Camera (0, rtsp://..., GStreamer), .mcap log, video or images.")
    ],
    model: Annotated[
        list[str], Option("--model", help="Artifact; several, largest first, make a ladder.")
    ],
    fallback: Annotated[
        Path | None, Option(help="Artifact that serves on the CPU while the first cannot.")
    ] = None,
    rate: Annotated[
        float | None, Option(help="Hz of a recording; 0: every frame, as fast as they are done.")
    ] = None,
    loop: Annotated[bool, Option("--loop", help="Play a recording again and again.")] = False,
    topic: Annotated[str | None, Option(help="Topic of an MCAP log.")] = None,
    duration: Annotated[float | None, Option(help="Seconds; else to the source's end.")] = None,
    deadline: Annotated[
        float | None, Option(help="ms from capture to publication that the ladder works for.")
    ] = None,
    max_age: Annotated[
        float | None, Option("--max-age", help="ms after which no mask is published.")
    ] = None,
    realtime: Annotated[
        bool, Option("--realtime", help="Ask for SCHED_FIFO, locked memory, a frozen collector.")
    ] = False,
    core: Annotated[
        list[int] | None, Option(help="CPU core to run on, with --realtime; may be repeated.")
    ] = None,
    health: Annotated[
        str | None, Option(help="File to write the state to, or port to serve it on.")
    ] = None,
    health_host: Annotated[
        str, Option(help="Address that the ports of --health and --metrics are of.")
    ] = "127.0.0.1",
    to: Annotated[
        list[Path] | None,
        Option("-o", "--out", help="FOLDER of PNGs, .mp4, .mcap or .ring; may be repeated."),
    ] = None,
    metrics: Annotated[int | None, Option(help="Port for Prometheus.")] = None,
    web: Annotated[bool, Option("--web", help="Serve a live page too.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8017,
    token: Token = None,
    inject: Annotated[
        Path | None, Option(help="YAML of faults to bring about; exit code 1 if one lasts.")
    ] = None,
    report: Annotated[
        Path | None, Option(help="Write the JSON report there too, and a .md page beside it.")
    ] = None,
    compare_bench: Annotated[
        int, Option(min=0, help="Drives of --duration, in turns with the bench: age beside it.")
    ] = 0,
    backend: Backend = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run the vehicle loop: newest frame only, masks never older than --max-age, whatever breaks.

    rtseg drive 0 --model artifacts/csfcn_512x1024_fp16.engine --deadline 40 --health 8080
    """
    from ..data.sources import open_drive_source
    from ..resolve import resolve_artifact
    from ..runtime import Drive, DriveLimits
    from ..runtime.drive.drive import build_artifact_task
    from ..runtime.drive.faults import FaultySink, FaultySource, with_faults
    from ..runtime.drive.realtime import RealtimeOptions
    from ..runtime.drive.report import judge_faults
    from ._drive_sinks import open_sinks

    if len(model) > 1 and deadline is None:
        raise UsageError("a ladder of several models works for a deadline: give --deadline MS")
    every_frame = rate == 0
    if max_age is None and not every_frame:
        max_age = DriveLimits.max_age_ms
    limits = DriveLimits(max_age_ms=max_age, deadline_ms=deadline)
    frames = open_drive_source(source, rate, loop, topic)
    wishes = RealtimeOptions(cores=tuple(core or ())) if realtime else None
    with working() as step:
        artifacts = [resolve_artifact(m, backend=backend, progress=step) for m in model]
    task = build_artifact_task(artifacts, backend, device, wishes)

    open_drive = partial(
        Drive,
        fallback=fallback,
        limits=limits,
        every_frame=every_frame,
        health=int(health) if health and health.isdecimal() else health,
        health_host=health_host,
        realtime=wishes,
    )
    ran = what_ran(source, artifacts)
    if compare_bench:
        if duration is None or inject or to or web or len(model) > 1:
            raise UsageError(
                "--compare-bench takes one --model and a --duration, and no -o, --web or --inject"
            )
        found = compare_with_bench(
            lambda ages: open_drive(frames, task, [ages]),
            frames,
            artifacts[0],
            (backend, device),
            compare_bench,
            duration,
        )
        tell_age(ran | found, report, as_json)
        return
    sinks = open_sinks(to or [], artifacts[0], rate)
    plan = _plan(inject)
    if plan is not None:
        frames, task = FaultySource(frames, plan), with_faults(task, plan)
        sinks = [*sinks, FaultySink(plan)]
    page = new_page(artifacts[0], deadline, "drive") if web else None
    job = open_drive(frames, task, [*sinks, page] if page else sinks)
    with ExitStack() as served:
        if metrics is not None:
            from ..runtime.sinks.prometheus import serve_metrics

            served.enter_context(closing(serve_metrics(job.snapshot, metrics, health_host)))
        if page is not None:
            page.watch = job.snapshot
            served.enter_context(serving(page, host, port, token))
        done = replace(job.run(duration, _say), **ran)
    if plan is not None:
        done = replace(done, injected=judge_faults(plan, done))
    tell_report(done, report, as_json)


def _plan(path: Path | None) -> FaultPlan | None:
    if path is None:
        return None
    from ..runtime.drive.faults import FaultPlan, read_plan

    return FaultPlan(read_plan(path), time.monotonic_ns())


def _say(at_s: float, health: Health) -> None:
    note(f"{at_s:8.2f} s  {': '.join((health.state.value, '; '.join(health.reasons)))}")
