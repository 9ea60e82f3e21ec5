"""Messages from the loop to its sinks: a result, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray


class StatusKind(str, Enum):
    """Why there is no mask.

    Attributes:
        LATE: it is or would be older than `max_age`.
        STALE: no new frame came when one was due.
        LOST: a frame, the camera or the inference failed.
    """

    LATE = "LATE"
    STALE = "STALE"
    LOST = "LOST"


class State(str, Enum):
    """What a drive is doing.

    Attributes:
        starting: no mask yet.
        running: all is well.
        degraded: masks come, but something is wrong.
        stale: no frames come.
        failed: frames come and no mask can be made of them.
        ended: the drive is over, and the reason says why.
    """

    starting = "starting"
    running = "running"
    degraded = "degraded"
    stale = "stale"
    failed = "failed"
    ended = "ended"


PICTURES = ("labels", "image", "certified", "confidence", "network", "logits")


@dataclass(frozen=True)
class Result:
    """The labels of one frame. All sinks share the arrays: copy before writing to them.

    Attributes:
        frame_id: the loop's own count of everything captured, from 0, never repeated.
        index, name: the source's.
        captured_ns: `time.monotonic_ns()` when the frame was captured.
        captured_wall_ns: the same moment since 1970.
        labels: (H, W) uint8 class ids, of the frame's own size.
        image: (H, W, 3) uint8 BGR.
        level: the artifact that made the labels.
        stages_ms: what the age is made of, see `split_age`.
        age_ms: from capture to publication.
        published_ns: monotonic.
        expires_ns: after which the mask must not be used, monotonic.
        coordinate_frame: that the frame is in, as ROS calls it; "" where the source does not say.
        age_source: what the capture time comes from: `exposure`, `driver`, `sender`, `arrival` or
            `playback`.
        warnings: what is wrong with the picture, though it was labeled: causes, as the counters
            have them.
        camera: the name of the one that it is from, in a drive of several, of whose frames alone
            `frame_id` is the count; else "".
        certified: (H, W) bool, where the float32 network gives the same class; confidence: (H, W)
            uint8. As of `Details`; None where they were not asked for, or cannot be had.
        network: (H, W) uint8, the labels before some of them were held steady; None where none
            were, so that `labels` are the network's.
        logits: (channels, h, w) float32, the coarse ones that the labels were made of; None where
            no proof goes on, or the backend has none.
    """

    frame_id: int
    index: int
    name: str
    captured_ns: int
    captured_wall_ns: int
    labels: NDArray[np.uint8]
    image: NDArray[np.uint8]
    level: str
    stages_ms: dict[str, float]
    age_ms: float
    published_ns: int
    expires_ns: int
    coordinate_frame: str = ""
    age_source: str = "arrival"
    warnings: tuple[str, ...] = ()
    camera: str = ""
    certified: NDArray[np.bool_] | None = None
    confidence: NDArray[np.uint8] | None = None
    network: NDArray[np.uint8] | None = None
    logits: NDArray[np.float32] | None = None

    def maps(self) -> dict[str, NDArray[np.uint8]]:
        """What there is of `certified`, 255 or 0, and `confidence`, (H, W) uint8 by name."""
        found: dict[str, NDArray[np.uint8]] = {}
        if self.certified is not None:
            found["certified"] = self.certified.astype(np.uint8) * np.uint8(255)
        if self.confidence is not None:
            found["confidence"] = self.confidence
        return found

    def facts(self) -> dict[str, object]:
        """All but the pictures, for JSON; the camera where it has a name."""
        left_out = PICTURES if self.camera else (*PICTURES, "camera")
        return {key: value for key, value in vars(self).items() if key not in left_out}


@dataclass(frozen=True)
class Status:
    """Sent in place of a result.

    Attributes:
        kind: what is wrong.
        cause: one word, as the counters have it; text: for people.
        at_ns: monotonic; at_wall_ns: the same moment since 1970.
        frame_id, captured_ns: of the frame concerned, None where there is none.
        camera: as in a Result.
    """

    kind: StatusKind
    cause: str
    text: str
    at_ns: int
    at_wall_ns: int
    frame_id: int | None = None
    captured_ns: int | None = None
    camera: str = ""

    def facts(self) -> dict[str, object]:
        """All of it, for JSON; the camera where it has a name."""
        facts = vars(self) | {"kind": self.kind.value}
        return facts if self.camera else {k: v for k, v in facts.items() if k != "camera"}


Message = Result | Status


@dataclass(frozen=True)
class Health:
    """State and its reasons, one sentence each."""

    state: State
    reasons: tuple[str, ...] = field(default=())
