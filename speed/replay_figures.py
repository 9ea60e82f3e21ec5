"""Figures of a replay: masks of two sides, their times with intervals, and memory's slope."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..runtime.verify import BARS, Figures, compare
from ..train.evaluate import Confusion
from .replay_side import LabelMap, Picture, ReplaySide
from .timing import Ratio

WORST = 3  # frames that the report shows
RESAMPLES = 1000
FEWEST_SAMPLES = 20  # of memory, for a slope
MOST_SAMPLES = 400  # evenly chosen; every pair of them gives a slope
QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


@dataclass(frozen=True)
class WorstFrame:
    """A frame whose masks differ most; labels (H, W) of both sides."""

    figures: Figures
    image: Picture
    old: LabelMap
    new: LabelMap


@dataclass
class MaskComparison:
    """The masks of a log, old against new.

    Attributes:
        classes: their names.
        frames: figures of each.
        confusion: pixels, rows the old class, columns the new one.
        worst: frames whose masks differ most, the worst first.
        other_pixels: frames whose pixels were others when the old side saw them.
    """

    classes: Sequence[str]
    frames: list[Figures] = field(default_factory=list)
    other_pixels: list[str] = field(default_factory=list)
    worst: list[WorstFrame] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.confusion = Confusion(len(self.classes))

    def add(self, name: str, image: Picture, old: LabelMap, new: LabelMap) -> None:
        """Compare two label maps (H, W) of a frame."""
        figures = compare(old, np.zeros_like(old), new, BARS["fp32"], name)
        self.frames.append(figures)
        self.confusion.update(old, new)
        if figures.agreement < 1:
            self.worst = heapq.nsmallest(
                WORST,
                [*self.worst, WorstFrame(figures, image, old, new)],
                key=lambda each: each.figures.agreement,
            )

    @property
    def agreement(self) -> float:
        return float(np.mean([each.agreement for each in self.frames]))

    @property
    def frame_agreement(self) -> float:
        return min(each.agreement for each in self.frames)

    @property
    def border_agreement(self) -> float:
        return float(np.mean([each.band_agreement for each in self.frames]))

    def class_ious(self) -> dict[str, float]:
        """Overlap of the old masks and the new ones, for the classes that occur."""
        pairs = zip(self.classes, self.confusion.iou().tolist(), strict=True)
        return {name: iou for name, iou in pairs if not np.isnan(iou)}

    def class_shares(self) -> dict[str, float]:
        """Share of the old masks' pixels."""
        counts = self.confusion.matrix.sum(1)
        return dict(zip(self.classes, (counts / max(1, counts.sum())).tolist(), strict=True))

    def worst_class(self, least_share: float) -> tuple[str, float] | None:
        """(name, IoU) of the class that overlaps least; None if no class is that large."""
        shares = self.class_shares()
        judged = [
            (iou, name) for name, iou in self.class_ious().items() if shares[name] >= least_share
        ]
        return (min(judged)[1], min(judged)[0]) if judged else None


def find_quantiles(side: ReplaySide, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """(value, low, high) in ms by name; the 95 % interval by a bootstrap over whole turns. A
    quantile that lies beyond the runs, such as p99.9 of 500, is left out."""
    generator = np.random.default_rng(seed)
    times = [np.asarray(turn, np.float64) for turn in side.rounds]
    whole = np.concatenate(times)
    asked = {n: share for n, share in QUANTILES.items() if len(whole) * (1 - share) >= 0.999}
    shares = list(asked.values())
    drawn = [
        np.quantile(np.concatenate([times[i] for i in pick]), shares)
        for pick in generator.integers(0, len(times), (RESAMPLES, len(times)))
    ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    values = np.quantile(whole, shares)
    return {n: (float(values[i]), float(low[i]), float(high[i])) for i, n in enumerate(asked)}


def find_p99(side: ReplaySide) -> float | None:
    """In ms; None of fewer than 100 runs."""
    times = np.concatenate(side.rounds)
    return float(np.quantile(times, QUANTILES["p99"])) if len(times) >= 100 else None


def compare_latency(old: ReplaySide, new: ReplaySide, interleaved: bool) -> Ratio:
    """New over old, by pairs of turns; of sides that ran apart each is drawn for itself."""
    if interleaved:
        return pair_turns(old.rounds, new.rounds)
    generator = np.random.default_rng(0)
    drawn = [_draw_medians(side, generator) for side in (new, old)]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    medians = [float(np.median(np.concatenate(side.rounds))) for side in (new, old)]
    return Ratio(medians[0] / medians[1], float(low), float(high))


def pair_turns(old: Sequence[Sequence[float]], new: Sequence[Sequence[float]]) -> Ratio:
    """The median, over pairs of turns, of the new turn's median over the old one's.

    What else the machine does slows both turns of a pair, and one pair that it parts is one of many
    here, where it would move the median of all times. The interval is from drawing whole pairs.
    """
    pairs = list(zip(old, new, strict=False))
    logs = np.log([np.median(theirs) / np.median(ours) for ours, theirs in pairs])
    picks = np.random.default_rng(0).integers(0, len(logs), (RESAMPLES, len(logs)))
    low, high = np.exp(np.quantile(np.median(logs[picks], axis=1), [0.025, 0.975]))
    return Ratio(float(np.exp(np.median(logs))), float(low), float(high))


def _draw_medians(side: ReplaySide, generator: np.random.Generator) -> NDArray[np.float64]:
    times = [np.asarray(turn, np.float64) for turn in side.rounds]
    picks = generator.integers(0, len(times), (RESAMPLES, len(times)))
    return np.array([np.median(np.concatenate([times[i] for i in pick])) for pick in picks])


def find_slope(memory_mib: Sequence[float]) -> float | None:
    """Growth in MB a frame: the line through the samples whose slope is the median of those of all
    pairs, which a few large steps do not tilt; None of fewer samples than FEWEST_SAMPLES."""
    if len(memory_mib) < FEWEST_SAMPLES:
        return None
    chosen = np.linspace(0, len(memory_mib) - 1, min(MOST_SAMPLES, len(memory_mib))).astype(int)
    samples = np.asarray(memory_mib)[chosen]
    one, other = np.triu_indices(len(chosen), 1)
    slopes = (samples[other] - samples[one]) / (chosen[other] - chosen[one])
    return float(np.median(slopes)) * 2**20 / 1e6
