"""A proof that goes on: a second implementation of the same weights labels some of the frames.

It does so in a process of its own at the lowest priority, after their masks were published. Where
the two disagree on several frames in a row, the state says so, the fallback takes over, and the
evidence is kept.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UsageError
from ..artifact import Card, Precision, read_card
from ..bounds import ErrorBound
from ..open_artifact import load
from ..segmenter import Segmenter
from .agreement import (
    FrameAgreement,
    LabelMap,
    compare_labels,
    frame_bar,
    is_stuck,
    move_frame,
)
from .clock import LoopClock
from .engine import EngineFactory, InferenceEngine, Logits
from .evidence import Evidence, FileWatch
from .messages import Message, Result
from .realtime import lower_priority
from .supervisor import Supervisor
from .worker import WorkerTask

log = logging.getLogger("rtseg")
LOADER = f"{__name__}:load_reference"
CONFIRM = 3  # frames in a row that disagree are a fault; one may be chance
RECOVERED = 3  # frames in a row that agree, after which all is well again
STUCK_S = 120.0  # of the reference's work on one frame
IDLE_S = 0.5
SAME = ("weights", "size", "fit", "pad_color")  # of the cards of both
RECHECK = 10  # frames of the reference, after which it repeats the known frame


@dataclass(frozen=True)
class ProofCounts:
    """What a proof that goes on has seen.

    Attributes:
        reference: the artifact that the engine is held against.
        verified: frames labeled by both; suspects: those that disagreed.
        alarms: faults told, see `reason`.
        last_frame, last_camera, last_agreement: of the newest verified frame; share of equal
            labels.
        least_agreement: of all verified frames.
        rechecks: how often the engine that serves was given the known frame since its start.
        reason: what is wrong now; "" if nothing is.
        evidence: folders that alarms left, the newest last.
    """

    reference: str = ""
    verified: int = 0
    suspects: int = 0
    alarms: int = 0
    last_frame: int | None = None
    last_camera: str = ""
    last_agreement: float | None = None
    least_agreement: float | None = None
    rechecks: int = 0
    reason: str = ""
    evidence: Sequence[str] = ()

    def __str__(self) -> str:
        if self.last_agreement is None or self.least_agreement is None:
            return "no frame was verified: the drive ended before the reference had one"
        return (
            f"{self.verified} frames verified against {self.reference}, agreement "
            f"{self.least_agreement:.3%} at least, {self.last_agreement:.3%} at last; "
            f"{self.suspects} suspect, {self.alarms} alarms; the known frame was repeated "
            f"{self.rechecks} times"
        )


@dataclass(frozen=True)
class ProofAlarm:
    """An engine that disagrees with its reference, seen last on a camera's frame published then."""

    frame_id: int
    published_ns: int
    reason: str
    camera: str = ""


@dataclass(frozen=True)
class VerifiedLevel:
    """What is verified of an artifact of the drive: its card, and the file as it was loaded."""

    card: Card | None = None
    file: FileWatch | None = None


@dataclass
class _Check:
    """A frame that the reference works on; seen, labels, logits: what it gave, if it is asked again
    of the moved frame."""

    number: int
    result: Result
    engine: InferenceEngine
    begun_ns: int
    labels: LabelMap | None = None
    seen: FrameAgreement | None = None
    logits: Logits | None = None


@dataclass(frozen=True)
class VerifyPace:
    """How often a frame is verified: one in `every`, or as often as `share` of one core allows."""

    every: int = 30
    share: float | None = None

    @classmethod
    def parse(cls, text: str) -> VerifyPace:
        """From "30" or "10%".

        Raises:
            UsageError: it is neither.
        """
        number, percent, rest = text.partition("%")
        with contextlib.suppress(ValueError):
            if percent and not rest and 0 < float(number) <= 100:
                return cls(share=float(number) / 100)
            if not percent and int(number) >= 1:
                return cls(every=int(number))
        raise UsageError(
            f"--verify-every is a number of frames such as 30, or a share of one core such as 10%, "
            f"not {text!r}"
        )


