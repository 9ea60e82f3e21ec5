"""The vehicle loop."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.table import Table
from typer import Argument, Option

from .options import Backend, Device, Json
from .terminal import JobFailed, note, show

if TYPE_CHECKING:
    from ..runtime.drive.faults import Plan
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
    to: Annotated[
        list[Path] | None,
        Option("-o", "--out", help="FOLDER of PNGs, .mp4, .mcap or .ring; may be repeated."),
    ] = None,
    metrics: Annotated[int | None, Option(help="Port for Prometheus.")] = None,
    inject: Annotated[
        Path | None, Option(help="YAML of faults to bring about; exit code 1 if one lasts.")
    ] = None,
    report: Annotated[Path | None, Option(help="Write the JSON report there too.")] = None,
    backend: Backend = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Run the vehicle loop: newest frame only, masks never older than --max-age, whatever breaks.

    rtseg drive 0 --model artifacts/csfcn_512x1024_fp16.engine --deadline 40 --health 8080
    """
    from ..data.files import write_atomically
    from ..data.sources import open_drive_source
    from ..runtime import Drive, Limits
    from ..runtime.drive.drive import artifact_task
    from ..runtime.drive.faults import FaultySink, FaultySource, verdict, with_faults
    from ..runtime.drive.realtime import Wishes
    from .drive_sinks import open_sinks

    if len(model) > 1 and deadline is None:
        raise ValueError("a ladder of several models works for a deadline: give --deadline MS")
    every_frame = rate == 0
    limits = Limits(
        max_age_ms=max_age or (None if every_frame else Limits.max_age_ms), deadline_ms=deadline
    )
    frames = open_drive_source(source, rate, loop, topic)
    wishes = Wishes(cores=tuple(core or ())) if realtime else None
    task = artifact_task([_artifact(each, backend) for each in model], backend, device, wishes)
    sinks = open_sinks(to or [], Path(task.arguments["paths"][0]), rate)
    plan = _plan(inject)
    if plan is not None:
        frames, task = FaultySource(frames, plan), with_faults(task, plan)
        sinks = [*sinks, FaultySink(plan)]
    job = Drive(
        frames,
        task,
        sinks,
        fallback=fallback,
        limits=limits,
        every_frame=every_frame,
        health=int(health) if health and health.isdigit() else health,
        realtime=wishes,
    )
    if metrics is not None:
        from ..runtime.sinks.metrics import serve

        serve(job.snapshot, metrics)
    facts = job.run(duration, _say)
    facts = {
        "source": source,
        "artifacts": [Path(p).name for p in task.arguments["paths"]],
        **facts,
    }
    if plan is not None:
        facts["injected"] = verdict(plan, facts)
    text = json.dumps(facts, indent=2)
    if report:
        write_atomically(report, (text + "\n").encode())
    show(text, _table(facts), as_json)
    _judge(facts)


def _artifact(model: str, backend: str | None) -> Path:
    """The path of an artifact; a network's name or a checkpoint is exported first."""
    from ..speed.plan import exported_model, is_artifact
    from .terminal import need, working

    if is_artifact(model):
        return Path(model)
    need("torch", "PyTorch", "export", "drive")
    with working() as step:
        return Path(exported_model(model, backend, step))


def _plan(path: Path | None) -> Plan | None:
    if path is None:
        return None
    from ..runtime.drive.faults import Plan, read_plan

    return Plan(read_plan(path), time.monotonic_ns())


def _say(at_s: float, health: Health) -> None:
    note(f"{at_s:8.2f} s  {': '.join((health.state.value, '; '.join(health.reasons)))}")


def _table(facts: dict[str, Any]) -> Table:
    frames, age = facts["frames"], facts["age_ms"]
    times = f"p50 {age['p50']:.1f} ms, p95 {age['p95']:.1f}, p99 {age['p99']:.1f}"
    table = Table(show_header=False)
    table.add_row("ended", f"{facts['ended']} after {facts['seconds']:.1f} s, {facts['state']}")
    table.add_row("frames", f"{frames['captured']} captured, {frames['published']} answered")
    table.add_row("dropped", _counts(frames["dropped"]))
    table.add_row("age", times)
    table.add_row("results", _counts(facts["results_by_level"]))
    for change in facts["level_changes"]:
        table.add_row(f"at {change['at_s']:.1f} s", f"to {change['to']}: {change['why']}")
    for loss in facts["losses"]:
        table.add_row(f"at {loss['at_s']:.1f} s", f"{loss['engine']} replaced: {loss['reason']}")
    for sink in facts["sinks"]:
        counts = {name: sink[name] for name in ("delivered", "dropped", "failed", "unflushed")}
        table.add_row(sink["name"], f"{_counts(counts)}  {sink['last_error']}".rstrip())
    for wish, answer in facts["realtime"].items():
        table.add_row(wish, answer)
    for row in facts.get("injected", {}).get("faults", ()):
        again = row["running_again_after_s"]
        seen = "NOT RECOVERED" if again is None else f"running again {again} s after its end"
        table.add_row(f"{row['fault']} at {row['at_s']:g} s", seen)
    return table


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _judge(facts: dict[str, Any]) -> None:
    if facts["ended"] == "source lost":
        raise JobFailed(f"the source is lost: {'; '.join(facts['reasons'])}")
    if not facts["frames"]["published"]:
        raise JobFailed(f"no frame was answered: {'; '.join(facts['reasons'])}")
    if not facts.get("injected", {"passed": True})["passed"]:
        raise JobFailed("a fault lasted, or a frame is not accounted for")
