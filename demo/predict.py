"""Label maps and overlays of images, folders and videos, written as files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from ..data.frames import Frame, Source, Unreadable
from ..data.images import blend, write_png
from ..errors import UsageError
from ..runtime import Segmenter
from .clip_labels import ClipLabels
from .writers import Video


@dataclass
class PredictSummary:
    """What a prediction run did. ms: mean time that it waited for the labels of one frame."""

    frames: int = 0
    skipped: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    total_ms: float = 0.0

    @property
    def ms(self) -> float:
        return self.total_ms / self.frames if self.frames else 0.0


def predict(
    source: Source,
    segmenter: Segmenter,
    out: Path,
    label_ids: bool = False,
    opacity: float = 0.5,
    progress: Callable[[Frame | Unreadable], None] = lambda frame: None,
    steady: bool = False,
) -> PredictSummary:
    """Write `out/labels/NAME.png` (uint8 class ids, or the data set's own ids) and, for images,
    `out/overlays/NAME.png`, for a video one `out/NAME.mp4` of overlays.

    An unreadable frame is counted and passed over.

    Args:
        source: Frames.
        segmenter: Labels them.
        out: Folder, made if it is not there.
        label_ids: Write the ids that the data set's own files use.
        opacity: 0..1 of the colors.
        progress: Called with each frame.
        steady: Hold uncertain pixels along each clip, see `ClipLabels`.

    Raises:
        UsageError: if label ids are asked for, but the class set has none; or steady labels, of an
            artifact that gives no confidence.
        OSError: if the video is not whole, on a full disk say; it stays as NAME.partial.
    """
    if label_ids and segmenter.card.label_ids is None:
        raise UsageError(
            f"the class set {segmenter.card.class_set!r} has no label ids of its own: "
            "leave --label-ids out"
        )
    summary = PredictSummary()
    label = ClipLabels(segmenter, steady)
    video = Video(out / f"{source.video.stem}.mp4", source.fps) if source.video else None
    waiting: deque[Frame] = deque()  # for their labels
    reading_ms = 0.0

    def frames() -> Iterator[Frame]:
        nonlocal reading_ms
        began = perf_counter()
        for frame in source:
            progress(frame)
            if isinstance(frame, Unreadable):
                summary.skipped.append(frame.reason)
                label.cut()
                continue
            waiting.append(frame)
            reading_ms += (perf_counter() - began) * 1000
            yield frame
            began = perf_counter()
        reading_ms += (perf_counter() - began) * 1000

    try:
        began = perf_counter()
        for labels in label.stream(frames()):
            summary.total_ms += (perf_counter() - began) * 1000 - reading_ms
            frame = waiting.popleft()
            summary.frames += 1
            ids = _as_label_ids(labels, segmenter) if label_ids else labels
            summary.written.append(_write(out / "labels" / f"{frame.name}.png", ids))
            picture = blend(frame.image, labels, segmenter.card.palette, opacity)
            if video is not None:
                video.add(picture)
            else:
                summary.written.append(_write(out / "overlays" / f"{frame.name}.png", picture))
            began, reading_ms = perf_counter(), 0.0
    except BaseException:
        if video is not None:
            video.abandon()
        raise
    if video is not None:
        summary.written += video.finish()
    return summary


def _as_label_ids(labels: NDArray[np.uint8], segmenter: Segmenter) -> NDArray[np.uint8]:
    table = np.zeros(256, np.uint8)
    table[: len(segmenter.card.classes)] = np.array(segmenter.card.label_ids, np.uint8)
    return np.asarray(table[labels])


def _write(path: Path, picture: NDArray[np.uint8]) -> str:
    write_png(path, picture)
    return str(path)
