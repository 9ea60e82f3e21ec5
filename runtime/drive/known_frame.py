"""Self-test of a loaded model before it serves: a known frame must give the same labels as ever.

The digest of those labels is kept in the user's cache folder by artifact, backend and device. It is
recorded at the first load on a machine, and holds once a second one gave the same, so it shows that
a replaced worker, or the next start, computes what those did. That they were right is for the
artifact's own proof to show, and for `--verify-with`.

A worker that serves repeats the frame now and then, so that a weight, a table or a buffer that
changes in memory is found, even where it changes fewer labels than int8 itself does.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ...data.scenes import scene
from ...errors import ArtifactError
from ..packages import cache_folder
from ..records import read_record, write_record
from ..segmenter import Segmenter

SEED = 11  # of the drawn street scene
ESTABLISHED = 2  # loads that gave the same labels, before others are refused
SAME = 0.999  # share of pixels that two runs of one model must agree on at least
CONFIRM = 3  # runs in a row that differ from the first are a fault; one may be chance
IDLE = 8  # newest waits for a frame, all of which must be long enough for a repetition
ROOM = 1.5  # times the repetition's own time that such a wait must last
GRAINS, CONTRAST = (1, 2, 4, 8, 16, 32, 64), 45.0  # of the texture: pixels, levels
Labels = NDArray[np.uint8]
log = logging.getLogger("rtseg")
Outputs = Sequence[NDArray[np.generic]]


def prove(segmenter: Segmenter, name: str) -> str:
    """The digest of the known frame's labels, or "" where this backend's vary between runs.

    Raises ArtifactError if the labels are not those known, or are no labels at all.
    """
    frame = segmenter.card.encode(scene(segmenter.card.size, SEED))
    first, second = segmenter(frame), segmenter(frame)
    if first.max() >= len(segmenter.card.classes):
        raise ArtifactError(f"{name} gives class ids that its card does not have")
    if np.mean(first == second) < SAME:
        raise ArtifactError(f"{name} gives different labels each time for the same frame")
    # Threads that add up in another order move a tied pixel: no digest then, which would be chance.
    if not np.array_equal(first, second):
        return ""
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    known, subject = _known(segmenter)
    record = read_record(known, of=subject) or {"labels": digest, "loads": 0}
    loads = record.get("loads", ESTABLISHED)  # of files of versions that did not count
    assert isinstance(loads, int)
    if record["labels"] != digest and loads < ESTABLISHED:
        # Nothing says that the only load before was the sound one: neither is held to the other.
        log.warning("%s gives other labels for the known frame than at its first load here", name)
        record, loads = {"labels": digest}, 0
    if record["labels"] == digest:
        if loads < ESTABLISHED:
            write_record(known, {"of": subject, "labels": digest, "loads": loads + 1})
    else:
        raise ArtifactError(
            f"{name} gives other labels for the known frame than before on this machine: "
            f"check it with `rtseg check`; where that is expected, delete {known}"
        )
    return digest


def _known(segmenter: Segmenter) -> tuple[Path, str]:
    """The file with the digest, and what that is of: a digest of all that may change a label."""
    info, card = segmenter.info, segmenter.card
    files = sorted(card.files.items())
    facts = (card.weights, files, card.size, *asdict(info).values())
    subject = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return cache_folder() / "known-frames" / subject[:32], subject


def draw_texture(size: tuple[int, int], seed: int) -> Labels:
    """Noise of all sizes (H, W, 3) uint8, which excites weights that a street leaves alone."""
    random = np.random.default_rng(seed)
    found = np.full((*size, 3), 128, np.float32)
    for grain in GRAINS:
        cells = -(-size[0] // grain), -(-size[1] // grain), 3
        coarse = random.normal(0, CONTRAST, cells).astype(np.float32)
        found += cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(found, 0, 255).astype(np.uint8)


class KnownFrame:
    """The known frame, and one of texture, through a segmenter that serves, again and again.

    Labels, and the coarse logits where the runtime makes labels of them, must be those of the start
    bit for bit. Where two runs at the start differ, SAME of the labels must agree.

    Args:
        segmenter: sound, as far as is known: its results are what later ones are held against.

    Attributes:
        took_s: time of both.
    """

    def __init__(self, segmenter: Segmenter):
        size = segmenter.card.size
        pictures = scene(size, SEED), draw_texture(size, SEED)
        self.frames = [segmenter.card.encode(each) for each in pictures]
        self._first = [_run(segmenter, each) for each in self.frames]
        began = time.perf_counter()
        second = [_run(segmenter, each) for each in self.frames]
        self.took_s = time.perf_counter() - began
        pairs = zip(self._first, second, strict=True)
        self.exact = all(all(map(np.array_equal, *each)) for each in pairs)

    def find_change(self, segment: Callable[[Labels], Labels]) -> str:
        """What is different now, in words; "" if nothing is.

        Args:
            segment: the segmenter, or what serves in its place.
        """
        for frame, first in zip(self.frames, self._first, strict=True):
            changes = (self._compare(_run(segment, frame), first) for _ in range(CONFIRM))
            # Lazily: a sound engine is run once.
            if all(found := each for each in changes):
                return found
        return ""

    def _compare(self, now: Outputs, first: Outputs) -> str:
        (labels, *logits), (before, *known) = now, first
        if labels.shape != before.shape:
            return f"labels of shape {labels.shape} instead of {before.shape}"
        changed = float(np.mean(labels != before))
        if changed > (0.0 if self.exact else 1 - SAME):
            return f"other labels on {changed:.3%} of the known frame than at the start"
        if self.exact and logits and not np.array_equal(logits[0], known[0]):
            return "other logits for the known frame than at the start"
        return ""


def _run(segment: Callable[[Labels], Labels], frame: Labels) -> Outputs:
    """Labels (H, W), and the coarse logits they were made of where that can be had."""
    labels = segment(frame)
    maker = segment.backend.maker if isinstance(segment, Segmenter) else None
    return [labels] if maker is None else [labels, maker.coarse.copy()]


class Repetition:
    """When a worker repeats the known frame: after every so many frames, in time that it waits
    anyway; where it never waits, after twice as many.

    Args:
        segmenters: by level; those that are no artifacts are passed over.
        every: frames.
    """

    def __init__(self, segmenters: Sequence[object], every: int):
        self.every = every
        self._known = [
            KnownFrame(each) if isinstance(each, Segmenter) else None for each in segmenters
        ]
        self._segmenters = segmenters
        self._waits_s: deque[float] = deque(maxlen=IDLE)
        self._frames = 0

    def add(self, waited_s: float) -> None:
        """Note a frame, and how long the worker waited for it."""
        self._waits_s.append(waited_s)
        self._frames += 1

    def due(self, level: int, others_wait: bool) -> bool:
        """Whether to repeat it now. others_wait: the next frame is there already."""
        known = self._known[level]
        if known is None or self._frames < self.every:
            return False
        roomy = len(self._waits_s) == IDLE and min(self._waits_s) > ROOM * known.took_s
        return (roomy and not others_wait) or self._frames >= 2 * self.every - 1

    def find_change(self, level: int) -> str:
        """Repeat it; what is different, as `KnownFrame.find_change`."""
        known, segmenter = self._known[level], self._segmenters[level]
        assert known is not None
        assert isinstance(segmenter, Segmenter)
        self._frames = 0
        return known.find_change(segmenter)
