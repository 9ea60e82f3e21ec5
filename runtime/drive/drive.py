"""`Drive`: connects a source, a segmenter and sinks, and keeps them going."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data.descriptors import RESERVE
from ...errors import UsageError
from ...usage import UsageLog
from ..artifact import Card, read_card
from ..backends.backend import refuse_network
from ..segmenter import Segmenter
from ..sinks.black_box import BlackBox
from ..sinks.queue import Sink, SinkQueue
from .camera_report import assess_cameras, find_causes, report_cameras, snapshot_cameras
from .cameras import CameraLoops, Sources, name_sources
from .capture import Capture, Mailbox, Source
from .certified_share import CertifiedShare, Corridor
from .clock import LONGEST, DriveLimits, LoopClock
from .continuous_proof import ContinuousProof
from .engine import EngineFactory, InlineEngine, Segment
from .health import History, find_cause
from .health_server import HealthPoint, Systemd
from .loop import Loop
from .messages import Health
from .picture_faults import PictureLimits
from .realtime import RealtimeOptions, apply_realtime
from .report import DriveReport, DriveSnapshot, end_snapshot
from .stats import FrameCounters
from .steady_masks import SteadyMasks
from .supervisor import Supervisor
from .worker import Worker, WorkerTask

Artifact = str | os.PathLike[str]
log = logging.getLogger("rtseg")
NOT_STEADY = (
    "a black box replays each mask from its frame alone, and a steady one rests on those before: "
    "leave out one of the two"
)
LAST_JOB_S = 0.3  # the frame in inference may still be answered when the loop is told to stop
JOIN_S = 0.1  # for captures to end, all together
STOP_S = 0.9  # from a signal to the end, sinks included
FLUSH_S = 30.0  # for sinks to take what they accepted when a source ended on its own


class Drive:
    """Runs a segmenter over the newest frames of a source, or of several, and publishes to sinks,
    whatever breaks.

    `run` returns the report. `stop`, SIGTERM and SIGINT end it within a second.

    Args:
        source: an iterable of Frames; it may block and it may raise. One that can be iterated again
            is opened anew when it fails or falls silent; a recording waits for inference.
            Several, in a list or by their names in a dictionary, are cameras that share the
            segmenter, one frame after the other; one that fails does not stop the others.
        segmenter: an artifact's path, which runs in a worker process; several, largest first, for
            deadline control; or a callable (frame -> labels), or several, which run in a thread
            here.
        sinks: callables that take a Result or a Status, each in a thread of its own.
        fallback: an artifact (on the CPU) or a callable that serves while the first cannot.
        limits: deadline, max_age and the like.
        every_frame: the source waits for inference and no frame is passed over, for logs.
        health: a file to write the state to, a port or "unix:PATH" to serve it on, or a
            `HealthPoint`, which says `starting` before there is a drive.
        health_host: the address that the port is of.
        health_token: what is needed to ask there, if other machines can connect.
        backend: of the artifacts in `segmenter`.
        device: of those, too.
        realtime: what to ask the operating system for.
        pictures: from where on a picture is called black, blocked, torn and so on.
        proof: what holds the engine against a reference meanwhile, see `open_proof`.
        certify: results say which pixels are certified, and the drive counts them.
        corridor: corners (x, y), fractions of width and height; pixels in it are counted apart.
        black_box: what keeps the last seconds; SIGUSR1 makes it do so too.
        steady: hold uncertain pixels of each camera for a few frames, see `SteadyLabels`.
        clock: for tests.

    Raises:
        UsageError: a bad argument, too many sources, or artifacts that differ in classes or colors.
        ArtifactError: a file is no artifact.
    """

    def __init__(
        self,
        source: Sources,
        segmenter: Artifact | Segment | WorkerTask | Sequence[Artifact | Segment],
        sinks: Sequence[Sink] = (),
        *,
        fallback: Artifact | Segment | WorkerTask | None = None,
        limits: DriveLimits | None = None,
        every_frame: bool = False,
        health: Artifact | int | HealthPoint | None = None,
        health_host: str = "127.0.0.1",
        health_token: str | None = None,
        backend: str | None = None,
        device: str | None = None,
        realtime: RealtimeOptions | None = None,
        pictures: PictureLimits | None = None,
        proof: ContinuousProof | None = None,
        certify: bool = False,
        corridor: Corridor = (),
        black_box: BlackBox | None = None,
        steady: bool = False,
        clock: LoopClock | None = None,
    ):
        RESERVE.hold()
        self.clock = clock or LoopClock()
        self.realtime, self.health_at = realtime, health
        self._health_door = health_host, health_token
        sources = name_sources(source)
        if steady and black_box is not None:
            raise UsageError(NOT_STEADY)
        options: dict[str, Any] = {
            "backend": backend, "device": device, "realtime": realtime,
            "certify": certify or steady, "recheck": proof.pace.every if proof else None,
            "logits": proof is not None, "borrowed": [],
        }  # fmt: skip
        self._borrowed: list[tuple[Segmenter, bool, bool]] = options["borrowed"]
        on_cpu = options | {"backend": None, "device": "cpu"}
        supervisor = Supervisor(
            self.clock,
            _starter(segmenter, self.clock, options),
            None if fallback is None else _starter(fallback, self.clock, on_cpu),
        )
        card = _check_same_classes(segmenter, fallback)
        for sink in sinks:
            if not callable(sink):
                raise UsageError(f"a sink is a callable that takes messages, not {sink!r:.60}")
        limits = limits or DriveLimits(max_age_ms=None if every_frame else DriveLimits.max_age_ms)
        if proof is not None:
            proof.engine_facts = lambda: supervisor.primary.facts
            sinks = [*sinks, proof]
        self.black_box = black_box
        if black_box is not None:
            black_box.engine_facts = supervisor.facts
            sinks = [*sinks, black_box]
        queues = [SinkQueue(sink, self.clock, len(sources)) for sink in sinks]
        _check_cameras_of(queues, sources)

        def open_loop(name: str, frames: Source) -> Loop:
            counters, mailbox = FrameCounters(), Mailbox(self.clock)
            max_age_ms = limits.max_age_ms
            capture = Capture(
                frames,
                mailbox,
                counters,
                self.clock,
                every_frame,
                max_age_ms,
                pictures,
                format=card.input if card else "bgr",
            )
            own = [queue for queue in queues if queue.camera in (None, name)]
            return Loop(capture, mailbox, supervisor, own, counters, self.clock, limits, name)

        self.loops = CameraLoops(
            {name: open_loop(name, frames) for name, frames in sources.items()}, queues
        )
        for loop in self.loops.all:
            loop.proof = proof
            loop.certified = _count_certified(segmenter, corridor) if certify else None
            loop.steady = SteadyMasks(loop.limits, certify) if steady else None
        for queue in queues:
            if hasattr(queue.sink, "watch"):
                queue.sink.watch = self._watch_of(queue.camera)
            if black_box is not None and hasattr(queue.sink, "keep_incident"):
                queue.sink.keep_incident = black_box.keep
        self.granted: dict[str, str] = {}
        self._history = History()
        self._histories = {name: History() for name in sources}
        self._usage = UsageLog()
        self._stopped_by = self._over = self._served = ""

    @property
    def loop(self) -> Loop:
        """The first camera's."""
        return self.loops.all[0]

    def _watch_of(self, camera: str | None) -> Callable[[], DriveSnapshot]:
        if not camera:
            return self.snapshot
        return lambda: self.snapshot().cameras[camera]

    def run(
        self,
        duration_s: float | None = None,
        on_state: Callable[[float, Health], None] = lambda at_s, health: None,
    ) -> DriveReport:
        """Drive until the source ends, `duration_s` has passed or `stop` is called.

        Args:
            duration_s: seconds; None for no limit.
            on_state: called in the loop's thread at each change of state, with the seconds since
                the start; it must return at once.

        Returns:
            Every frame accounted for, states, times and what failed.

        Raises:
            UsageError: the duration is no time.
            OSError: the health file or port cannot be had.
        """
        if duration_s is not None and not 0 < duration_s <= LONGEST:
            raise UsageError(
                f"a drive lasts more than 0 and at most {LONGEST:g} s, not {duration_s}"
            )
        loop, systemd = self.loop, Systemd()
        with self._signals():
            try:
                asked = self._start()
                end_ns = None if duration_s is None else loop.began_ns + int(duration_s * 1e9)
                while not (ended := self._ended(end_ns)):
                    self.clock.wait(self.loops.wake_s())
                    self.loops.step()
                    self.loops.start_recordings()
                    systemd.tell(self.clock.now_ns(), self._note(on_state))
                systemd.stopping()
                last = replace(self.snapshot(), ended=ended)
                self._over = ended
                # Before the worker goes, whose memory is what matters.
                self._usage.add(self._at_s(), loop.supervisor.processes())
                if asked is not None:
                    asked.close()
                ending_ns = self.clock.now_ns()
                self._finish(STOP_S if self._stopped_by else FLUSH_S)
            finally:
                for item, *before in reversed(self._borrowed):  # as the caller had them
                    item.certifies, item.picks_size = before
        return report_cameras(
            self.loops,
            self._histories,
            self._history,
            last,
            end_s=round((self.clock.now_ns() - ending_ns) / 1e9, 3),
            realtime=self.granted,
            usage=self._usage.samples,
        )

    def stop(self, why: str = "stop()") -> None:
        """End `run` from any thread."""
        self._stopped_by = why
        self.clock.wake()

    def snapshot(self) -> DriveSnapshot:
        """State, counters and times now, and why it ended, if it did; from any thread."""
        now = snapshot_cameras(self.loops)
        return end_snapshot(now, self._over) if self._over else now

    def _start(self) -> HealthPoint | None:
        loop, asked = self.loop, self.health_at
        if asked is not None and not isinstance(asked, HealthPoint):
            asked = HealthPoint(asked, *self._health_door)
        if asked is not None:
            asked.snapshot = self.snapshot
        for queue in self.loops.queues:
            queue.start()
        if self.realtime is not None:
            # After the sinks' threads: a thread inherits its scheduler from the one that starts it.
            self.granted = apply_realtime(self.realtime)
        now = self.clock.now_ns()
        for each in self.loops.all:
            each.began_ns = each.stepped_ns = now
        loop.supervisor.poll()
        for each in self.loops.all:
            if not each.capture.waits:
                each.capture.start()
        return asked

    def _note(self, on_state: Callable[[float, Health], None]) -> Health:
        (health, each), at_s = assess_cameras(self.loops), self._at_s()
        for name, of_camera in each.items():
            if self._histories[name].note(at_s, of_camera) and name:
                self._log_state(of_camera, at_s, name)
        if self._history.note(at_s, health):
            self._log_state(health, at_s)
            on_state(at_s, health)
        serving = self.loop.supervisor.serving()
        if serving is not None and serving.role != self._served:
            if self._served:
                log.warning(
                    "the %s engine serves in place of the %s one",
                    serving.role,
                    self._served,
                    extra={"engine": serving.role, **self._log_facts(at_s)},
                )
            self._served = serving.role
        self._usage.note(at_s, self.loop.supervisor.processes())
        return health

    def _log_state(self, health: Health, at_s: float, camera: str = "") -> None:
        log.info(
            "%s%s: %s",
            f"camera {camera}: " if camera else "",
            health.state.value,
            "; ".join(health.reasons) or "all is well",
            extra={"state": health.state.value, **self._log_facts(at_s, camera)},
        )

    def _log_facts(self, at_s: float, camera: str = "") -> dict[str, object]:
        """Fields of a log line: of one of several cameras, of the only one, or of the whole."""
        facts = {
            "cause": find_cause(self.loops.by_name[camera]) if camera else find_causes(self.loops),
            "source": self.loops.places.get(camera) or ", ".join(self.loops.places.values()),
            "at_s": round(at_s, 3),
        }
        if camera in self.loops.by_name:
            facts["frame"] = self.loops.by_name[camera].counters.last_id()
        return facts | ({"camera": camera} if camera else {})

    def _at_s(self) -> float:
        return (self.clock.now_ns() - self.loop.began_ns) / 1e9

    def _ended(self, end_ns: int | None) -> str:
        """Why the drive is over, or ""."""
        if self._stopped_by:
            return self._stopped_by
        if end_ns is not None and self.clock.now_ns() >= end_ns:
            return "duration"
        captures = [loop.capture for loop in self.loops.all]
        if self.loop.supervisor.hopeless() and all(each.waits for each in captures):
            return "no inference"  # nobody waits for a recording; a camera's drive keeps trying
        if not self.loops.over:
            return ""
        return "source lost" if all(each.gone for each in captures) else "source ended"

    def _finish(self, limit_s: float) -> None:
        """Answer the frame in inference, then let every sink take what it accepted."""
        loops, began = self.loops, self.clock.now_ns()
        for loop in loops.all:
            loop.capture.stop()
        while loops.busy() and self.clock.now_ns() - began < LAST_JOB_S * 1e9:
            self.clock.wait(0.02)
            loops.publish_finished()
        self.loop.supervisor.kill()
        joined_by = time.monotonic() + JOIN_S
        for loop in loops.all:
            loop.capture.join(max(0.0, joined_by - time.monotonic()))
            loop.abandon("stopped")
        for queue in loops.queues:
            queue.close()
        for queue in loops.queues:
            left_s = limit_s - (self.clock.now_ns() - began) / 1e9
            # A sink that is blocked anyway is not waited for.
            queue.join(min(left_s, 0.5) if queue.blocked_s() else left_s)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT stop the drive, and SIGUSR1 makes its black box keep the last seconds,
        where this is the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def caught(number: int, frame: object) -> None:
            # Only a flag: waking takes a lock, which the interrupted thread may hold.
            self._stopped_by = signal.Signals(number).name

        before = {each: signal.signal(each, caught) for each in (signal.SIGTERM, signal.SIGINT)}
        if (box := self.black_box) is not None and hasattr(signal, "SIGUSR1"):
            asked = signal.SIGUSR1
            before[asked] = signal.signal(asked, lambda number, frame: box.keep("SIGUSR1"))
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _check_cameras_of(queues: Sequence[SinkQueue], sources: Iterable[str]) -> None:
    for queue in queues:
        if queue.camera and queue.camera not in sources:
            raise UsageError(
                f"the sink {queue.name} is for {queue.camera}, which is no camera here"
            )


