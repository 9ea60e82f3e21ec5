"""`rtseg drive` as a call: sources, models, sinks and checks, named as on the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .data.images import blend
from .data.playback import request_format
from .errors import UsageError
from .reporting import Progress
from .resolve import BEST_TO_DRIVE, resolve_artifact, uses_gpu
from .runtime import Drive, DriveLimits, read_card
from .runtime.backends.backend import choose_certifying
from .runtime.drive.certified_share import parse_corridor
from .runtime.drive.continuous_proof import VerifyPace, open_proof
from .runtime.drive.drive import NOT_STEADY, build_artifact_task
from .runtime.drive.faults import (
    FaultPlan,
    FaultySink,
    FaultySource,
    check_cameras,
    read_plan,
    with_faults,
)
from .runtime.drive.health_server import HealthPoint
from .runtime.drive.named_sources import open_cameras
from .runtime.drive.page_server import check_place
from .runtime.drive.picture_faults import read_limits
from .runtime.drive.realtime import RealtimeOptions
from .runtime.drive.report import DriveReport, describe_job, judge_faults, write_report
from .runtime.packages import cache_folder
from .runtime.provenance import ServedArtifact
from .runtime.sinks import open_sinks
from .runtime.sinks.black_box import BlackBox


@dataclass(frozen=True)
class DriveJob:
    """A drive that is ready to run.

    Attributes:
        drive: what runs.
        source: that the report names, of a single one.
        artifacts: that serve, largest first.
        plan: of faults to inject.
        report: file for the JSON report, with a .md page beside it.
        url: of the live page, token included; "" without one.
    """

    drive: Drive
    source: str | None
    artifacts: Sequence[Path]
    plan: FaultPlan | None
    report: Path | None
    url: str

    def run(self, duration: float | None = None) -> DriveReport:
        """Drive, and write the report.

        Args:
            duration: seconds; by default until the source ends.

        Returns:
            What `Drive.run` gives, with the source, the artifacts and the faults injected.
        """
        done = self.drive.run(duration)
        done = replace(done, **describe_job(self.source, self.artifacts))
        if self.plan is not None:
            done = replace(done, injected=judge_faults(self.plan, done))
        if self.report:
            write_report(self.report, done)
        return done


def run_drive(
    source: str | Sequence[str],
    model: str | Sequence[str] = (),
    *,
    duration: float | None = None,
    **options: Any,
) -> DriveReport:
    """Run the vehicle loop as `rtseg drive` does.

    Args:
        source: as `open_drive` takes it.
        model: likewise.
        duration: seconds; by default until the source ends.
        options: those of `open_drive`.

    Returns:
        Every frame accounted for; `failure()` says what went wrong.

    Raises:
        UsageError: what `open_drive` raises.
    """
    with open_drive(source, model, **options) as job:
        return job.run(duration)


@contextmanager
def open_drive(
    source: str | Sequence[str],
    model: str | Sequence[str] = (),
    *,
    fallback: str | None = None,
    rate: float | None = None,
    loop: bool = False,
    topic: str | None = None,
    deadline: float | None = None,
    max_age: float | None = None,
    certify: bool = False,
    steady: bool = False,
    corridor: str | None = None,
    picture_check: Sequence[str] = (),
    out: Sequence[Path] = (),
    mcap_ros2: bool = False,
    report: Path | None = None,
    health: str | None = None,
    metrics: str | None = None,
    health_host: str = "127.0.0.1",
    verify_with: str | None = None,
    verify_every: str | None = None,
    evidence: Path | None = None,
    black_box: Path | None = None,
    black_box_seconds: float = 10.0,
    black_box_mb: float = 200.0,
    web: bool = False,
    host: str = "127.0.0.1",
    port: int = 8017,
    token: str | None = None,
    realtime: bool = False,
    core: Sequence[int] = (),
    inject: Path | None = None,
    backend: str | None = None,
    device: str | None = None,
    progress: Progress = lambda step, share: None,
) -> Iterator[DriveJob]:
    """Everything that `rtseg drive` is asked for, opened; closed at the end, its ports too.

    Args:
        source: camera, topic, log, video or images, or several; "NAME=SOURCE" names one.
        model: artifact or network, or several, largest first, for `deadline`; by default the one
            that ships to drive.
        fallback: that serves on the CPU while the first cannot.
        rate: Hz of a recording; 0: every frame, as fast as possible.
        loop: play a recording again and again.
        topic: of an MCAP log or ROS 2 bag.
        deadline: ms from capture to publication.
        max_age: ms after which no mask is published; by default 500.
        certify: mark the pixels whose class float32 gives too.
        steady: hold uncertain pixels for up to 2 frames.
        corridor: polygon "x,y x,y x,y" in fractions of the picture.
        picture_check: limits of picture faults, "black=20".
        out: folders for PNGs, files, rings or topics.
        mcap_ros2: ROS 2 messages in .mcap logs too.
        report: file for the JSON report, with a .md page beside it.
        health: file to write the state to, or port or "unix:PATH" to serve it on.
        metrics: port or "unix:PATH" for Prometheus.
        health_host: address of those ports.
        verify_with: artifact of the same weights that labels some frames too.
        verify_every: one frame in so many, "30", or a share of one core, "10%".
        evidence: folder for what a disagreement leaves; by default in the cache.
        black_box: folder that keeps the last seconds of what goes wrong.
        black_box_seconds: that it holds.
        black_box_mb: megabytes that they may take.
        web: serve a live page too.
        host: address of the page.
        port: of the page; 0 takes a free one.
        token: what is needed to ask from other machines.
        realtime: ask for SCHED_FIFO, locked memory, a frozen collector.
        core: CPU cores to run on, with `realtime`.
        inject: YAML file of faults.
        backend: of the models.
        device: "cpu" or "cuda[:N]", of those.
        progress: called with what is being done and the share of it that is done, 0..1.

    Yields:
        What runs, once.

    Raises:
        UsageError: options that do not go together, a source that is not there, or a model that
            cannot do what is asked of it.
    """
    given = [source] if isinstance(source, str) else list(source)
    models = [model] if isinstance(model, str) else list(model) or [BEST_TO_DRIVE]
    if len(models) > 1 and deadline is None:
        raise UsageError("a ladder of several models works for a deadline: give --deadline MS")
    every_frame = rate == 0
    if max_age is None and not every_frame:
        max_age = DriveLimits.max_age_ms
    pictures = read_limits(picture_check)
    limits = DriveLimits(max_age_ms=max_age, deadline_ms=deadline)
    pace = VerifyPace.parse(verify_every or "30")
    metrics_at: int | str = 0
    if metrics is not None:  # before models are exported, which may take minutes
        metrics_at = int(metrics) if metrics.isdecimal() else metrics
        check_place(metrics_at, health_host, token)
    sources = open_cameras(given, rate, loop, topic)
    names = [name for name in sources if name]
    if corridor is not None and not certify:
        raise UsageError("a corridor is of certified pixels: add --certify")
    if (verify_every or evidence) and not verify_with:
        raise UsageError("frames are verified by a second artifact: give --verify-with ARTIFACT")
    if steady and black_box:  # before the box makes its folder
        raise UsageError(NOT_STEADY)
    inside = parse_corridor(corridor) if corridor is not None else ()
    wishes = RealtimeOptions(cores=tuple(core)) if realtime else None
    with ExitStack() as served:
        asked = None
        if health is not None:
            # Open while models are still exported, which may take minutes. A number is a port: a
            # file of that name is written as ./8080.
            where = int(health) if health.isdecimal() else health
            asked = served.enter_context(HealthPoint(where, health_host, token))

        def tell(what: str, share: float) -> None:
            progress(what, share)
            if asked is not None:
                asked.tell(what)

        artifacts = [
            resolve_artifact(each, backend=backend, device=device, progress=tell) for each in models
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
        sinks: list[Any] = open_sinks(out, card, blend, rate, mcap_ros2, names, certify)
        # Counted from here: models are exported by now, which may take minutes.
        plan = FaultPlan(read_plan(inject), time.monotonic_ns()) if inject else None
        if plan is not None:
            check_cameras(plan.faults, names)
            sources = {name: FaultySource(each, plan, name) for name, each in sources.items()}
            task = with_faults(task, plan)
            sinks.append(FaultySink(plan))
        pages = []
        if web:
            from .demo.live import LivePage

            pages = [
                LivePage(card.class_table, card.model, deadline, camera=name) for name in sources
            ]
            sinks += pages
        drive = Drive(
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
            from .runtime.sinks.prometheus import serve_metrics

            metered = serve_metrics(drive.snapshot, metrics_at, health_host, token)
            served.enter_context(closing(metered))
        url = ""
        if pages:
            from .demo.web import Server

            server = served.enter_context(Server(pages, host, port, token))
            url = server.url
        yield DriveJob(drive, None if names else given[0], artifacts, plan, report, url)
