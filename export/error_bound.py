"""The error bound that a proof leaves in an artifact's card, and its table of confidences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..runtime.bounds import ConfidenceTable, ErrorBound
from .reference import LabelMap, Logits

Leads = NDArray[np.float32]  # (pixels,)
Right = NDArray[np.bool_]  # (pixels,)

STEPS = 32  # of a table of confidences
SAMPLED = 7  # every so many pixels go into that table; neighbors say much the same
SETTLED = 1 / 255  # of the largest share: leads from there on are one entry
MOST_LEADS = 0.75  # share of the pixels whose leads a table tells apart


class ErrorMeter:
    """Collects the errors of an artifact's logits, frame by frame, as one backend computes them.

    Args:
        arithmetic: of that backend.
    """

    def __init__(self, arithmetic: str):
        self.arithmetic = arithmetic
        self.observed, self.halved, self.frames, self.pixels = 0.0, 0.0, 0, 0
        self._same: list[tuple[Leads, Right]] = []
        self._true: list[tuple[Leads, Right]] = []

    def add(self, logits: Logits, float32: Logits, truth: LabelMap | None = None) -> None:
        """A frame's logits and float32's, both (K, H, W), and its true labels if it has any."""
        error = logits - float32
        # What all classes share moves no label. NaN stays: its bound is none.
        spread = float((error.max(axis=0) - error.min(axis=0)).max())
        self.observed = max(self.observed, spread / 2) if spread == spread else np.nan
        self.halved = max(self.halved, find_halved_lead(logits, float32))
        self.frames += 1
        self.pixels += error[0].size
        self._compare(logits, float32, truth)

    def _compare(self, logits: Logits, float32: Logits, truth: LabelMap | None) -> None:
        """Keep a sample of the frame's leads, and whether their labels are right."""
        ours, theirs = (each.reshape(len(each), -1)[:, ::SAMPLED] for each in (logits, float32))
        if len(ours) < 2:
            return
        second, first = np.partition(ours, -2, axis=0)[-2:]
        label, lead = ours.argmax(axis=0), first - second
        self._same.append((lead, label == theirs.argmax(axis=0)))
        if truth is not None:
            known = truth.ravel()[::SAMPLED]
            labeled = known < len(ours)  # ids beyond the classes are unlabeled pixels
            self._true.append((lead[labeled], label[labeled] == known[labeled]))

    def bound(self) -> ErrorBound | None:
        """None of no frames, or where a logit was no number."""
        if not self.frames or not np.isfinite(self.observed):
            return None
        return ErrorBound(
            arithmetic=self.arithmetic,
            observed=self.observed,
            halved=self.halved,
            frames=self.frames,
            pixels=self.pixels,
            risk=1 / (self.frames + 1),
            share=self._share(),
            confidence=make_table(self._true, "truth") or make_table(self._same, "float32"),
        )

    def _share(self) -> float:
        """Of the sampled pixels, those that lead by more than the bound."""
        if not self._same:
            return 1.0  # of one class alone
        return float(np.mean(np.concatenate([lead for lead, _ in self._same]) > self.halved))


def find_halved_lead(logits: Logits, float32: Logits) -> float:
    """The largest lead of a first class over the second of which float32 has less than half, both
    (K, H, W); 0.0 if there is none. A class that is not float32's has none of its lead left."""
    if len(logits) < 2:
        return 0.0
    ours, theirs = (each.reshape(len(each), -1).copy() for each in (logits, float32))
    label = ours.argmax(axis=0)[None]
    first, left = (np.take_along_axis(each, label, 0)[0] for each in (ours, theirs))
    for each in (ours, theirs):
        np.put_along_axis(each, label, -np.inf, 0)
    lead, left = first - ours.max(axis=0), left - theirs.max(axis=0)
    return float(lead[left < lead / 2].max(initial=0.0))


def make_table(
    pairs: Sequence[tuple[Leads, Right]], against: Literal["truth", "float32"]
) -> ConfidenceTable | None:
    """The table of leads and whether their labels are right; None without any."""
    leads = np.concatenate([lead for lead, _ in pairs]) if pairs else np.empty(0, np.float32)
    if not leads.size:
        return None
    right = np.concatenate([each for _, each in pairs])
    # Finer than the table at first, to find where the share of right ones settles.
    top = float(np.quantile(leads, MOST_LEADS)) or 1.0
    fine = _shares(leads, right, top / STEPS**2, STEPS**2)
    settled = int(np.argmax(fine >= fine[-1] - SETTLED))
    step = max(settled, STEPS) / STEPS * top / STEPS**2
    shares = _shares(leads, right, step, STEPS + 1)
    return ConfidenceTable(
        against=against,
        step=step,
        shares=tuple(np.rint(255 * shares).astype(int).tolist()),
        pixels=leads.size,
    )


def _shares(leads: Leads, right: Right, step: float, entries: int) -> NDArray[np.float64]:
    """The share of right labels in each entry, pooled with its neighbors until none is below the
    one before it (isotonic regression)."""
    places = np.minimum(leads / step, entries - 1).astype(int)
    counts = np.bincount(places, minlength=entries)
    hits = np.bincount(places, right, entries)
    pools: list[tuple[float, float, int]] = []  # hits, count, entries
    for hit, count in zip(hits.tolist(), counts.tolist(), strict=True):
        pool = hit, count, 1
        while pools and pools[-1][0] * pool[1] >= pool[0] * pools[-1][1]:
            last = pools.pop()
            pool = last[0] + pool[0], last[1] + pool[1], last[2] + pool[2]
        pools.append(pool)
    return np.repeat([hit / max(count, 1) for hit, count, _ in pools], [n for *_, n in pools])
