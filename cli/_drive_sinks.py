"""The sinks that `rtseg drive --out` names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from ..runtime.sinks import Sink


AS_FAST_AS_DONE_HZ = 25.0  # of the video of a log that is not played in real time


def open_sinks(paths: Sequence[Path], artifact: Path, rate_hz: float | None) -> list[Sink]:
    """By the names' endings: `.mp4`, `.mcap`, `.ring`; a folder gets label PNGs."""
    from ..demo.overlay import blend
    from ..runtime import read_card
    from ..runtime.sinks.label_files import LabelPngs, OverlayVideo
    from ..runtime.sinks.mcap_writer import McapRecorder
    from ..runtime.sinks.shared_memory import Ring

    card = read_card(artifact)
    sinks: list[Sink] = []
    for path in paths:
        if path.suffix == ".mp4":
            sinks.append(
                OverlayVideo(
                    path, card.palette, blend, AS_FAST_AS_DONE_HZ if rate_hz == 0 else rate_hz
                )
            )
        elif path.suffix == ".mcap":
            sinks.append(McapRecorder(path, card.classes, card.palette, blend))
        elif path.suffix == ".ring":
            sinks.append(Ring(path))
        elif path.suffix:
            raise UsageError(f"--out is a folder, or ends in .mp4, .mcap or .ring, not {path}")
        else:
            sinks.append(LabelPngs(path))
    return sinks
