"""Inference in a separate process: a crash stays there, and a hang can be killed.

An error of CUDA is sticky: the process that met it never computes again. So the loop stays in its
own process, and the worker's is killed and replaced. Frames and labels travel through one piece of
shared memory without a name, which the kernel frees when both processes are gone; everything else
as short messages over a pair of sockets.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ...errors import BackendError
from .clock import LoopClock
from .engine import Answer, Logits, Picture
from .realtime import RealtimeOptions

FIRST_BYTES = 1 << 20
ARTIFACTS = "rtseg.runtime.drive.worker_process:load_artifacts"


@dataclass(frozen=True)
class WorkerTask:
    """What a worker serves.

    Attributes:
        levels: names of the segmenters, largest first.
        arguments: of the loader, as JSON values.
        loader: "module:function", called in the worker, which returns the segmenters.
        realtime: what the worker asks of the operating system.
        environment: variables beside this process's own.
        recheck: after how many frames the known frame is repeated; None: never. A worker whose
            artifact gives something else than at its start is broken.
        logits: whether answers carry the coarse logits.
    """

    levels: tuple[str, ...]
    arguments: dict[str, Any]
    loader: str = ARTIFACTS
    realtime: RealtimeOptions | None = None
    environment: dict[str, str] = field(default_factory=dict)
    recheck: int | None = None
    logits: bool = False


class SharedPicture:
    """Memory shared by two processes: a frame on its way there, its labels on the way back."""

    def __init__(self, handle: int | None = None):
        self.handle = _anonymous_file() if handle is None else handle
        if handle is None:
            os.ftruncate(self.handle, FIRST_BYTES)
        self._map: mmap.mmap | None = mmap.mmap(self.handle, 0)

    def write(self, *pictures: Picture) -> None:
        """One or several, one behind the other. Raises OSError after `close`, as `view` does."""
        size = sum(picture.nbytes for picture in pictures)
        if size > len(self._mapped()):
            os.ftruncate(self.handle, size)
        places = self.view_each([picture.shape for picture in pictures])
        for place, picture in zip(places, pictures, strict=True):
            place[...] = picture

    def view_each(self, shapes: Sequence[Sequence[int]]) -> list[Picture]:
        """The pictures in it, as `view`."""
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
        parts = np.split(self.view((int(ends[-1]),)), ends[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def view(self, shape: Sequence[int]) -> Picture:
        """The picture in it, not copied: valid until the next write."""
        size = int(np.prod(shape))
        memory = self._mapped()
        if size > len(memory):
            # The other side has made the file longer: this mapping is of its old length.
            memory = self._map = mmap.mmap(self.handle, 0)
        return np.frombuffer(memory, np.uint8, size).reshape(shape)

    def _mapped(self) -> mmap.mmap:
        if self._map is None:
            raise OSError("the memory is closed")
        return self._map

    def close(self) -> None:
        """The mapping has a handle of its own, which goes with it."""
        handle, self.handle, self._map = self.handle, -1, None
        os.close(handle)


class Worker:
    """An `InferenceEngine` in another process, which runs `rtseg.runtime.drive.worker_process`.

    Args:
        task: what to serve.
        clock: of the loop, which it wakes.
        known: digests of the known frame's labels by level, which workers of one task share: the
            first that is ready fills it in, and one that computes anything else later is broken.

    Raises:
        OSError: out of processes, memory or descriptors.
    """

    def __init__(self, task: WorkerTask, clock: LoopClock, known: dict[str, str] | None = None):
        self.levels, self.clock = task.levels, clock
        self.known = {} if known is None else known
        self.ready, self.fault = False, ""
        self.baselines_ms: Sequence[float] = [0.0] * len(task.levels)
        self.facts: dict[str, Any] = {}  # what it said of itself when it was ready
        self._answers: list[Answer] = []
        self.batches: Sequence[int] = [1] * len(task.levels)
        self._memory = SharedPicture()
        try:
            ours, theirs = socket.socketpair()
            self._connection = Connection(ours.detach())
            with theirs:
                self.process = _spawn(task, theirs.fileno(), self._memory.handle)
        except OSError:  # no descriptors or memory left: what it took is given back at once
            self._memory.close()
            raise
        self._thread = threading.Thread(target=self._listen, name="worker", daemon=True)
        self._thread.start()

    @property
    def process_id(self) -> int:
        return self.process.pid

    def submit(self, job: int, image: Picture, level: int) -> None:
        self.submit_batch(job, [image], level)

    def submit_batch(self, job: int, images: Sequence[Picture], level: int) -> None:
        try:
            self._memory.write(*images)
            self._connection.send(("run", job, [image.shape for image in images], level))
        except OSError as error:
            self._break(f"the worker process cannot be reached: {error}")

    def take(self) -> Answer | None:
        return self._answers.pop(0) if self._answers else None

    def kill(self) -> None:
        """SIGKILL: a process inside a driver's call does not hear anything else. It is not waited
        for here, since one inside the kernel takes its time; the listening thread does that."""
        self.ready = False
        with contextlib.suppress(OSError):
            self.process.kill()

    def join(self, timeout_s: float) -> None:
        """Until the process is gone and what it held is free."""
        self._thread.join(timeout_s)

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self._hear(*self._connection.recv())
        code = self.process.wait()
        self._break(f"the worker process ended {_ending(code)}")
        self._connection.close()
        self._memory.close()

    def _hear(self, kind: str, *rest: Any) -> None:
        if kind == "ready":
            (self.facts,) = rest
            self._begin_serving()
        elif kind == "refused":
            self._break(*rest)
        elif kind == "labels":
            self._answers.append(self._read_answer(*rest))
        elif kind == "error":
            job, text = rest
            self._answers.append(Answer(job, None, error=text))
        elif kind == "rechecked":
            level, changed = rest
            self.facts["rechecks"] += 1
            if changed:
                self._break(f"{self.levels[level]} gives {changed}: its process is replaced")
        self.clock.wake()

    def _read_answer(
        self,
        job: int,
        inference_ms: float,
        shapes: list[tuple[int, int]],
        maps: int,
        why: str,
        coarse: tuple[int, ...] = (),
    ) -> Answer:
        logits: Logits | None = None
        tail = [(4 * int(np.prod(coarse)),)] if coarse else []
        views = self._memory.view_each([*shapes, *shapes[:1] * maps, *tail])
        # Copies, since the next frame goes into the same memory.
        labels, *more = [view.copy() for view in views]
        if coarse:
            logits = more.pop().view(np.float32).reshape(coarse)
        if len(shapes) > 1:
            return Answer(job, None, inference_ms, batch=(labels, *more))
        certified = more[0] == 1 if more else None
        confidence = more[1] if maps > 1 else None
        return Answer(job, labels, inference_ms, "", certified, confidence, why, logits=logits)

    def _begin_serving(self) -> None:
        for level, digest in zip(self.levels, self.facts["digests"], strict=True):
            if self.known.setdefault(level, digest) != digest:
                self._break(f"{level} gives other labels for the known frame than at the start")
                return
        self.baselines_ms = self.facts["baselines_ms"]
        self.batches = self.facts["batches"]
        self.ready = True

    def _break(self, why: str) -> None:
        self.fault = self.fault or why
        self.ready = False
        self.clock.wake()


def _spawn(task: WorkerTask, connection: int, memory: int) -> subprocess.Popen[bytes]:
    # The environment goes to the process itself, not onto its command line, which anybody can read.
    facts = asdict(task) | {"parent": os.getpid(), "environment": None}
    module = f"{__package__}.worker_process"
    command = [sys.executable, "-m", module, str(connection), str(memory), json.dumps(facts)]
    # Not multiprocessing: a fork would take the parent's threads and locks along, and spawn runs
    # the caller's main module again.
    return subprocess.Popen(
        command,
        pass_fds=(connection, memory),
        stdin=subprocess.DEVNULL,
        env=os.environ | task.environment,
    )


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        # Without a name in any folder: a crash leaves no file behind.
        return os.memfd_create("rtseg-frame")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _ending(code: int) -> str:
    return f"by signal {-code}" if code < 0 else f"with exit code {code}"


def wait_ready(worker: Worker, limit_s: float) -> None:
    """Until it is ready. Raises BackendError if it breaks or takes longer."""
    end = time.monotonic() + limit_s
    while not worker.ready:
        if worker.fault or time.monotonic() > end:
            raise BackendError(worker.fault or f"not ready within {limit_s:g} s")
        worker.clock.wait(0.1)
