"""The worker process: loads, warms up, proves itself on a known frame, then answers frames.

Started by `Worker` as `python -m rtseg.runtime.drive.worker_process CONNECTION MEMORY TASK`.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ...data.scenes import scene
from ..backends.backend import choose_certifying
from ..open_artifact import load
from ..segmenter import Segmenter
from . import known_frame
from .engine import Answer, Picture, Segment, read_logits, run_batch, run_segmenter
from .quality import p95
from .realtime import RealtimeOptions, apply_realtime
from .worker import SharedPicture

WARM_UPS = 3
TIMED = 8, 1.0  # runs at most, seconds at most: p95 of each level
DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def main(arguments: list[str]) -> None:
    """Load the segmenters, then answer frames until stopped; arguments: from the parent."""
    connection, memory = Connection(int(arguments[0])), SharedPicture(int(arguments[1]))
    task = json.loads(arguments[2])
    _belong_to(task["parent"])
    granted = apply_realtime(RealtimeOptions(**task["realtime"])) if task["realtime"] else {}
    try:
        segmenters = import_loader(task["loader"])(**task["arguments"])
        baselines = [measure_baseline(segmenter) for segmenter in segmenters]
        digests = [
            known_frame_digest(*each) for each in zip(task["levels"], segmenters, strict=True)
        ]
        repetition = (
            known_frame.Repetition(segmenters, task["recheck"]) if task["recheck"] else None
        )
    except Exception as error:  # reported to the parent, whatever it is
        connection.send(("refused", f"{type(error).__name__}: {error}"))
        return
    facts = {
        "levels": task["levels"],
        "backends": [describe_backend(segmenter) for segmenter in segmenters],
        "precisions": [find_precision(segmenter) for segmenter in segmenters],
        "baselines_ms": baselines,
        "batches": [_batch_of(segmenter) for segmenter in segmenters],
        "digests": digests,
        "realtime": granted,
        "rechecks": 0,
    }
    connection.send(("ready", facts))
    answer_frames(connection, memory, segmenters, repetition, task["logits"])


def answer_frames(
    connection: Connection,
    memory: SharedPicture,
    segmenters: list[Segment],
    repetition: known_frame.Repetition | None = None,
    logits: bool = False,
) -> None:
    """Answer frames until the parent hangs up, or the known frame gives something else. logits:
    whether the coarse ones are told, too."""
    while True:
        began = time.perf_counter()
        try:
            _, job, shapes, level = connection.recv()
        except (EOFError, OSError):
            return
        if repetition is not None:
            repetition.add(time.perf_counter() - began)
        given = _answer(job, segmenters[level], memory.view_each(shapes))
        maps = given.batch if given.labels is None else (given.labels,)
        if not maps:
            connection.send(("error", job, given.error))
            continue
        # Behind the labels of a single frame, those of the maps that there are.
        told = (given.certified, given.confidence)
        more = [each.astype(np.uint8) for each in told if each is not None]
        coarse = read_logits(segmenters[level]) if logits and given.labels is not None else None
        tail = [] if coarse is None else [coarse.view(np.uint8).ravel()]
        memory.write(*maps, *more, *tail)
        facts = given.inference_ms, [labels.shape for labels in maps], len(more), given.why
        connection.send(("labels", job, *facts, () if coarse is None else coarse.shape))
        if repetition is not None and repetition.due(level, connection.poll()):
            changed = repetition.find_change(level)
            connection.send(("rechecked", level, changed))
            if changed:
                return


def _answer(job: int, segment: Segment, images: list[Picture]) -> Answer:
    if len(images) == 1:
        return run_segmenter(job, segment, images[0])
    return run_batch(job, segment, images)


def _batch_of(segment: Segment) -> int:
    """How many frames it takes at once; certified pixels are told of one at a time, and a camera's
    own bytes are taken one at a time."""
    if not isinstance(segment, Segmenter) or segment.certifies or segment.card.takes_camera:
        return 1
    return segment.card.batch


def load_artifacts(
    paths: list[str], backend: str | None, device: str | None, certify: bool = False
) -> list[Segmenter]:
    """The usual loader: one Segmenter an artifact."""
    return [load_level(path, backend, device, certify) for path in paths]


def load_level(path: str, backend: str | None, device: str | None, certify: bool) -> Segmenter:
    """One of them, where its labels can be certified if they are to be."""
    chosen = choose_certifying(Path(path), backend, device) if certify else backend
    segmenter = load(path, chosen, device)
    segmenter.certifies = certify
    segmenter.picks_size = False  # a frame would wait for another size to be loaded
    return segmenter


def known_frame_digest(level: str, segmenter: Segment) -> str:
    """Of the known frame's labels; only artifacts have one. Raises ArtifactError if it is wrong."""
    return known_frame.prove(segmenter, level) if isinstance(segmenter, Segmenter) else ""


def describe_backend(segmenter: Segment) -> str:
    """What computes it, for the report; "" for what is no artifact."""
    if not isinstance(segmenter, Segmenter):
        return ""
    info = segmenter.info
    threads = f", {info.threads} threads" if info.threads else ""
    return f"{info.name} {info.version}, {info.precision}, {info.device}{threads}"


def find_precision(segmenter: Segment) -> str:
    """What it computes in; "" for what is no artifact."""
    return segmenter.info.precision if isinstance(segmenter, Segmenter) else ""


def measure_baseline(segmenter: Segment) -> float:
    """p95 of a warm segmenter's latency, in ms."""
    card = getattr(segmenter, "card", None)
    if isinstance(segmenter, Segmenter) and segmenter.certifies:
        segmenter = segmenter.details  # whose loops may still have to be compiled, for seconds
    # A drawn scene, not zeros: where the argmax is taken of cells, its time depends on the picture.
    image = card.encode(scene(card.size)) if card else scene((64, 128))
    for _ in range(WARM_UPS):
        segmenter(image)
    return p95(_timed(segmenter, image))


def _timed(segmenter: Segment, image: Picture) -> list[float]:
    runs, seconds = TIMED
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < runs and (not times or time.perf_counter() < end):
        began = time.perf_counter()
        segmenter(image)
        times.append((time.perf_counter() - began) * 1000)
    return times


def import_loader(name: str) -> Any:
    """The function of a name such as "package.module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def _belong_to(parent: int) -> None:
    """Leave Ctrl-C to the parent, and die if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # A worker that outlives a killed drive would keep its memory, and the GPU's.
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)  # it went before this process could be tied to it


if __name__ == "__main__":
    main(sys.argv[1:])
