"""Bounds of an artifact's error, as its card keeps them, and the labels that they certify."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class ConfidenceTable(BaseModel, frozen=True, extra="forbid"):
    """How often pixels with a lead are right.

    shares: in 255ths and never falling; entry i is of leads from i * step to (i + 1) * step, the
    last one of all above. against: what a label was compared with, "truth" (labels of the proof's
    frames) or "float32" (the network's own); pixels: that were compared.
    """

    against: Literal["truth", "float32"]
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    shares: Annotated[tuple[Annotated[int, Field(ge=0, le=255)], ...], Field(min_length=1)]
    pixels: Count

    @property
    def table(self) -> NDArray[np.uint8]:
        return np.array(self.shares, np.uint8)


class ErrorBound(BaseModel, frozen=True, extra="forbid"):
    """The largest error of an artifact's logits on its proof's frames.

    arithmetic: what computed them, as `Backend.arithmetic` names it; a bound holds for no other.
    observed: half the largest spread, over the classes of a pixel, of the difference to float32's
    logits: a class that leads by more than twice this leads in float32 too. halved: the largest
    lead of which float32 has less than half: every class that led by more kept at least half of its
    lead, on every frame of the proof; None in files of versions that did not measure it. frames,
    pixels: behind both. risk: 1 / (frames + 1), the probability that the next frame goes beyond
    the one that certifies, if it is one of the same kind, in no particular order. share: of the
    proof's pixels that are certified so.
    """

    arithmetic: str
    observed: Size
    halved: Size | None = None
    frames: Count
    pixels: Count
    risk: Share
    share: Share
    confidence: ConfidenceTable | None = None

    @property
    def lead(self) -> float:
        """The lead above which a class is certified."""
        return 2 * self.observed if self.halved is None else self.halved


@dataclass(frozen=True)
class Details:
    """What `Segmenter.details` says of a frame (H, W), all arrays the caller's own.

    Attributes:
        labels: uint8 class ids, as the Segmenter's call gives them.
        certified: bool, True where the float32 network gives the same class, as long as the frame
            stays within `bound`; None where that cannot be said.
        confidence: uint8, in 255ths: how often a label with this lead was right; None likewise.
        bound: that both are of.
        why: what to do to have them, where they are None.
    """

    labels: NDArray[np.uint8]
    certified: NDArray[np.bool_] | None = None
    confidence: NDArray[np.uint8] | None = None
    bound: ErrorBound | None = None
    why: str = ""

    @property
    def certified_share(self) -> float | None:
        """Of all pixels, 0..1."""
        return None if self.certified is None else float(self.certified.mean())
