"""Label thousands of logs with one model, on all cores of a machine or a cluster, by Ray Data."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..data.signature import required_key
from ..errors import UsageError
from ..runtime import Card, Segmenter, load, read_card
from .logs import REPORT, DriveLog, LogProgress, find_logs
from .workers import Labeler, Row, read_log

logger = logging.getLogger("rtseg")
FORMS = ("png", "rle")
Opener = Callable[[], Segmenter]


@dataclass(frozen=True)
class FleetOptions:
    """How a fleet works.

    Attributes:
        form: "png" or "rle".
        workers: Actors that hold a Segmenter; by default a core or GPU each.
        batch: Frames that one takes at a time.
        address: Of a Ray cluster ("auto": the one that this machine is part of); None starts Ray
            on this machine alone.
        gpus: For each worker.
    """

    form: str = "png"
    workers: int | None = None
    batch: int = 8
    address: str | None = None
    backend: str | None = None
    device: str | None = None
    gpus: float = 0.0


@dataclass
class FleetSummary:
    """What a fleet did. done: logs that earlier runs had finished; failed: why, by input; logs:
    reports by name; seconds: from the first frame in a worker's hands to the last written; start_s:
    what Ray and the models took before, while readers already decode frames."""

    done: int = 0
    frames: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    logs: dict[str, dict[str, object]] = field(default_factory=dict)
    seconds: float = 0.0
    start_s: float = 0.0

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0


def fleet(
    inputs: Sequence[str],
    artifact: Path,
    out: Path,
    options: FleetOptions | None = None,
    opener: Opener | None = None,
    finished: Callable[[str, str], None] = lambda log, error: None,
) -> FleetSummary:
    """Label every frame of every log into `out/LOG/`, each log with its `log.json`.

    A log that has one is done and is skipped, so the same call resumes where it was cut off.
    A log that fails is reported and the rest finish; a worker that dies is replaced, and what it
    had in hand is done again.

    Args:
        inputs: Folders, videos, globs, or `@FILE` with one in each line.
        artifact: Its path must hold on all machines of a cluster.
        out: Folder of the logs' folders.
        options: Workers and form.
        opener: Makes a worker's Segmenter, by default of `artifact`.
        finished: Called with each log's name and its error, or "".

    Raises:
        UsageError: if options are wrong.
        ArtifactError: if the file is no artifact.
    """
    options = options or FleetOptions()
    if options.form not in FORMS:
        raise UsageError(f"labels are written as {' or '.join(FORMS)}, not {options.form!r}")
    # Workers have current folders of their own.
    artifact, out = artifact.absolute(), out.absolute()
    card = read_card(artifact)
    job = {"model": artifact.name, "weights": card.weights, "form": options.form}
    logs = find_logs(inputs)
    waiting = [log for log in logs if not log.is_done(out, job)]
    summary = FleetSummary(done=len(logs) - len(waiting))
    for log in waiting:  # or a report of other labels would stand beside those that come now
        (out / log.name / REPORT).unlink(missing_ok=True)
    if waiting:
        opener, asked_at = opener or local_opener(artifact, options), time.time()
        with start_ray(options) as workers:
            rows = _label_logs(waiting, opener, out, options, workers)
            began_at = _collect(rows, waiting, out, job, card, summary, finished)
            summary.start_s, summary.seconds = began_at - asked_at, time.time() - began_at
    return summary


def local_opener(artifact: Path, options: FleetOptions) -> Opener:
    """One thread for each worker on CPUs: there is a worker on every core."""
    threads: dict[str, Any] = {} if options.gpus else {"threads": 1}
    # By name, too: the machines of a cluster do not have this one's environment.
    signed = required_key()
    return partial(
        load, artifact, options.backend, options.device, require_signature=signed, **threads
    )


@contextmanager
def start_ray(options: FleetOptions) -> Iterator[int]:
    """Ray, here or joined; gives the number of workers. A Ray that this process is part of already
    is used, and left as it is."""
    # Else Ray empties CUDA_VISIBLE_DEVICES in workers that ask for no GPU, and warns that it will
    # stop doing so.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "ERROR")  # it would tell each step on stderr
    import ray

    if ray.is_initialized():
        yield _workers(options)
        return
    here: dict[str, Any] = {}
    if not options.address:
        # One core more than there may be, so that readers run beside a worker on every core.
        here = {
            "num_cpus": (options.workers or os.cpu_count() or 1) + 1,
            "include_dashboard": False,
        }
    ray.init(
        address=options.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here
    )
    try:
        yield _workers(options)
    finally:
        ray.shutdown()


def _workers(options: FleetOptions) -> int:
    """As asked for, or one for every GPU share or core but the readers'."""
    import ray

    resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
    per_worker = resources.get("GPU", 0) / options.gpus if options.gpus else 0
    cores = int(resources.get("CPU", 2)) - 1
    return options.workers or max(1, int(per_worker) if options.gpus else cores)


