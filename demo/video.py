"""The demo: overlays of one or more models side by side, written to a file or shown."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from ..data.classes import ClassSet
from ..data.frames import Frame, Recording, Unreadable
from ..runtime import Segmenter
from .clip_labels import ClipLabels
from .layout import Layout, Seen, compose, plan
from .writers import Writer, open_writer

CITYSCAPES_FPS = 17.0  # of its sequences; images say nothing about their rate
WINDOW = 15  # frames whose median latency is shown in the corner


@dataclass(frozen=True)
class Look:
    """How the picture is made: with the plain frame beside the overlays, or overlays alone;
    opacity 0..1 of the colors; at most `width` pixels wide; palette: in place of the class sets'
    own, by number of classes."""

    camera: bool = True
    opacity: float = 0.55
    width: int = 1920
    palette: Callable[[ClassSet], ClassSet] = lambda classes: classes


class DemoModel:
    """A model in the demo, with its times of one frame through the Segmenter, in ms, and what holds
    its labels steady, if that is asked for."""

    def __init__(self, segmenter: Segmenter, classes: ClassSet, steady: bool = False):
        self.segmenter, self.classes = segmenter, classes
        self.label = ClipLabels(segmenter, steady)
        card = segmenter.card
        self.title = f"{card.model}  {card.size[0]}x{card.size[1]}  {segmenter.info.precision}"
        self.times_ms: list[float] = []
        self._recent: deque[float] = deque(maxlen=WINDOW)

    def look(self, frame: Frame) -> Seen:
        """Label a frame; the first one goes through twice, since it pays for the warm-up."""
        if not self.times_ms:
            self.segmenter.label_picture(frame.image)
        began = perf_counter()
        labels = self.label(frame)
        self.times_ms.append((perf_counter() - began) * 1000)
        self._recent.append(self.times_ms[-1])
        latency = median(self._recent)
        readout = f"{format_figures(latency)} ms   {format_figures(1000 / latency)} FPS"
        return Seen(self.title, readout, self.classes, labels)

    def facts(self) -> dict[str, object]:
        times = np.array(self.times_ms or [np.nan])
        card = self.segmenter.card
        return {
            "model": card.model,
            "size": f"{card.size[0]}x{card.size[1]}",
            "backend": self.segmenter.info.name,
            "precision": self.segmenter.info.precision,
            "median_ms": round(float(np.median(times)), 3),
            "p99_ms": round(float(np.percentile(times, 99)), 3),
        }


def format_figures(value: float) -> str:
    """To three figures: more of them only flicker."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


@dataclass
class DemoSummary:
    """What a demo did: frames shown, reasons why others were not, files written."""

    frames: int = 0
    skipped: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    models: list[dict[str, object]] = field(default_factory=list)


def demo(
    source: Recording,
    segmenters: Sequence[Segmenter],
    out: Path | None,
    look: Look | None = None,
    fps: float | None = None,
    limit: int | None = None,
    progress: Callable[[Frame | Unreadable], None] = lambda frame: None,
    steady: bool = False,
) -> DemoSummary:
    """Play `source` through every model into `out`, whose ending says what it is; None: a window.

    fps: of the video, by default the source's own, or 17 as Cityscapes' sequences have. limit:
    frames to play. steady: hold uncertain pixels along each clip. An unreadable frame is counted
    and passed over. Whatever stops it, a file in `out` is whole or absent; a video that is cut
    short stays as NAME.partial.
    """
    look = look or Look()
    contestants = [
        DemoModel(each, look.palette(each.card.class_table), steady) for each in segmenters
    ]
    writer = open_writer(out, fps or source.fps or CITYSCAPES_FPS)
    summary = DemoSummary()
    try:
        _play(source, contestants, writer, look, limit, summary, progress)
    except BaseException:
        writer.abandon()
        raise
    summary.written = writer.finish()
    summary.models = [each.facts() for each in contestants]
    return summary


def _play(
    source: Recording,
    contestants: Sequence[DemoModel],
    writer: Writer,
    look: Look,
    limit: int | None,
    summary: DemoSummary,
    progress: Callable[[Frame | Unreadable], None],
) -> None:
    layout: Layout | None = None
    for frame in islice(source, limit):
        progress(frame)
        if isinstance(frame, Unreadable):
            summary.skipped.append(frame.reason)
            for contestant in contestants:
                contestant.label.cut()
            continue
        if layout is None:  # a video has one size, so the first frame settles it
            size = frame.image.shape[0], frame.image.shape[1]
            layout = plan(size, len(contestants), look.camera, look.opacity, look.width)
        seen = [contestant.look(frame) for contestant in contestants]
        summary.frames += 1
        if not writer.add(compose(frame.image, seen, layout), frame.name):
            return
