"""The loop over pixels behind `steadiness.py`, in one pass. Needs numba."""

from __future__ import annotations

import numpy as np

from ..data.classes import IGNORE
from .argmax_cpu import Flags, Labels, compile_loop


@compile_loop
def hold_pixels(
    labels: Labels,
    confidence: Labels,
    certified: Flags,
    last: Labels,
    frames: Labels,
    limit: int,
    hold: int,
    shown: Labels,
    sure: Labels,
) -> None:
    """Give pixels their class of the last mask where they are uncertain.

    Args:
        labels: (N,) of this frame.
        confidence: (N,) of those.
        certified: (N,), which are never held.
        last: (N,) the last mask; becomes a copy of this one.
        frames: (N,) how many in a row each pixel was held; is counted on.
        limit: of confidence, 0 to 255: below it a pixel may be held.
        hold: frames in a row that it may be.
        shown: (N,) gets the labels.
        sure: (N,) gets their confidence, 0 where a pixel is held.
    """
    for i in range(labels.size):
        new, old = labels[i], last[i]
        held = (confidence[i] < limit) & (not certified[i]) & (new != old) & (frames[i] < hold)
        # 255 lies beside a crop, where there is no class to keep.
        held &= (new != IGNORE) & (old != IGNORE)
        shown[i] = old if held else new
        last[i] = shown[i]
        sure[i] = np.uint8(0) if held else confidence[i]
        frames[i] = frames[i] + np.uint8(1) if held else np.uint8(0)
