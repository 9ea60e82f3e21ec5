"""Messages of a drive for tests of its sinks: results that differ by their frame's id, a status."""

from __future__ import annotations

import numpy as np
from rtseg.runtime.drive.age import STAGES
from rtseg.runtime.drive.messages import Result, Status, StatusKind
from simulated import SECOND

SIZE = 48, 64


def result(frame_id: int = 0, captured_ns: int = 0, size: tuple[int, int] = SIZE) -> Result:
    labels = np.full(size, frame_id % 11, np.uint8)
    labels[0, 0] = (frame_id + 1) % 11
    return Result(
        frame_id=frame_id,
        index=frame_id,
        name=f"street_{frame_id}",
        captured_ns=captured_ns,
        captured_wall_ns=10**18 + frame_id * SECOND // 10,
        labels=labels,
        image=np.full((*size, 3), 10 * frame_id % 256, np.uint8),
        level="nano 48x64",
        stages_ms=dict(zip(STAGES, (0.2, 0.2, 0.1, 0.5, 5.0, 0.5), strict=True)),
        age_ms=6.5,
        published_ns=captured_ns + 6_500_000,
        expires_ns=captured_ns + SECOND // 2,
    )


def status(kind: StatusKind = StatusKind.STALE, frame_id: int | None = None) -> Status:
    return Status(kind, "camera", "no frame for 120 ms", 7, 10**18, frame_id)
