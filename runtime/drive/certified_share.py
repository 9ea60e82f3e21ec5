"""The certified share of what a drive publishes: in all, by class, in a corridor, and a fall of it.

Every fourth pixel of each direction is counted: the loop's thread does this behind each result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from ...errors import UsageError

STEP = 4
IDS = 256
RECENT = 10  # results whose mean share is judged
FALLEN, RISEN = (
    0.8,
    0.9,
)  # of the share that is expected: fallen below the one until above the other
Corridor = tuple[tuple[float, float], ...]  # corners (x, y) as fractions of width and height


@dataclass(frozen=True)
class CertifiedSummary:
    """Shares of pixels, 0..1, over a whole drive; None of nothing.

    Attributes:
        frames: results that said which pixels are certified.
        silent: those that did not, with `why`.
        share: of all pixels; recent: of the last ten results; expected: of the proof's pixels.
        corridor: of the pixels inside the corridor, if there is one.
        by_class: of each class's pixels, by the class's name.
        falls: how often the recent share fell.
    """

    frames: int = 0
    silent: int = 0
    why: str = ""
    share: float | None = None
    recent: float | None = None
    expected: float | None = None
    corridor: float | None = None
    by_class: Mapping[str, float] = field(default_factory=dict)
    falls: int = 0

    def __str__(self) -> str:
        if self.share is None:
            return f"nothing: {self.why}" if self.why else "no result yet"
        parts = [f"{self.share:.2%} of the pixels"]
        if self.corridor is not None:
            parts.append(f"{self.corridor:.2%} in the corridor")
        parts += [f"fell {self.falls} times"] if self.falls else []
        parts += [f"{self.silent} results say nothing of it"] if self.silent else []
        return ", ".join(parts)


def parse_corridor(text: str) -> Corridor:
    """Corners from "x,y x,y x,y ...", fractions of width and height from the top left.

    Raises:
        UsageError: it is no polygon inside the picture.
    """
    try:
        corners = tuple((float(x), float(y)) for x, y in (pair.split(",") for pair in text.split()))
    except ValueError:
        corners = ()
    if len(corners) < 3 or not all(0 <= side <= 1 for corner in corners for side in corner):
        raise UsageError(
            f'a corridor is "x,y x,y x,y ...", three corners or more, each from 0 to 1 of the '
            f"picture's width and height, not {text!r}"
        )
    return corners


class CertifiedShare:
    """Counts the certified pixels of results.

    Args:
        classes: names.
        expected: the share of a sound artifact, of which a fall is judged; None: of the first ten
            results.
        corridor: to be counted apart.
    """

    def __init__(
        self, classes: Sequence[str], expected: float | None = None, corridor: Corridor = ()
    ):
        self.classes, self.expected, self.corridor = classes, expected, corridor
        self.fallen = False
        self._pixels, self._certified = np.zeros((2, IDS), np.int64)
        self._inside = np.zeros(2, np.int64)  # certified, of how many
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._mask: NDArray[np.bool_] | None = None
        self._frames = self._silent = self._falls = 0
        self._why = ""

    def add(
        self, labels: NDArray[np.uint8], certified: NDArray[np.bool_] | None, why: str = ""
    ) -> None:
        """Count a result: labels and certified are (H, W)."""
        if certified is None:
            self._silent, self._why = self._silent + 1, why
            return
        labels, certified = labels[::STEP, ::STEP], certified[::STEP, ::STEP]
        self._frames, self._why = self._frames + 1, ""
        self._pixels += np.bincount(labels.ravel(), minlength=IDS)
        self._certified += np.bincount(labels[certified], minlength=IDS)
        if self.corridor:
            inside = certified[self._inside_of(certified.shape)]
            self._inside += np.array([np.count_nonzero(inside), inside.size])
        self._recent.append(float(certified.mean()))
        self._judge()

    def _inside_of(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        if self._mask is None or self._mask.shape != shape:
            corners = np.array(self.corridor) * (shape[1] - 1, shape[0] - 1)
            drawn = np.zeros(shape, np.uint8)
            self._mask = cv2.fillPoly(drawn, [corners.round().astype(np.int32)], 1) == 1
        return self._mask

    def _judge(self) -> None:
        """Two bounds, so that a share between them does not switch the state to and fro."""
        if len(self._recent) < RECENT:
            return
        recent = float(np.mean(self._recent))
        if self.expected is None:
            self.expected = recent
        bound = RISEN if self.fallen else FALLEN
        fallen = recent < bound * self.expected
        self._falls += fallen and not self.fallen
        self.fallen = fallen

    def reason(self) -> str:
        """Why a drive is degraded by this, or ""."""
        if self._why:
            return f"no label is certified: {self._why}"
        if not self.fallen or self.expected is None:
            return ""
        recent = float(np.mean(list(self._recent)))
        return f"certified share fell to {recent:.0%} of the pixels, from {self.expected:.0%}"

    def summary(self) -> CertifiedSummary:
        pixels, certified = self._pixels, self._certified
        recent = list(self._recent)
        return CertifiedSummary(
            frames=self._frames,
            silent=self._silent,
            why=self._why,
            share=_share(certified.sum(), pixels.sum()),
            recent=round(float(np.mean(recent)), 6) if recent else None,
            expected=self.expected,
            corridor=_share(*self._inside),
            by_class={
                name: share
                for i, name in enumerate(self.classes)
                if (share := _share(certified[i], pixels[i])) is not None
            },
            falls=self._falls,
        )


def _share(part: np.int64, whole: np.int64) -> float | None:
    return round(int(part) / int(whole), 6) if whole else None
