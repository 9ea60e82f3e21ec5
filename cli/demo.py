"""`rtseg demo`: overlays of one or more networks as a video, a window or a live page."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import JobFailed, note, show, steps, working
from ._options import (
    LIVE,
    Backend,
    Device,
    Host,
    Json,
    Models,
    Port,
    RequireSignature,
    Sizes,
    Steady,
    Token,
    in_group,
    parse_sizes,
)

LOOK = "Look"


def demo(
    source: Annotated[
        str,
        Argument(help="Folder, quoted glob, video, .mcap log or image; with --web also a camera."),
    ],
    model: Models = None,
    out: Annotated[
        Path | None,
        Option(
            "-o", "--out", help=".mp4, .webm, .avi, .gif, .png or a folder; by default a window."
        ),
    ] = None,
    size: Sizes = None,
    topic: Annotated[str | None, Option(help="Topic of an MCAP log.")] = None,
    fps: Annotated[
        float | None, Option(help="FPS of the video; by default the source's, or 17.")
    ] = None,
    limit: Annotated[
        int | None, Option(min=1, max=10**9, help="Frames to play; by default all.")
    ] = None,
    steady: Steady = False,
    camera: Annotated[bool, in_group(LOOK, help="Show the plain frame too.")] = True,
    opacity: Annotated[float, in_group(LOOK, min=0, max=1, help="Opacity of the labels.")] = 0.55,
    color_blind: Annotated[
        bool, in_group(LOOK, "--color-blind", help="Color-blind-safe colors.")
    ] = False,
    width: Annotated[
        int, in_group(LOOK, min=160, help="Maximum width of the picture in pixels.")
    ] = 1920,
    web: Annotated[bool, in_group(LIVE, "--web", help="Serve a live page instead.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8017,
    token: Token = None,
    deadline: Annotated[
        float, in_group(LIVE, help="ms after which a result counts as missed.")
    ] = 100.0,
    backend: Backend = None,
    device: Device = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Draw labels over a video or a live camera.

    Several models appear side by side, with legend, latency and FPS.

    rtseg demo drive.mp4 -o labeled.mp4
    rtseg demo drive.mp4 --model csfcn_nano --model csfcn_tiny -o both.mp4
    rtseg demo 0 --web
    """
    from ..data.playback import open_recording
    from ..demo.palettes import color_blind_safe
    from ..demo.video import Look
    from ..demo.video import demo as run
    from ..resolve import (
        BEST_TO_DRIVE,
        BEST_TO_LOOK_AT,
        is_artifact,
        open_segmenter,
        resolve_artifact,
    )
    from ..runtime.backends.backend import choose_certifying

    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"--fps is frames a second, above 0 and at most 1000, not {fps:g}")
    if web:
        from ..demo.web import serve_drive

        with working() as step:
            artifacts = [
                resolve_artifact(each, backend=backend, device=device, progress=step)
                for each in model or [BEST_TO_DRIVE]
            ]
        serve_drive(
            source,
            artifacts,
            topic=topic,
            rate_hz=fps,
            deadline_ms=deadline,
            address=(host, port, token),
            backend=backend,
            device=device,
            steady=steady,
            opened=lambda url: note(f"live page: {url} (Ctrl-C ends)"),
        )
        return
    frames = open_recording(source, topic)
    if not model:
        note(f"no --model: {BEST_TO_LOOK_AT} with shipped weights, exported here if need be")
    with ExitStack() as opened:
        with working() as step:
            segmenters = [
                opened.enter_context(
                    open_segmenter(
                        each,
                        size=of_size,
                        backend=choose_certifying(Path(each), backend, device)
                        if steady and is_artifact(each)
                        else backend,
                        device=device,
                        progress=step,
                    )
                )
                for each in model or [BEST_TO_LOOK_AT]
                for of_size in (*parse_sizes(size),) or (None,)
            ]
        look = Look(camera, opacity, width)
        if color_blind:
            look = Look(camera, opacity, width, color_blind_safe)
        # 0: of unknown length, so that the bar shows no share.
        total = min(frames.count, limit or frames.count) or None
        with steps("demo", total) as advance:
            summary = run(frames, segmenters, out, look, fps, limit, advance, steady=steady)
    for reason in summary.skipped:
        note(f"skipped: {reason}")
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
