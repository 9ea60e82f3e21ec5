"""Agreement of two implementations of one network on a driven frame, and when it is too little.

The proof of an artifact judges the mean over many frames. Here each frame is judged alone, against
bars that leave a hard scene room, and only several frames in a row are taken for a fault.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..artifact import Precision
from ..verify import NEARLY_TIED, find_bars

LabelMap = NDArray[np.uint8]  # (H, W)
SLACK = 10.0  # a single frame may differ in that many times the share that the mean may
PROBE = 0.05  # seeming shift, above which a reference is asked of the moved frame too
HALF = 0.5  # pixels that it is moved by
EXPLAINED = 0.6  # share of the pixels that differ, of which that may leave as many
SHIFTED_PIXELS = 200  # that have to differ in all, for a shift to be told from chance
LARGE = 0.01  # share of a frame, from which on a class is judged by itself
LOST_CLASS = 0.1  # overlap (IoU) of such a class, below which it is another class' now
MOVED_ON = 0.003  # share of pixels that change from one frame to another in a scene that moves


@dataclass(frozen=True)
class FrameAgreement:
    """What two label maps of one frame have in common.

    Attributes:
        frame_id: of the drive; camera: its name, where there are several.
        level: the artifact that made the engine's labels.
        agreement: share of pixels with the same label.
        shift: how much the engine's labels seem moved to the right and down, -1 to 1; noise is in
            no direction, and gives about 0.
        moved_agreement: that with the reference's labels of the frame moved that way by half a
            pixel; None where nothing seems moved.
        overlap: the least IoU of a class that takes LARGE of the reference's map; 1.0 if none does.
        overlap_of: that class' id.
        stuck: the engine gave the labels of the frame verified before, which fit no more.
        certified: pixels that the engine certified and the reference labels otherwise; None where
            it certified none.
    """

    frame_id: int
    level: str
    agreement: float
    shift: tuple[float, float] = (0.0, 0.0)
    moved_agreement: float | None = None
    overlap: float = 1.0
    overlap_of: int = -1
    stuck: bool = False
    certified: int | None = None
    camera: str = ""

    @property
    def move(self) -> tuple[float, float] | None:
        """Pixels to the right and down by which to move a frame, to see whether the labels fit it
        better; None where nothing seems moved."""
        x, y = self.shift
        if max(abs(x), abs(y)) < PROBE:
            return None
        return (math.copysign(HALF, x), 0.0) if abs(x) >= abs(y) else (0.0, math.copysign(HALF, y))

    def find_faults(self, bar: float) -> list[str]:
        """What falls below the bars, in words; empty if nothing does. bar: of the agreement."""
        found = []
        if self.agreement < bar:
            found.append(f"labels agree on {self.agreement:.3%} of pixels, at least {bar:.2%} must")
        if self.overlap < LOST_CLASS:
            found.append(f"class {self.overlap_of} overlaps by {self.overlap:.0%}")
        moved = self.moved_agreement
        if moved is not None and 1 - moved < EXPLAINED * (1 - self.agreement):
            found.append(
                f"labels fit the frame moved by half a pixel better ({moved:.3%}) "
                f"than the frame ({self.agreement:.3%})"
            )
        if self.certified:
            found.append(f"{self.certified} certified pixels have another label")
        if self.stuck:
            found.append("the labels are those of a frame before")
        return found


def compare_labels(
    reference: LabelMap,
    labels: LabelMap,
    frame_id: int = 0,
    level: str = "",
    certified: NDArray[np.bool_] | None = None,
) -> FrameAgreement:
    """Compare an engine's labels (H, W) with its reference's of the same frame. certified: (H, W),
    where the engine says that float32 gives the same."""
    overlap, overlap_of = _least_overlap(reference, labels)
    return FrameAgreement(
        frame_id=frame_id,
        level=level,
        agreement=float(np.mean(reference == labels)),
        shift=(_measure_shift(reference, labels, 1), _measure_shift(reference, labels, 0)),
        overlap=overlap,
        overlap_of=overlap_of,
        certified=None
        if certified is None
        else int(np.count_nonzero(certified & (reference != labels))),
    )


def frame_bar(precision: Precision, trained: bool) -> float:
    """The least agreement of a single frame, by the proof's bar for an engine's precision."""
    if not trained:
        return NEARLY_TIED
    return 1.0 - SLACK * (1.0 - find_bars(precision, trained).agreement)


def move_frame(frame: LabelMap, move: tuple[float, float]) -> LabelMap:
    """The frame (H, W, 3), moved by a part of a pixel; its border is repeated."""
    height, width = frame.shape[:2]
    by = np.array([[1, 0, move[0]], [0, 1, move[1]]], np.float32)
    return np.asarray(
        cv2.warpAffine(frame, by, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8
    )


def is_stuck(labels: LabelMap, reference: LabelMap, before: tuple[LabelMap, LabelMap]) -> bool:
    """Whether the labels are those of a frame before although the reference's are others.

    before: labels and reference of that frame.
    """
    return np.array_equal(labels, before[0]) and (
        reference.shape != before[1].shape or float(np.mean(reference != before[1])) > MOVED_ON
    )


def _measure_shift(reference: LabelMap, labels: LabelMap, axis: int) -> float:
    """Labels that are moved by a part of a pixel differ less from a reference that is moved by one
    the same way than from one that is moved the other way."""
    ahead, behind = np.moveaxis(reference, axis, 0), np.moveaxis(labels, axis, 0)
    with_it = int(np.count_nonzero(ahead[:-1] != behind[1:]))
    against_it = int(np.count_nonzero(ahead[1:] != behind[:-1]))
    if with_it + against_it < SHIFTED_PIXELS:
        return 0.0
    return (against_it - with_it) / (against_it + with_it)


def _least_overlap(reference: LabelMap, labels: LabelMap) -> tuple[float, int]:
    counts = np.bincount(reference.ravel(), minlength=256)
    found: Sequence[int] = np.flatnonzero(counts > LARGE * reference.size).tolist()
    least, of = 1.0, -1
    for each in found:
        one, other = reference == each, labels == each
        overlap = float(np.count_nonzero(one & other) / np.count_nonzero(one | other))
        if overlap < least:
            least, of = overlap, each
    return least, of
