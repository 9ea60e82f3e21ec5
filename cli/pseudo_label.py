"""`rtseg pseudo-label`: a model's soft labels, to train other networks on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..errors import UsageError
from ._console import JobFailed, note, show, steps
from ._options import Computed, Device, Flip, FrameSize, Json, Model, Scales, Weights, parse_size

if TYPE_CHECKING:
    import numpy as np


def pseudo_label(
    model: Model,
    frames: Annotated[str, Argument(help="Image, folder, quoted glob or video.")],
    folder: Annotated[Path, Option("-o", "--out", help="Folder for the soft labels.")] = Path(
        "soft_labels"
    ),
    stride: Annotated[int, Option(min=1, help="Pixels of a frame for one soft label.")] = 2,
    weights: Weights = None,
    size: FrameSize = None,
    scale: Scales = None,
    flip: Flip = False,
    precision: Computed = "fp32",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write class probabilities of frames, to train others on.

    `rtseg train RECIPE teacher=OUT` learns from them.

    rtseg pseudo-label csfcn_tiny data/drive --flip -o data/drive_soft
    """
    from ..data.frames import Unreadable, open_source
    from ..data.limits import read_json
    from ..data.soft_labels import FACTS, write_soft_labels
    from ..reporting import Table
    from ..resolve import is_artifact
    from ..train.teacher import open_teacher

    scales = tuple(scale or (1.0,))
    view = {
        "size": parse_size(size) if size else None,
        "scales": scales,
        "flip": flip,
        "precision": precision,
    }
    if is_artifact(model) and (size or scale or flip or weights or precision != "fp32"):
        raise UsageError("an artifact runs as exported: leave out --size, --scale, --flip, ...")
    source, skipped = open_source(frames), []
    with open_teacher(model, weights, device, **view) as teacher:
        note(", ".join(f"{key}: {value}" for key, value in teacher.facts.items()))
        with steps("pseudo-label", source.count or None) as advance:

            def readable() -> Iterator[tuple[str, np.ndarray]]:
                for frame in source:
                    if isinstance(frame, Unreadable):
                        skipped.append(frame.name)
                        note(f"skipped: {frame.reason}")
                    else:
                        yield frame.name, frame.image
                    advance()

            facts = teacher.facts | {"flip": flip, "scales": scales, "size": size}
            sure = write_soft_labels(
                teacher.score, readable(), folder, teacher.classes, stride, facts
            )
    if not sure.frames:
        raise JobFailed("no frame could be read")
    facts = read_json(folder / FACTS) | {"skipped": skipped, "out": str(folder)}
    rows = [
        (name, f"{100 * row['share']:.2f}", row["confidence"] and f"{100 * row['confidence']:.1f}")
        for name, row in facts["by_class"].items()
    ]
    title = f"{len(sure.frames)} frames in {folder}, mean confidence {sure.mean:.1%}"
    show(json.dumps(facts), Table(("class", "pixels %", "confidence %"), rows, title), as_json)
