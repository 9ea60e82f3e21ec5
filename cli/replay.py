"""`rtseg replay`: an update on a log, beside what it replaces."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import JobFailed, JobUndecided, note, show, steps
from ._options import Backend, Device, Json, OneModel, RequireSignature

if TYPE_CHECKING:
    from ..speed.replay import Advance, ReplayConfig, ReplayResult
    from ..speed.replay_bars import ReplayBars
    from ..speed.replay_side import ReplaySide


def replay(
    log: Annotated[
        str, Argument(metavar="LOG", help="Folder of frames, video, MCAP log or ROS 2 bag.")
    ],
    model: OneModel,
    against: Annotated[
        str | None,
        Option(help="What is replaced: an artifact, or a folder that --record wrote."),
    ] = None,
    against_python: Annotated[
        str | None,
        Option(
            help="Interpreter of another environment that runs the old side, with its libraries; "
            "without --against the same model."
        ),
    ] = None,
    record: Annotated[
        Path | None, Option(help="Write the model's masks and figures there, as a baseline.")
    ] = None,
    in_turns: Annotated[
        bool, Option(hidden=True, help="With --record: wait for a line before each block.")
    ] = False,
    bars: Annotated[
        Path | None, Option(help="YAML file of what an update must reach, `agreement: 0.995`...")
    ] = None,
    out: Annotated[
        Path | None, Option("-o", "--out", help="Folder for report.md, report.json and pictures.")
    ] = None,
    runs: Annotated[
        int, Option(min=2, help="Least timed frames a side; a shorter log is played again.")
    ] = 200,
    topic: Annotated[str | None, Option(help="Topic of an MCAP log or ROS 2 bag.")] = None,
    backend: Backend = None,
    device: Device = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Refuse an update that labels a log otherwise, or is slower.

    Both sides run in turns on the same frames. The exit code is 1, and each bar that is missed is
    named, if masks, times or memory are not within the bars. It is 3 if the machine was too busy to
    decide about the times, and all else holds.

    rtseg replay drive.mcap --model new.onnx --against old.onnx --bars bars.yaml -o report
    rtseg replay frames/ --model old.onnx --record baseline
    rtseg replay frames/ --model new.onnx --against baseline
    rtseg replay frames/ --model net.onnx --against-python old-venv/bin/python
    """
    from ..speed.replay import ReplayConfig
    from ..speed.replay import record as record_side
    from ..speed.replay_bars import read_bars

    config = ReplayConfig(topic, runs, backend, device)
    limits = read_bars(bars) if bars else None
    if record is not None:
        if against or against_python:
            raise UsageError("--record makes a baseline: leave --against and --against-python out")
        with steps("replay", None) as advance:
            turn = _take_turn if in_turns else lambda side: True
            more = (lambda side: True) if in_turns else None
            side = record_side(log, model, record, config, advance, turn, more)
        report_baseline(side, record, as_json)
        return
    if not (against or against_python):
        raise UsageError("what does it replace? Give --against OLD, or --record FOLDER first")
    with steps("replay", None) as advance:
        done = _run(log, model, against, against_python, config, limits, advance)
    sides = [Path(each) for each in (model, against) if each]
    if not against_python and len({each.resolve() for each in sides}) == 1:
        note(f"warning: {model} was held against itself: equal masks say nothing here")
    report_replay(done, model, out, as_json)


def report_baseline(side: ReplaySide, folder: Path, as_json: bool) -> None:
    """Shows a recorded baseline's p50, and warns where it is too wide to decide anything."""
    from ..speed.replay_bars import ReplayBars
    from ..speed.replay_figures import find_quantiles

    p50, low, high = find_quantiles(side)["p50"]
    facts = {"record": str(folder), "runs": side.runs, "p50_ms": [p50, low, high]}
    text = f"{side.title}: baseline in {folder}, p50 {p50:.3g} ms (95 % {low:.3g} to {high:.3g})"
    show(json.dumps(facts), text, as_json)
    bar = ReplayBars().latency_ratio
    if bar is not None and high > bar * low:
        note(
            f"warning: that interval is wider than the default latency_ratio, {bar:g}, so times "
            "will hardly be decided against this baseline: record it again while the machine has "
            "less to do"
        )
    if side.uncertified:
        note(f"certified shares are not recorded: {side.uncertified}")


def _run(
    log: str,
    model: str,
    against: str | None,
    python: str | None,
    config: ReplayConfig,
    limits: ReplayBars | None,
    advance: Advance,
) -> ReplayResult:
    from ..speed.replay import replay as run
    from ..speed.replay_elsewhere import replay_elsewhere

    if python is None:
        return run(log, model, str(against), config, limits, advance)
    return replay_elsewhere(python, log, model, against or model, config, limits, advance)


def _take_turn(side: ReplaySide) -> bool:
    """Say how long the last block took, and wait until another one is wanted."""
    if side.rounds:
        sys.stdout.write(json.dumps(side.rounds[-1]) + "\n")
        sys.stdout.flush()
    return sys.stdin.readline() == "turn\n"


def report_replay(done: ReplayResult, model: str, out: Path | None, as_json: bool) -> None:
    """Show an update's figures.

    Raises:
        JobFailed: it is refused.
        JobUndecided: its times are not decided.
    """
    from rich.console import Group

    from ..speed.replay_report import describe_replay, list_tables, write_report

    if out is not None:
        write_report(done, out)
    show(json.dumps(describe_replay(done), indent=2), Group(*list_tables(done)), as_json)
    if why := done.failure():
        raise JobFailed(f"the update is refused: {why}")
    if done.undecided:
        raise JobUndecided("; ".join(f"{each.bar}: {each.text}" for each in done.undecided))