def _starter(what: Any, clock: LoopClock, options: dict[str, Any]) -> EngineFactory:
    """What starts the engine of artifacts, callables or a ready-made task."""
    if isinstance(what, WorkerTask):
        return _worker(what, clock)
    items = list(what) if isinstance(what, (list, tuple)) else [what]
    if not items:
        raise UsageError("a drive needs a segmenter: an artifact's path or a callable")
    if all(callable(item) for item in items):
        for item in items:
            if isinstance(item, Segmenter):
                options["borrowed"].append((item, item.certifies, item.picks_size))
                item.certifies = bool(options["certify"])
                item.picks_size = False  # a frame would wait for another size to be loaded
        return lambda: InlineEngine(items, clock, bool(options["logits"]))
    if any(callable(item) for item in items):
        raise UsageError("segmenters are artifacts or callables, not some of each")
    given = {name: value for name, value in options.items() if name != "borrowed"}
    return _worker(build_artifact_task([Path(item) for item in items], **given), clock)


def _find_cards(*served: object) -> Iterator[tuple[str, Card]]:
    """The cards of what serves, with a name for each."""
    for item in served:
        if isinstance(item, WorkerTask):
            item = item.arguments.get("paths", [])
        for each in item if isinstance(item, (list, tuple)) else [item]:
            if isinstance(each, (str, os.PathLike)):
                refuse_network(each)
                yield str(each), read_card(Path(each))
            elif (card := getattr(each, "card", None)) is not None:
                yield card.model, card