def _collect(
    rows: Iterator[Row],
    logs: Sequence[DriveLog],
    out: Path,
    job: dict[str, Any],
    card: Card,
    summary: FleetSummary,
    finished: Callable[[str, str], None],
) -> float:
    """Write each log's report once its last row came; gives when the first frame was begun."""
    began_at = math.inf
    open_logs = {log.name: LogProgress(log) for log in logs}
    for row in rows:
        # Not when it comes in here: rows come in blocks, long after the work began.
        began_at = min(began_at, row["began_at"])
        progress = open_logs.get(row["log"])
        if progress is None:
            continue  # of a log that failed
        progress.add(row)
        if progress.complete or progress.error:
            _close(open_logs.pop(row["log"]), out, job, card, summary, finished)
    for progress in open_logs.values():
        progress.error = progress.error or "its reader ended early"
        _close(progress, out, job, card, summary, finished)
    return min(began_at, time.time())


def _close(
    progress: LogProgress,
    out: Path,
    job: dict[str, object],
    card: Card,
    summary: FleetSummary,
    finished: Callable[[str, str], None],
) -> None:
    if not progress.error:
        facts = progress.write(out, job, card.classes)
    told = {"log": progress.log.name, "input": progress.log.input}
    if progress.error:
        logger.warning("log failed", extra=told | {"error": progress.error})
        summary.failed[progress.log.input] = progress.error
    else:
        logger.info("log done", extra=told | {"frames": len(progress.rows)})
        summary.logs[progress.log.name] = facts
        summary.frames += len(progress.rows)
        summary.skipped += len(progress.skipped)
    finished(progress.log.name, progress.error)


def _label_logs(
    logs: Sequence[DriveLog], opener: Opener, out: Path, options: FleetOptions, workers: int
) -> Iterator[Row]:
    """Answers to all frames of all logs as they come, in any order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Every frame knows its log and place: waiting for the order would leave workers idle.
    context.execution_options.preserve_order = False
    jobs = [{"log": log.name, "input": log.input} for log in logs]
    # A block a log, so that logs are read side by side and a bad one ends alone.
    frames = ray.data.from_items(jobs, override_num_blocks=len(jobs)).flat_map(
        read_log, num_cpus=0.5
    )
    answers = frames.map_batches(
        Labeler,
        fn_constructor_args=(opener, str(out), options.form),
        batch_size=options.batch,
        batch_format="numpy",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(size=workers),
        # A GPU's worker waits for it most of the time: cores are left to the readers.
        num_cpus=0 if options.gpus else 1,
        num_gpus=options.gpus or None,
    )
    return iter(answers.iter_rows())


def single_process(
    inputs: Sequence[str], artifact: Path, options: FleetOptions, most: int
) -> float:
    """Frames a second of the plain loop over the same logs: read, label, write, in this process
    with one thread. At most `most` frames; it writes to a folder that is gone afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="rtseg-fleet-") as scratch,
        local_opener(artifact.absolute(), options)() as segmenter,
    ):
        labeler = Labeler(lambda: segmenter, scratch, options.form)
        frames, seconds = 0, 0.0
        for log in find_logs(inputs):
            began = time.perf_counter()
            for row in read_log({"log": log.name, "input": log.input}):
                frames += bool(row["image"])
                labeler.answer(row)
                if frames >= most:
                    break
            seconds += time.perf_counter() - began
            if frames >= most:
                break
    return frames / seconds if seconds else 0.0
