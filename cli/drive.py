"""`rtseg drive`: the vehicle loop."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, note, show, working
from ._options import (
    LIVE,
    MACHINE,
    Backend,
    Device,
    Host,
    Json,
    Models,
    Port,
    RequireSignature,
    Token,
    complete_models,
    in_group,
)

SOURCE = "Source"
KEEP_UP = "Keeping up"
RESULTS = "Where results go"
PROOF = "A proof that goes on"
BOX = "Black box"
TESTS = "Tests"


def drive(
    source: Annotated[
        list[str],
        Argument(
            help="Camera (0, rtsp://...), ROS 2 topic (ros2:/image), log, video or images. Several "
            "share the model; NAME=SOURCE names one."
        ),
    ],
    model: Models = None,
    fallback: Annotated[
        str | None,
        Option(
            help="Model that serves on the CPU while the first one cannot.",
            autocompletion=complete_models,
        ),
    ] = None,
    duration: Annotated[
        float | None, Option(help="Seconds, loading included; by default until the source ends.")
    ] = None,
    rate: Annotated[
        float | None,
        in_group(SOURCE, help="Hz of a recording; 0: every frame, as fast as possible."),
    ] = None,
    loop: Annotated[
        bool, in_group(SOURCE, "--loop", help="Play a recording again and again.")
    ] = False,
    topic: Annotated[
        str | None, in_group(SOURCE, help="Topic of an MCAP log or ROS 2 bag.")
    ] = None,
    deadline: Annotated[
        float | None,
        in_group(KEEP_UP, help="ms from capture to publication, which several models try to hold."),
    ] = None,
    max_age: Annotated[
        float | None,
        in_group(KEEP_UP, "--max-age", help="ms after which no mask is published; by default 500."),
    ] = None,
    certify: Annotated[
        bool,
        in_group(RESULTS, "--certify", help="Mark the pixels whose class float32 gives too."),
    ] = False,
    steady: Annotated[
        bool,
        in_group(
            RESULTS, "--steady", help="Hold uncertain pixels for up to 2 frames, against flicker."
        ),
    ] = False,
    corridor: Annotated[
        str | None,
        in_group(
            RESULTS,
            help='Polygon "x,y x,y x,y ..." in fractions of the picture, whose certified share is '
            "told apart, with --certify.",
        ),
    ] = None,
    picture_check: Annotated[
        list[str] | None,
        in_group(
            KEEP_UP,
            "--picture-check",
            help="Limit of a picture fault: black=20, torn=off, or off for all; may be repeated.",
        ),
    ] = None,
    out: Annotated[
        list[Path] | None,
        in_group(
            RESULTS,
            "-o",
            "--out",
            help="Folder for PNGs, .mp4, .mcap, .ring, or ros2:/TOPIC; may be repeated.",
        ),
    ] = None,
    mcap_ros2: Annotated[
        bool, in_group(RESULTS, "--mcap-ros2", help="ROS 2 messages in .mcap logs too.")
    ] = False,
    report: Annotated[
        Path | None, in_group(RESULTS, help="File for the JSON report, with a .md page beside it.")
    ] = None,
    health: Annotated[
        str | None,
        in_group(RESULTS, help="File to write the state to, or port or unix:PATH to serve it on."),
    ] = None,
    metrics: Annotated[
        str | None, in_group(RESULTS, help="Port or unix:PATH for Prometheus.")
    ] = None,
    health_host: Annotated[
        str,
        in_group(
            RESULTS,
            help="Address for the ports of --health and --metrics; others than this machine's own "
            "need --token.",
        ),
    ] = "127.0.0.1",
    verify_with: Annotated[
        str | None,
        in_group(
            PROOF,
            "--verify-with",
            help="Artifact of the same weights that labels some frames too, at low priority.",
            autocompletion=complete_models,
        ),
    ] = None,
    verify_every: Annotated[
        str | None,
        in_group(
            PROOF,
            "--verify-every",
            help="One frame in so many, 30 by default, or a share of one core (10%).",
        ),
    ] = None,
    evidence: Annotated[
        Path | None,
        in_group(PROOF, help="Folder for what a disagreement leaves; by default in the cache."),
    ] = None,
    black_box: Annotated[
        Path | None,
        in_group(BOX, "--black-box", help="Folder that keeps the last seconds of what goes wrong."),
    ] = None,
    black_box_seconds: Annotated[
        float, in_group(BOX, "--black-box-seconds", help="Seconds that it holds.")
    ] = 10.0,
    black_box_mb: Annotated[
        float, in_group(BOX, "--black-box-mb", help="Megabytes that they may take.")
    ] = 200.0,
    web: Annotated[bool, in_group(LIVE, "--web", help="Serve a live page too.")] = False,
    host: Host = "127.0.0.1",
    port: Port = 8017,
    token: Token = None,
    realtime: Annotated[
        bool,
        in_group(
            MACHINE, "--realtime", help="Ask for SCHED_FIFO, locked memory, a frozen collector."
        ),
    ] = False,
    core: Annotated[
        list[int] | None,
        in_group(MACHINE, help="CPU core to run on, with --realtime; may be repeated."),
    ] = None,
    inject: Annotated[
        Path | None,
        in_group(TESTS, help="YAML file of faults to inject; exit code 1 if one lasts."),
    ] = None,
    backend: Backend = None,
    device: Device = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Run the vehicle loop: newest frame only, whatever breaks.

    No mask older than --max-age is published.
    Give several models, largest first, to let the loop use the largest that holds --deadline.
    Log lines on stderr are JSON.

    rtseg drive drive.mp4 -o labels/ --report drive.json
    rtseg drive 0 --model artifacts/csfcn_512x1024_fp16.engine --deadline 40
    rtseg drive drive.mp4 --model artifacts/csfcn_tiny_360x480_int8.xml --certify
    rtseg drive ros2:/camera/image_raw --out ros2:/rtseg
    rtseg drive front=0 rear=rtsp://10.0.0.7/live -o labels/
    """
    from rich.console import Group

    from ..drive_job import open_drive

    with ExitStack() as opened:
        with working() as step:
            job = opened.enter_context(
                open_drive(
                    source,
                    model or (),
                    fallback=fallback,
                    rate=rate,
                    loop=loop,
                    topic=topic,
                    deadline=deadline,
                    max_age=max_age,
                    certify=certify,
                    steady=steady,
                    corridor=corridor,
                    picture_check=picture_check or (),
                    out=out or (),
                    mcap_ros2=mcap_ros2,
                    report=report,
                    health=health,
                    metrics=metrics,
                    health_host=health_host,
                    verify_with=verify_with,
                    verify_every=verify_every,
                    evidence=evidence,
                    black_box=black_box,
                    black_box_seconds=black_box_seconds,
                    black_box_mb=black_box_mb,
                    web=web,
                    host=host,
                    port=port,
                    token=token,
                    realtime=realtime,
                    core=core or (),
                    inject=inject,
                    backend=backend,
                    device=device,
                    progress=step,
                )
            )
        if job.url:
            note(f"live page: {job.url} (Ctrl-C ends)")
        done = job.run(duration)
    show(json.dumps(done.to_dict(), indent=2), Group(*done.tables(history=False)), as_json)
    if why := done.failure():
        raise JobFailed(why)
