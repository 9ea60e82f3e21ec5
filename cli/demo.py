"""What networks see, as a video, a window or a live page."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ..errors import UsageError
from ._console import JobFailed, bar, err, show, working
from ._live import Host, Port, Token, new_page, serving
from ._options import Backend, Device, Json, Sizes, parse_sizes

if TYPE_CHECKING:
    from ..data.frames import Frame, Unreadable


def demo(
    source: Annotated[
        str, Argument(help="Folder, quoted glob, video, .mcap log or image; --web: camera too.")
    ],
    model: Annotated[
        list[str], Option("--model", help="Artifact, name or checkpoint; several lie side by side.")
    ],
    out: Annotated[
        Path | None,
        Option("-o", "--out", help=".mp4, .webm, .avi, .gif, .png or a folder; else a window."),
    ] = None,
    size: Sizes = None,
    camera: Annotated[bool, Option(help="Show the plain frame too.")] = True,
    opacity: Annotated[float, Option(min=0, max=1, help="Of the labels' colors.")] = 0.55,
    color_blind: Annotated[
        bool, Option("--color-blind", help="Colors that any color vision tells apart.")
    ] = False,
    width: Annotated[int, Option(min=160, help="The picture's largest width in pixels.")] = 1920,
    topic: Annotated[str | None, Option(help="Topic of an MCAP log.")] = None,
    fps: Annotated[float | None, Option(help="Of the video; else the source's, or 17.")] = None,
    limit: Annotated[int | None, Option(min=1, help="Frames to play; else all.")] = None,
    web: Annotated[bool, Option("--web", help="Serve a live page instead.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8017,
    token: Token = None,
    deadline: Annotated[float, Option(help="In ms: later results count as misses there.")] = 100.0,
    backend: Backend = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Lay labels over a video: several models side by side, with legend, latency and FPS.

    rtseg demo drive.mp4 --model artifacts/csfcn_nano_512x1024_fp32.onnx -o labeled.mp4
    """
    from ..data.sources import open_recording
    from ..demo.palettes import color_blind_safe
    from ..demo.video import Look
    from ..demo.video import demo as run

    if fps is not None and fps <= 0:
        raise UsageError(f"--fps is frames a second, above 0, not {fps:g}")
    if web:
        _serve(source, topic, model, fps, (host, port, token), deadline, backend, device)
        return
    frames = open_recording(source, topic)
    with ExitStack() as opened:
        segmenters = [opened.enter_context(s) for s in _open(model, size, backend, device)]
        look = Look(camera, opacity, width, color_blind_safe if color_blind else _as_it_is)
        progress = opened.enter_context(bar("frames"))
        task = progress.add_task("demo", total=min(frames.count, limit or frames.count) or None)

        def advance(frame: Frame | Unreadable) -> None:
            progress.advance(task)
            if reason := getattr(frame, "reason", None):
                err.print(f"skipped: {reason}", soft_wrap=True)

        summary = run(frames, segmenters, out, look, fps, limit, advance)
    facts = {
        "frames": summary.frames,
        "skipped": summary.skipped,
        "written": summary.written,
        "models": summary.models,
    }
    lines = [f"{summary.frames} frames, {len(summary.skipped)} skipped"]
    lines += [f"{m['model']} {m['size']}: {m['median_ms']} ms (median)" for m in summary.models]
    lines += [f"written: {path}" for path in summary.written[:3]]
    show(json.dumps(facts), "\n".join(lines), as_json)
    if not summary.frames:
        raise JobFailed("no frame could be read")


def _as_it_is(classes: Any) -> Any:
    return classes


def _open(
    models: list[str], size: list[str] | None, backend: str | None, device: str | None
) -> list[Any]:
    """A Segmenter of every model, or, with sizes, of every model at every size."""
    from ..resolve import open_segmenter

    with working() as step:
        return [
            open_segmenter(model, size=each, backend=backend, device=device, progress=step)
            for model in models
            for each in (*parse_sizes(size),) or (None,)
        ]


def _serve(
    source: str,
    topic: str | None,
    models: list[str],
    fps: float | None,
    address: tuple[str, int, str | None],
    deadline_ms: float,
    backend: str | None,
    device: str | None,
) -> None:
    """The loop of `rtseg drive`: a recording is played again and again at its rate; several models
    are the levels of its ladder."""
    from ..data.camera import is_camera
    from ..data.sources import open_drive_source
    from ..resolve import resolve_artifact
    from ..runtime import Drive, DriveLimits

    with working() as step:
        artifacts = [resolve_artifact(m, backend=backend, progress=step) for m in models]
    page = new_page(artifacts[0], deadline_ms, "demo")
    limits = DriveLimits(max_age_ms=max(500.0, 5 * deadline_ms), deadline_ms=deadline_ms)
    camera = open_drive_source(source, fps, loops=not is_camera(source), topic=topic)
    drive = Drive(camera, artifacts, [page], limits=limits, backend=backend, device=device)
    page.watch = drive.snapshot
    with serving(page, *address):
        drive.run()