def _count_certified(segmenter: object, corridor: Corridor) -> CertifiedShare:
    """Expects what the proof of the artifacts found, in whichever arithmetic it was least."""
    cards = [card for _, card in _find_cards(segmenter)]
    shares = [bound.share for card in cards if card.proof for bound in card.proof.bounds]
    return CertifiedShare(cards[0].classes if cards else (), min(shares, default=None), corridor)


def _check_same_classes(*served: object) -> Card | None:
    """The first artifact's card, if there is an artifact. All must have the same classes and
    colors, so that a class id means the same whichever serves, and take the same frames.

    Raises:
        ArtifactError: a file is no artifact.
        UsageError: an artifact has other classes or colors than the first one, or takes other
            frames.
    """
    first: tuple[str, Card] | None = None
    for name, card in _find_cards(*served):
        first = first or (name, card)
        if (card.classes, card.palette) != (first[1].classes, first[1].palette):
            raise UsageError(
                f"{name} has other classes or colors than {first[0]}: all artifacts of a "
                "drive, its fallback too, answer in the same ones"
            )
        if _frames_of(card) != _frames_of(first[1]):
            raise UsageError(
                f"{name} takes other frames than {first[0]}: export all artifacts of a drive "
                "with the same --input and --camera-size"
            )
    return first[1] if first else None


def _frames_of(card: Card) -> tuple[str, tuple[int, int] | None]:
    """Format and size that an artifact asks of its camera; any size where it takes any picture."""
    return card.input, (card.camera_size or card.size) if card.takes_camera else None


def _worker(task: WorkerTask, clock: LoopClock) -> Callable[[], Worker]:
    known: dict[str, str] = {}
    return lambda: Worker(task, clock, known)


def build_artifact_task(
    paths: Sequence[Path],
    backend: str | None = None,
    device: str | None = None,
    realtime: RealtimeOptions | None = None,
    certify: bool = False,
    recheck: int | None = None,
    logits: bool = False,
) -> WorkerTask:
    """A worker's task from artifacts, largest first.

    Raises:
        ArtifactError: a file is no artifact.
        UsageError: they do not have the same classes and colors.
    """
    _check_same_classes(paths)
    arguments = {
        "paths": [str(path) for path in paths], "backend": backend, "device": device,
        "certify": certify,
    }  # fmt: skip
    names = tuple(path.name for path in paths)
    return WorkerTask(names, arguments, realtime=realtime, recheck=recheck, logits=logits)
