"""Steady labels in a drive: one camera's masks, each held against the one before."""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from ..bounds import Details
from ..steadiness import LabelMemory
from .clock import DriveLimits
from .engine import Answer, InferenceEngine

Maker = tuple[InferenceEngine, int]  # and its level


@dataclass(frozen=True)
class HeldSummary:
    """How many masks could be held steady, the share of their pixels that was held, 0..1 (None of
    nothing), and why the last one could not be."""

    masks: int
    share: float | None
    why: str = ""

    def __str__(self) -> str:
        if self.share is None:
            return f"nothing: {self.why}" if self.why else "no mask yet"
        return f"{self.share:.2%} of the pixels of {self.masks} masks"


class SteadyMasks:
    """Holds uncertain pixels of the masks that a camera's loop publishes, see `LabelMemory`.

    A mask follows another one if the same engine made both at the same level, with no message of
    trouble between them, and no doubt about either picture. A class that is shown was seen in a
    frame captured at most `max_age` ago, in pixels that are held too.

    Args:
        limits: of the drive, on ages.
        tells: whether results say what is certified, and how sure labels are.
        memory: how long and below which confidence a pixel is held.
    """

    def __init__(self, limits: DriveLimits, tells: bool, memory: LabelMemory | None = None):
        self.limits, self.tells = limits, tells
        self.memory = memory or LabelMemory()
        self.why = ""  # the last mask could not be held
        self._maker: Maker | None = None
        self._captured_ns: deque[int] = deque(maxlen=self.memory.hold)  # of the masks before
        self._masks = self._held = self._pixels = 0
        with contextlib.suppress(ImportError):  # compiled here, where no camera waits for it
            blank = np.zeros((1, 1), np.uint8)
            LabelMemory().steady(Details(blank, blank == 1, blank))

    def forget(self) -> None:
        """The next mask follows none."""
        self.memory.forget()
        self._captured_ns.clear()

    def hold(self, answer: Answer, maker: Maker, captured_ns: int, doubt: bool, now: int) -> Answer:
        """The answer to publish in place of one that has labels.

        Args:
            answer: of the frame.
            maker: of its labels.
            captured_ns: when the frame was.
            doubt: whether there is a warning of the picture.
            now: monotonic, in ns.
        """
        assert answer.labels is not None
        if answer.confidence is None:
            self.why = answer.why or "the artifact gives no confidence: export it again"
            self.forget()
            return answer if self.tells else replace(answer, certified=None)
        self.why = ""
        if doubt or maker != self._maker:
            self.forget()
        self._maker = maker
        # Of frame after frame back: what a pixel that was held k times shows is the k + 1st's.
        recent = [now <= self.limits.expiry_ns(each) for each in self._captured_ns]
        details = Details(answer.labels, answer.certified, answer.confidence)
        shown = self.memory.steady(details, sum(recent))
        self._captured_ns.append(captured_ns)
        if doubt:
            self.forget()
        self._masks += 1
        self._pixels += answer.labels.size
        self._held += int(np.count_nonzero(shown.labels != answer.labels))
        answer = replace(answer, labels=shown.labels, network=answer.labels)
        if self.tells:
            return replace(answer, confidence=shown.confidence)
        return replace(answer, certified=None, confidence=None)

    def reason(self) -> str:
        """Why a drive is degraded by this, or ""."""
        return f"labels are not held steady: {self.why}" if self.why else ""

    def summary(self) -> HeldSummary:
        share = self._held / self._pixels if self._pixels else None
        return HeldSummary(self._masks, share and round(share, 6), self.why)
