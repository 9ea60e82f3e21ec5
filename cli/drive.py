"""`rtseg drive`: the vehicle loop."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..errors import UsageError
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
    to: Annotated[
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

    from ..data.images import blend
    from ..data.playback import request_format
    from ..resolve import BEST_TO_DRIVE, resolve_artifact, uses_gpu
    from ..runtime import Drive, DriveLimits, read_card
    from ..runtime.backends.backend import choose_certifying
    from ..runtime.drive.certified_share import parse_corridor
    from ..runtime.drive.continuous_proof import VerifyPace, open_proof
    from ..runtime.drive.drive import NOT_STEADY, build_artifact_task
    from ..runtime.drive.faults import (
        FaultPlan,
        FaultySink,
        FaultySource,
        check_cameras,
        read_plan,
        with_faults,
    )
    from ..runtime.drive.health_server import HealthPoint
    from ..runtime.drive.page_server import check_place
    from ..runtime.drive.picture_faults import read_limits
    from ..runtime.drive.realtime import RealtimeOptions
    from ..runtime.drive.report import describe_job, judge_faults, write_report
    from ..runtime.packages import cache_folder
    from ..runtime.provenance import ServedArtifact
    from ..runtime.sinks import open_sinks
    from ..runtime.sinks.black_box import BlackBox
    from ._cameras import open_cameras

    models = model or [BEST_TO_DRIVE]
    if len(models) > 1 and deadline is None:
        raise UsageError("a ladder of several models works for a deadline: give --deadline MS")
    every_frame = rate == 0
    if max_age is None and not every_frame:
        max_age = DriveLimits.max_age_ms
    pictures = read_limits(picture_check or [])
    limits = DriveLimits(max_age_ms=max_age, deadline_ms=deadline)
    pace = VerifyPace.parse(verify_every or "30")
    metrics_at: int | str = 0
    if metrics is not None:  # before models are exported, which may take minutes
        metrics_at = int(metrics) if metrics.isdecimal() else metrics
        check_place(metrics_at, health_host, token)
    sources = open_cameras(source, rate, loop, topic)
    names = [name for name in sources if name]
    if corridor is not None and not certify:
        raise UsageError("a corridor is of certified pixels: add --certify")
    if (verify_every or evidence) and not verify_with:
        raise UsageError("frames are verified by a second artifact: give --verify-with ARTIFACT")
    if steady and black_box:  # before the box makes its folder
        raise UsageError(NOT_STEADY)
    inside = parse_corridor(corridor) if corridor is not None else ()
    wishes = RealtimeOptions(cores=tuple(core or ())) if realtime else None
    with ExitStack() as served:
        asked = None
        if health is not None:
            # Open while models are still exported, which may take minutes. A number is a port: a
            # file of that name is written as ./8080.
            where = int(health) if health.isdecimal() else health
            asked = served.enter_context(HealthPoint(where, health_host, token))
        with working() as step:

            def tell(what: str, share: float) -> None:
                step(what, share)
                if asked is not None:
                    asked.tell(what)

            artifacts = [
                resolve_artifact(each, backend=backend, device=device, progress=tell)
                for each in models
            ]
            # On the CPU, since what it stands in for is the GPU as a rule.
            spare = fallback and resolve_artifact(fallback, device="cpu", progress=tell)
            other = verify_with and resolve_artifact(verify_with, device="cpu", progress=tell)
        if other and os.path.samefile(other, artifacts[0]) and not uses_gpu(device):
            raise UsageError(
                f"{artifacts[0]} would be verified with itself, on the same processor, and agree "
                "whatever is wrong with it: give another export of its weights, of another backend "
                "or precision"
            )
        recheck = pace.every if other else None
        task = build_artifact_task(
            artifacts, backend, device, wishes, certify or steady, recheck, bool(other)
        )
        proof = None
        if other:
            proof = open_proof(other, artifacts, pace, evidence or cache_folder() / "evidence")
        box = None
        if black_box:
            served_by = [
                ServedArtifact(
                    each, choose_certifying(each, backend, device) if certify else backend, device
                )
                for each in artifacts
            ]
            if spare:
                served_by.append(ServedArtifact(spare, device="cpu"))
            box = BlackBox(black_box, black_box_seconds, black_box_mb, served_by)
        card = read_card(artifacts[0])
        if (certify or steady) and not (card.proof and card.proof.bounds):
            wish = "certify labels" if certify else "hold labels steady"
            raise UsageError(
                f"{artifacts[0]} cannot {wish}: its card bounds no error of its logits. "
                "Export it again, to onnx or openvino"
            )
        camera = card.camera_size or card.size
        sources = {n: request_format(s, card.input, camera) for n, s in sources.items()}
        sinks: list[Any] = open_sinks(to or [], card, blend, rate, mcap_ros2, names, certify)
        # Counted from here: models are exported by now, which may take minutes.
        plan = FaultPlan(read_plan(inject), time.monotonic_ns()) if inject else None
        if plan is not None:
            check_cameras(plan.faults, names)
            sources = {name: FaultySource(each, plan, name) for name, each in sources.items()}
            task = with_faults(task, plan)
            sinks.append(FaultySink(plan))
        pages = []
        if web:
            from ..demo.live import LivePage

            pages = [
                LivePage(card.class_table, card.model, deadline, camera=name) for name in sources
            ]
            sinks += pages
        job = Drive(
            sources if names else sources[""],
            task,
            sinks,
            fallback=spare,
            limits=limits,
            every_frame=every_frame,
            health=asked,
            realtime=wishes,
            pictures=pictures,
            proof=proof,
            certify=certify,
            corridor=inside,
            black_box=box,
            steady=steady,
        )
        if metrics is not None:
            from ..runtime.sinks.prometheus import serve_metrics

            metered = serve_metrics(job.snapshot, metrics_at, health_host, token)
            served.enter_context(closing(metered))
        if pages:
            from ..demo.web import Server

            server = served.enter_context(Server(pages, host, port, token))
            note(f"live page: {server.url} (Ctrl-C ends)")
        done = job.run(duration)
    done = replace(done, **describe_job(None if names else source[0], artifacts))
    if plan is not None:
        done = replace(done, injected=judge_faults(plan, done))
    if report:
        write_report(report, done)
    show(json.dumps(done.to_dict(), indent=2), Group(*done.tables(history=False)), as_json)
    if why := done.failure():
        raise JobFailed(why)
