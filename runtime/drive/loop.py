"""The loop: newest frame in, labels or a status out, one step at a time.

Everything that waits does so elsewhere: the camera, inference and each sink have threads of their
own that wake the loop. A step handles what has arrived and returns at once.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

from ...data.camera_formats import to_bgr
from ..sinks.queue import SinkQueue
from .age import AgeRecord, split_age
from .capture import Capture, CapturedFrame, Mailbox
from .certified_share import CertifiedShare
from .clock import OVERDUE, UNKNOWN_PERIOD_MS, DriveLimits, LoopClock
from .continuous_proof import ContinuousProof
from .engine import Answer, InferenceEngine
from .messages import Message, Result, Status, StatusKind
from .quality import LevelChange, QualityLadder
from .stats import FrameCounters, TimeHistogram
from .steady_masks import SteadyMasks
from .supervisor import EngineSlot, Supervisor

log = logging.getLogger("rtseg")
IDLE_S = 0.2  # a step at least that often
STARTS_S = 8.0  # that a camera may take from its opening to its first frame
TELL_NS = 33_000_000  # at least, between two statuses of a silent camera


@dataclass
class InferenceJob:
    """A frame in inference.

    Attributes:
        told: the sinks already know that its mask comes too late.
        place: of the frame in a batch of several cameras'.
    """

    number: int
    captured: CapturedFrame
    slot: EngineSlot
    engine: InferenceEngine
    level: int
    begun_ns: int
    told: bool = False
    place: int = 0


class Loop:
    """The state of one camera's drive between two steps.

    Args:
        capture: reads the camera.
        mailbox: what the capture fills.
        supervisor: of the engines, which cameras share.
        queues: of the sinks that hear of this camera.
        counters: of its frames.
        clock: the drive's.
        limits: on ages and times.
        camera: its name, which messages carry; "" where there is only one.

    Attributes:
        job: the frame in inference.
        ladder: of the first engine, once one was ready.
        ages, latencies: of published results, in ms; age_record: what they count from and split in.
        trouble: when each kind of trouble was last, and what it was, for the state.
        proof: that goes on while driving, where there is one.
        certified: counts of certified pixels, where they are asked for.
        steady: what holds uncertain pixels, where that is asked for.
    """

    def __init__(
        self,
        capture: Capture,
        mailbox: Mailbox,
        supervisor: Supervisor,
        queues: Sequence[SinkQueue],
        counters: FrameCounters,
        clock: LoopClock,
        limits: DriveLimits,
        camera: str = "",
    ):
        self.camera = camera
        self.capture, self.mailbox, self.supervisor = capture, mailbox, supervisor
        self.queues, self.counters, self.clock, self.limits = queues, counters, clock, limits
        self.began_ns = clock.now_ns()
        self.stepped_ns = self.began_ns
        self.job: InferenceJob | None = None
        self.ladder: QualityLadder | None = None
        self.ages, self.latencies = TimeHistogram(), TimeHistogram()
        self.age_record = AgeRecord()
        self.misses = 0
        self.published_ns = 0
        self.levels: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.changes: deque[LevelChange] = deque(maxlen=1000)
        self.trouble: dict[str, tuple[int, str]] = {}
        self.proof: ContinuousProof | None = None
        self.certified: CertifiedShare | None = None
        self.steady: SteadyMasks | None = None
        self._jobs = 0
        self._told_ns = 0
        self._told_camera_ns = 0
        self._reopened_ns = 0

    @property
    def period_ms(self) -> float:
        known = self.limits.period_ms or self.capture.period_ms
        if not known and (rate_hz := getattr(self.capture.source, "rate_hz", None)):
            return float(1e3 / rate_hz)  # a recording's, before it has shown it
        return known or UNKNOWN_PERIOD_MS

    @property
    def over(self) -> bool:
        """Whether the source came to its end and its last frame was answered."""
        ended = self.capture.ended or self.capture.gone
        return ended and self.mailbox.empty and self.job is None

    def step(self) -> None:
        """Act on everything that came since the last step; never waits."""
        # Answers first: inference that has just finished is not stuck, and may take the next frame
        # below.
        self.publish_finished()
        self.check()
        self.submit_newest()

    def check(self) -> None:
        """Look after inference and the camera, and tell the sinks what they have to know."""
        # The health port reads this from its own thread: it is how a loop that stands still is
        # found.
        self.stepped_ns = self.clock.now_ns()
        self.supervisor.poll()
        self.check_proof()
        self.check_inference_timeout()
        self.report_dropped_frames()
        self.check_camera()

    def wake_s(self) -> float:
        """Seconds until a step has work that no event will wake the loop for."""
        now = self.clock.now_ns()
        times = [now + int(IDLE_S * 1e9), self._camera_due_ns()]
        if (due := self.supervisor.wake_ns()) is not None:
            times.append(due)
        if self.job is not None:
            times.append(self.job.begun_ns + self.limits.stuck_ns(self.period_ms))
            if not self.job.told:
                times.append(self.limits.expiry_ns(self.job.captured.frame.captured_ns))
        # A moment later than the limit, so that the step finds it passed.
        return max(0.0, (min(times) - now) / 1e9) + 1e-4

    def abandon(self, cause: str) -> None:
        """Count the frames that are still on their way as dropped, at the end."""
        if self.job is not None and not self.job.told:
            self.counters.drop(cause)
        self.job = None
        if self.mailbox.take() is not None:
            self.counters.drop(cause)

    def _tell(
        self,
        kind: StatusKind,
        cause: str,
        text: str,
        frame_id: int | None = None,
        captured_ns: int | None = None,
    ) -> None:
        """Send a status to all sinks; of a frame, where one is concerned."""
        now, wall = self.clock.now_ns(), self.clock.wall_ns()
        if self.steady is not None:  # after any trouble masks begin anew
            self.steady.forget()
        self.statuses[kind.value] += 1
        self._offer(Status(kind, cause, text, now, wall, frame_id, captured_ns, self.camera))

    def _offer(self, message: Message) -> None:
        self._told_ns = self.clock.now_ns()
        for queue in self.queues:
            queue.offer(message)

    def _drop(self, kind: StatusKind, cause: str, text: str, captured: CapturedFrame) -> None:
        self.counters.drop(cause)
        self.trouble[cause] = self.clock.now_ns(), text
        self._tell(kind, cause, text, captured.frame_id, captured.frame.captured_ns)

    def submit_newest(self) -> None:
        """Hand the newest frame to the engine that serves."""
        if (captured := self.take_newest()) is not None:
            self._jobs += 1
            job = self.begin(self._jobs, captured)
            job.engine.submit(job.number, captured.frame.image, job.level)

    def take_newest(self) -> CapturedFrame | None:
        """The newest frame, if it may go to inference now."""
        slot = self.supervisor.serving()
        # A log's frame stays in the mailbox, and its source with it, until there is inference.
        waits = self.capture.every_frame and slot is None
        if self.job is not None or waits or (captured := self.mailbox.take()) is None:
            return None
        now = self.clock.now_ns()
        if slot is None or slot.engine is None:
            if self.ages.count:
                self._drop(StatusKind.LOST, "unserved", "no inference is ready", captured)
            else:  # a normal start, which is no loss
                self.counters.drop("starting")
            return None
        if now > self.limits.expiry_ns(captured.frame.captured_ns):
            self._drop(*explain_expiry(captured, now, self.limits), captured)
            return None
        return captured

    def begin(self, number: int, captured: CapturedFrame, place: int = 0) -> InferenceJob:
        """A job of that frame for the engine that serves, which is there."""
        slot, now = self.supervisor.serving(), self.clock.now_ns()
        assert slot is not None
        assert slot.engine is not None
        job = InferenceJob(number, captured, slot, slot.engine, self.level(slot), now, place=place)
        self.job = job
        return job

    def level(self, slot: EngineSlot) -> int:
        """Which of a slot's artifacts the next frame goes to."""
        if slot is not self.supervisor.primary or slot.engine is None:
            return 0
        if self.ladder is None:
            engine, limits = slot.engine, self.limits
            self.ladder = QualityLadder(
                engine.levels, engine.baselines_ms, limits.deadline_ms, self.period_ms
            )
        self.ladder.period_ms = self.period_ms
        return self.ladder.level

    def publish_finished(self) -> None:
        """Publish the labels of the frame in inference, if they have arrived."""
        job = self.job
        answer = job.engine.take() if job is not None else None
        if answer is not None:
            self.finish(answer)

    def finish(self, answer: Answer) -> None:
        """Publish an answer's labels, or tell what went wrong."""
        job = self.job
        # An answer of another number belongs to a job that was given up.
        if job is None or answer.job != job.number:
            return
        self.job, answer = None, answer.of_place(job.place)
        if answer.labels is not None:
            self._publish(job, self._hold(job, answer))
            return
        if not job.told:
            self._drop(StatusKind.LOST, "backend", answer.error, job.captured)
        if job.slot.engine is job.engine:  # else another frame of the batch told it already
            self.supervisor.fail(job.slot, "backend", answer.error, job.captured.frame_id)

    def _hold(self, job: InferenceJob, answer: Answer) -> Answer:
        """The answer with uncertain pixels held steady, where that is asked for; before the clock
        is read, since what it takes is part of the age."""
        if self.steady is None or job.told:
            return answer
        maker, captured = (job.engine, job.level), job.captured
        return self.steady.hold(
            answer, maker, captured.frame.captured_ns, bool(captured.warnings), self.clock.now_ns()
        )

    def _publish(self, job: InferenceJob, answer: Answer) -> None:
        assert answer.labels is not None
        frame, now = job.captured.frame, self.clock.now_ns()
        age_ms, latency_ms = (now - frame.captured_ns) / 1e6, (now - job.begun_ns) / 1e6
        self._observe(job, latency_ms, age_ms)
        if job.told or now > self.limits.expiry_ns(frame.captured_ns):
            self._tell_late(job)
            return
        level = job.engine.levels[job.level]
        stages_ms = split_age(
            frame, job.captured.arrived_ns, job.begun_ns, answer.inference_ms, now
        )
        self.counters.publish()
        self.published_ns = now
        self.ages.add(age_ms)
        self.age_record.add(frame.age_source, stages_ms)
        self.latencies.add(latency_ms)
        self.levels[level] += 1
        self._offer(
            Result(
                frame_id=job.captured.frame_id,
                index=frame.index,
                name=frame.name,
                captured_ns=frame.captured_ns,
                captured_wall_ns=job.captured.wall_ns,
                labels=answer.labels,
                image=to_bgr(frame.image, frame.format),
                level=level,
                stages_ms=stages_ms,
                age_ms=age_ms,
                published_ns=now,
                expires_ns=self.limits.expiry_ns(frame.captured_ns),
                coordinate_frame=frame.coordinate_frame,
                age_source=frame.age_source,
                warnings=job.captured.warnings,
                camera=self.camera,
                certified=answer.certified,
                confidence=answer.confidence,
                network=answer.network,
                logits=answer.logits,
            )
        )
        if self.certified is not None:  # behind the result, which does not wait for it
            self.certified.add(answer.labels, answer.certified, answer.why)

    def _observe(self, job: InferenceJob, latency_ms: float, age_ms: float) -> None:
        deadline_ms = self.limits.deadline_ms
        if deadline_ms is not None and age_ms > deadline_ms:
            self.misses += 1
        if self.ladder is None or job.slot is not self.supervisor.primary:
            return
        if job.level != self.ladder.level:
            return  # begun before the last step of the ladder
        change = self.ladder.observe(self.clock.now_ns(), latency_ms, age_ms)
        if change is not None:
            self.changes.append(change)
            log.info(
                "level %s after %s: %s",
                change.after,
                change.before,
                change.why,
                extra={"level": change.after, "cause": change.why, "frame": job.captured.frame_id},
            )

    def _tell_late(self, job: InferenceJob) -> None:
        """Once for each frame."""
        if not job.told:
            age_ms = (self.clock.now_ns() - job.captured.frame.captured_ns) / 1e6
            text = f"no mask within {age_ms:.0f} ms of its capture"
            self._drop(StatusKind.LATE, "late", text, job.captured)
        job.told = True

    def check_inference_timeout(self) -> None:
        """Tell the sinks when a mask is overdue; end inference that is stuck or gone."""
        job = self.job
        if job is None:
            return
        now = self.clock.now_ns()
        if job.slot.engine is not job.engine:  # the supervisor ended it
            reason, cause = self.supervisor.failures[-1].reason, "worker"
        elif now >= job.begun_ns + self.limits.stuck_ns(self.period_ms):
            took_ms = (now - job.begun_ns) / 1e6
            reason, cause = f"inference has been stuck for {took_ms:.0f} ms", "stuck"
            self.supervisor.fail(job.slot, cause, reason, job.captured.frame_id)
        else:
            if now > self.limits.expiry_ns(job.captured.frame.captured_ns):
                self._tell_late(job)
            return
        self.job = None
        if not job.told:
            self._drop(StatusKind.LOST, cause, reason, job.captured)

    def check_proof(self) -> None:
        """Let the fallback serve in place of an engine that disagrees with its reference."""
        alarm = self.proof.take_alarm(self.camera) if self.proof is not None else None
        if self.proof is None or alarm is None:
            return
        if alarm.published_ns > self.supervisor.primary.started_ns:
            self.supervisor.distrust(alarm.reason, alarm.frame_id)
        self.proof.begin_anew()

    def report_busy(self, other: str) -> None:
        """Tell the sinks, once a max_age, that frames wait while inference is at another camera's
        frame, which may be stuck there."""
        now, since_ns = self.clock.now_ns(), max(self._told_ns, self.capture.resumed_ns)
        if self.mailbox.empty or not self.ages.count or now <= self.limits.expiry_ns(since_ns):
            return
        text = f"no mask for {(now - since_ns) / 1e6:.0f} ms: inference is at camera {other}"
        self.trouble["busy"] = now, text
        self._tell(StatusKind.LATE, "busy", text)

    def report_dropped_frames(self) -> None:
        """Tell the sinks of frames that the capture thread counted and skipped, and note what is
        wrong with those that came."""
        while self.capture.troubles:
            cause, text = self.capture.troubles.popleft()
            self.trouble[cause] = self.clock.now_ns(), text
        while self.capture.skipped:
            skipped = self.capture.skipped.popleft()
            self.trouble[skipped.cause] = self.clock.now_ns(), skipped.reason
            kind = StatusKind.STALE if skipped.cause == "frozen" else StatusKind.LOST
            self._tell(kind, skipped.cause, skipped.reason, skipped.frame_id)

    def silent_s(self) -> float:
        """Since the last good frame, or since the start."""
        return (self.clock.now_ns() - self._heard_ns()) / 1e9

    def _heard_ns(self) -> int:
        return max(self.capture.last_ns, self.capture.opened_ns, self.began_ns)

    def _camera_due_ns(self) -> int:
        """When `check_camera` may have something to tell."""
        if self.capture.every_frame or self.capture.ended or self.capture.waits:
            return 1 << 62
        period_ns = int(self.period_ms * 1e6)
        overdue = self._heard_ns() + int(OVERDUE * period_ns)
        return max(overdue, self._told_camera_ns + max(period_ns, TELL_NS))

    def check_camera(self) -> None:
        """Tell the sinks when no frame comes, once a period; open a camera that is silent anew."""
        capture, now = self.capture, self.clock.now_ns()
        silent = self.silent_s() > self.limits.silence_s
        if capture.ended or capture.waits or (capture.every_frame and not capture.lost):
            return
        # A source that raised opens itself again; a silent one sits in a call that may never
        # return.
        if silent and not capture.lost and not capture.gone:
            self._reopen(now)
        lost = bool(capture.lost) or silent
        # Before the first frame nothing is overdue: cameras may take seconds to start.
        overdue = now >= self._camera_due_ns() and (capture.last_ns > 0 or silent)
        if not overdue and not (
            lost and now - self._told_camera_ns >= max(self.period_ms * 1e6, TELL_NS)
        ):
            return
        self._told_camera_ns = now
        text = capture.lost or f"no frame for {self.silent_s() * 1000:.0f} ms"
        self._tell(StatusKind.LOST if lost else StatusKind.STALE, "camera", text)

    def _reopen(self, now: int) -> None:
        # Once a silence; and one that has given nothing since it was opened may still be starting.
        opened_ns = max(self._reopened_ns, self.capture.opened_ns, self.began_ns)
        silence_s = self.limits.silence_s
        limit_s = silence_s if self.capture.last_ns > opened_ns else max(silence_s, STARTS_S)
        if now - opened_ns >= limit_s * 1e9:
            self._reopened_ns = now
            self.capture.reopen()


def explain_expiry(
    captured: CapturedFrame, now: int, limits: DriveLimits
) -> tuple[StatusKind, str, str]:
    """Kind, cause and text of a frame that is too old before its work begins: it came so, or it
    waited too long here."""
    taken_ns = captured.frame.captured_ns
    if captured.arrived_ns > limits.expiry_ns(taken_ns):
        behind_ms = (captured.arrived_ns - taken_ns) / 1e6
        return StatusKind.STALE, "behind", f"the stream is {behind_ms:.0f} ms behind"
    return StatusKind.LATE, "expired", f"it came {(now - taken_ns) / 1e6:.0f} ms after its capture"
