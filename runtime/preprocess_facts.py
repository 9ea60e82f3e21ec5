"""The user's own preprocessing, held against an export's: what a card keeps of it."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field


class PreprocessFacts(BaseModel, frozen=True, extra="forbid"):
    """The user's own preprocessing, as it was held against this artifact's on the proof's frames.

    frames: that both made the network's input of. largest: difference of a pixel, in levels of the
    camera's 255; two ways to round a resize differ by one at most. agreement: share of pixels to
    which the float32 network gives the same label from either, on the worst frame.
    """

    frames: Annotated[int, Field(ge=1)]
    largest: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    agreement: Annotated[float, Field(ge=0, le=1)]

    def __str__(self) -> str:
        return (
            f"your preprocessing gives what this export does on {self.frames} frames: pixels "
            f"differ by at most {self.largest:.2g} of 255 levels, and {self.agreement:.3%} of the "
            "labels are the same"
        )