class ContinuousProof:
    """A sink that has a reference label some of the frames, and compares.

    A frame that disagrees is followed by the next ones at once: CONFIRM of them in a row are an
    alarm, and so is a single certified pixel, where the reference's own error is known to be far
    below what a certified lead keeps. It stands until RECOVERED frames in a row agree again. Each
    camera's frames are counted by themselves, and of several that are due the one verified longest
    ago goes first.

    Args:
        name: of the reference.
        start: starts it.
        levels: that it can verify, by their name; None: all.
        pace: how often.
        evidence: a folder for what alarms leave.
        clock: for tests.
        card: of the reference.

    Attributes:
        engine_facts: what the engine said of itself when it was ready; the drive sets it.
    """

    name = "continuous proof"
    capacity = 1

    def __init__(
        self,
        name: str,
        start: Callable[[LoopClock], InferenceEngine],
        levels: Mapping[str, VerifiedLevel] | None = None,
        pace: VerifyPace | None = None,
        evidence: Path | None = None,
        clock: LoopClock | None = None,
        card: Card | None = None,
    ):
        self.card = card
        self.reference, self.levels, self.pace = name, levels, pace or VerifyPace()
        self.clock = clock or LoopClock()
        self.engine_facts: Callable[[], Mapping[str, Any]] = dict
        factory: EngineFactory = lambda: start(self.clock)  # noqa: E731
        self.engines = Supervisor(self.clock, factory)
        self.engines.primary.role = "reference"
        self._evidence = Evidence(evidence) if evidence else None
        self._lock = threading.Lock()
        self._newest: dict[str, Result] = {}  # by camera, of those due
        self._published: Counter[str] = Counter()  # by camera, since its last one that was taken
        self._turns: dict[str, int] = {}  # the number of each camera's last check
        self._next_ns = 0
        self._check: _Check | None = None
        self._numbers = 0
        self._verified = self._suspects = self._alarms = 0
        self._wrong: Counter[str] = Counter()  # in a row, by camera
        self._right: Counter[str] = Counter()
        self._blamed = ""  # the camera of the last alarm
        self._last: FrameAgreement | None = None
        self._least = 1.0
        self._before: dict[str, tuple[LabelMap, LabelMap]] = {}  # by camera
        self._reason = self._file_reason = ""
        self._alarm: ProofAlarm | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def __call__(self, message: Message) -> None:
        """Take note of a result; the work on it is another thread's."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="continuous proof", daemon=True)
            self._thread.start()
        if not isinstance(message, Result):
            return
        if self.levels is not None and message.level not in self.levels:
            return
        with self._lock:
            self._published[message.camera] += 1
            due = self._due(message.camera)
            # At a share of a core all wait for their turn, so that no camera is passed over.
            if due or self.pace.share is not None:
                # What the reference has an opinion of is the network's answer.
                network = message.network
                judged = message if network is None else replace(message, labels=network)
                self._newest[message.camera] = judged
            if due:
                self.clock.wake()

    def _due(self, camera: str) -> bool:
        if 0 < self._wrong[camera] < CONFIRM:
            return True
        if self.pace.share is not None:
            return self.clock.now_ns() >= self._next_ns
        return self._published[camera] >= self.pace.every

    def _run(self) -> None:
        lower_priority()
        while not self._closing:
            self.step()
            self.clock.wait(IDLE_S)
        self.engines.kill()

    def step(self) -> None:
        """Act on what has come since the last step; never waits."""
        self.engines.poll()
        check, slot = self._check, self.engines.primary
        if check is not None:
            if slot.engine is not check.engine:  # it broke
                self._check = None
            elif (answer := check.engine.take()) is not None and answer.job == check.number:
                self._check = None
                if answer.labels is None:
                    self.engines.fail(slot, "backend", answer.error, check.result.frame_id)
                else:
                    self._compare(check, answer.labels, answer.logits)
            elif self.clock.now_ns() - check.begun_ns > STUCK_S * 1e9:
                self._check = None
                self.engines.fail(slot, "stuck", "a frame took too long", check.result.frame_id)
        self._submit()

    def _submit(self) -> None:
        slot = self.engines.serving()
        if self._check is not None or slot is None or slot.engine is None:
            return
        with self._lock:
            suspects = [name for name in self._newest if 0 < self._wrong[name] < CONFIRM]
            waits = self.pace.share is not None and not suspects and not self._due("")
            if not self._newest or waits:
                return
            camera = min(suspects or self._newest, key=lambda name: self._turns.get(name, 0))
            result = self._newest.pop(camera)
            self._published[camera] = 0
        self._numbers += 1
        self._turns[camera] = self._numbers
        self._check = _Check(self._numbers, result, slot.engine, self.clock.now_ns())
        slot.engine.submit(self._numbers, result.image, 0)

    def _compare(self, check: _Check, labels: LabelMap, logits: Logits | None) -> None:
        result = check.result
        if check.seen is not None and check.labels is not None:
            moved = float(np.mean(labels == result.labels))
            self._judge(check, check.labels, replace(check.seen, moved_agreement=moved))
            return
        seen = compare_labels(
            labels, result.labels, result.frame_id, result.level, result.certified
        )
        seen = replace(seen, camera=result.camera)
        before = self._before.get(result.camera)
        if before is not None and is_stuck(result.labels, labels, before):
            seen = replace(seen, stuck=True)
        if seen.move is None:
            self._judge(replace(check, logits=logits), labels, seen)
            return
        self._numbers += 1
        self._check = replace(check, number=self._numbers, labels=labels, seen=seen, logits=logits)
        check.engine.submit(self._numbers, move_frame(result.image, seen.move), 0)

    def _judge(self, check: _Check, reference: LabelMap, seen: FrameAgreement) -> None:
        result, now = check.result, self.clock.now_ns()
        camera = result.camera
        if self.pace.share is not None:
            self._next_ns = check.begun_ns + int((now - check.begun_ns) / self.pace.share)
        self._before[result.camera] = result.labels, reference
        self._last, self._least = seen, min(self._least, seen.agreement)
        self._verified += 1
        faults = seen.find_faults(self._bar(result.level))
        if faults:
            self._suspects += 1
            before, self._right[camera] = self._wrong[camera], 0
            risk = self._risk_of(result.level) if seen.certified else None
            self._wrong[camera] = before + 1 if risk is None else max(before + 1, CONFIRM)
            if risk is not None:
                faults.append(f"the proof put at {risk:.1%} that a frame is beyond its bound")
            if before < CONFIRM <= self._wrong[camera]:
                self._raise_alarm(check, reference, seen, "; ".join(faults))
        else:
            self._wrong[camera], self._right[camera] = 0, self._right[camera] + 1
            if self._reason and camera == self._blamed and self._right[camera] == RECOVERED:
                log.info("the engine agrees with its reference again")
                self._reason = ""
        self._check_file(result)

    def _raise_alarm(
        self, check: _Check, reference: LabelMap, seen: FrameAgreement, why: str
    ) -> None:
        self._alarms += 1
        self._reason = why
        result = check.result
        self._blamed = result.camera
        self._alarm = ProofAlarm(seen.frame_id, result.published_ns, why, result.camera)
        log.error(
            "the engine disagrees with its reference: %s",
            why,
            extra={"cause": "disagreement", "frame": seen.frame_id, **_of_camera(result)},
        )
        if self._evidence is not None:
            cards = {level: each.card for level, each in (self.levels or {}).items()}
            facts = {"reference": self.reference, "engine": dict(self.engine_facts())}
            self._evidence.keep(result, reference, seen, why, cards, facts, check.logits)

    def _check_file(self, result: Result) -> None:
        """A file that was swapped is another engine's at the next start."""
        level = self.levels.get(result.level) if self.levels else None
        if level is None or level.file is None:
            return
        changed = level.file.find_change()
        if changed and not self._file_reason:
            self._alarms += 1
            facts = {"cause": "file", "frame": result.frame_id, **_of_camera(result)}
            log.error("%s", changed, extra=facts)
        self._file_reason = changed

    def _bar(self, level: str) -> float:
        card = self._card_of(level)
        return frame_bar(self._precision_of(level), card.trained if card else True)

    def _card_of(self, level: str) -> Card | None:
        known = self.levels.get(level) if self.levels else None
        return known.card if known else None

    def _precision_of(self, level: str) -> Precision:
        card, said = self._card_of(level), self.engine_facts()
        computed = dict(zip(said.get("levels", ()), said.get("precisions", ()), strict=False))
        return computed.get(level) or (card.precision if card else "fp32")

    def _risk_of(self, level: str) -> float | None:
        """That of the bound by which a level certifies; None where a certified pixel may also
        differ because the reference is off: a certified lead keeps half of what it exceeds."""
        ours = _find_bounds(self._card_of(level), self._precision_of(level))
        said = getattr(self.engines.primary.engine, "facts", {}).get("precisions")
        theirs = _find_bounds(self.card, said[0] if said else "fp32")
        if not ours or not theirs:
            return None
        least, off = min(each.lead for each in ours) / 2, max(each.observed for each in theirs)
        return max(each.risk for each in ours) if least > 2 * off else None

    def take_alarm(self, camera: str | None = None) -> ProofAlarm | None:
        """The alarm since the last call, on a frame of that camera; None: of any. Whoever takes it
        may replace the engine, so frames are counted anew."""
        alarm = self._alarm
        if alarm is None or camera not in (None, alarm.camera):
            return None
        self._alarm = None
        return alarm

    def begin_anew(self) -> None:
        """Another engine serves: what disagreed before, and what waits of it, is not its fault."""
        with self._lock:
            self._wrong.clear()
            self._newest.clear()

    def reasons(self) -> tuple[str, ...]:
        """What is wrong, for the state."""
        found = []
        if self._reason:
            found.append(f"engine disagrees with its reference: {self._reason}")
        if self._file_reason:
            found.append(self._file_reason)
        if (failures := self.engines.failures) and self.engines.serving() is None:
            found.append(f"the reference does not run: {failures[-1].reason}")
        return tuple(found)

    def counts(self) -> ProofCounts:
        """From any thread."""
        last = self._last
        return ProofCounts(
            reference=self.reference,
            verified=self._verified,
            suspects=self._suspects,
            alarms=self._alarms,
            last_frame=last.frame_id if last else None,
            last_camera=last.camera if last else "",
            last_agreement=round(last.agreement, 6) if last else None,
            least_agreement=round(self._least, 6) if last else None,
            rechecks=int(self.engine_facts().get("rechecks", 0)),
            reason="; ".join(self.reasons()),
            evidence=tuple(map(str, self._evidence.folders)) if self._evidence else (),
        )

    def close(self) -> None:
        self._closing = True
        self.clock.wake()
        if self._thread is not None:
            self._thread.join(1.0)
        self.engines.kill()


