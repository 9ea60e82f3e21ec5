"""The stages of a mask's age, and what it counts from."""

from __future__ import annotations

from collections import Counter

from ...data.frames import Frame
from .stats import TimeHistogram, TimeSummary

STAGES = ("camera", "transport", "decode", "waiting", "inference", "publishing")


def split_age(
    frame: Frame, arrived_ns: int, begun_ns: int, inference_ms: float, published_ns: int
) -> dict[str, float]:
    """The stages of a mask's age in ms, in order; their sum is the age.

    `camera`: from the capture until the camera's driver or the sender passed it on; `transport`:
    until this process had its data; `decode`: until it was a picture; `waiting`: until its work
    began; `inference`: of the Segmenter's call; `publishing`: to the worker process and back, and
    to the sinks. A stage that the source does not tell apart is left out and counts in the next.

    Args:
        frame: with the times that its source knows.
        arrived_ns: when the drive got it from the source.
        begun_ns: when its work began.
        inference_ms: of the Segmenter's call, by the worker's clock.
        published_ns: when its labels went to the sinks.
    """
    stages, since = {}, frame.captured_ns
    told = [("camera", frame.sent_ns), ("transport", frame.received_ns)]
    if frame.received_ns is None and frame.age_source in ("exposure", "driver", "sender"):
        told.append(("transport", arrived_ns))
    elif frame.received_ns is not None and frame.age_source != "playback":  # decoded before its due
        told.append(("decode", arrived_ns))
    for stage, until in told:
        # Times of other clocks are estimates: one that lies before the last counts as no time.
        if until is not None and until > since:
            stages[stage], since = (until - since) / 1e6, until
    stages["waiting"] = max(0.0, (begun_ns - since) / 1e6)
    stages["inference"] = inference_ms
    # The worker's own timing may round above ours.
    stages["publishing"] = max(0.0, (published_ns - max(begun_ns, since)) / 1e6 - inference_ms)
    return stages


class AgeRecord:
    """Where the ages of a drive counted from, and how they split."""

    def __init__(self) -> None:
        self.source = ""
        self.sources: Counter[str] = Counter()
        self._stages = {stage: TimeHistogram() for stage in STAGES}

    def add(self, source: str, stages_ms: dict[str, float]) -> None:
        """Count a published mask."""
        self.source = source
        self.sources[source] += 1
        for stage, ms in stages_ms.items():
            self._stages[stage].add(ms)

    def absorb(self, other: AgeRecord) -> None:
        """Add all masks of another camera's."""
        self.sources.update(dict(other.sources))
        self.source = ", ".join(sorted(self.sources))
        for stage, times in other._stages.items():
            self._stages[stage].absorb(times)

    def summaries(self) -> dict[str, TimeSummary]:
        """Of each stage that was ever told."""
        return {stage: each.summary() for stage, each in self._stages.items() if each.count}