def _find_bounds(card: Card | None, precision: str) -> list[ErrorBound]:
    bounds = card.proof.bounds if card and card.proof else ()
    return [each for each in bounds if each.arithmetic.split()[-1] == precision]


def _of_camera(result: Result) -> dict[str, str]:
    return {"camera": result.camera} if result.camera else {}


def open_proof(
    reference: Path,
    artifacts: Sequence[Path],
    pace: VerifyPace | None = None,
    evidence: Path | None = None,
) -> ContinuousProof:
    """The proof of a drive's artifacts against another implementation of the same weights.

    Args:
        reference: an artifact, which runs on one thread of the CPU.
        artifacts: of the drive; those with the reference's weights and size are verified.
        pace: how often.
        evidence: a folder for what alarms leave.

    Raises:
        ArtifactError: a file is no artifact.
        UsageError: the largest artifact has other weights or another size.
    """
    from .worker import Worker

    card = read_card(reference)
    levels = {}
    for path in artifacts:
        served = read_card(path)
        if all(getattr(served, name) == getattr(card, name) for name in SAME):
            levels[path.name] = VerifiedLevel(served, FileWatch(path))
    if artifacts[0].name not in levels:
        what = "weights" if read_card(artifacts[0]).weights != card.weights else "a size or fit"
        raise UsageError(
            f"{reference} has {what} other than {artifacts[0]}: export the same checkpoint at the "
            "same size, to another backend or in fp32, to verify with it"
        )
    task = WorkerTask((reference.name,), {"path": str(reference)}, loader=LOADER, recheck=RECHECK)
    task = replace(task, logits=True)
    return ContinuousProof(
        reference.name, lambda clock: Worker(task, clock), levels, pace, evidence, card=card
    )


def load_reference(path: str) -> list[Segmenter]:
    """A worker's loader, see `WorkerTask`: one artifact, on what others leave of one core."""
    lower_priority()
    # At the size that a drive labels each frame at, also where the file has others.
    return [load(path, device="cpu", threads=1, size=read_card(Path(path)).size)]
