"""Labels and overlays of images or a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, bar, err, show, working
from ._options import Backend, Device, Json


def predict(
    source: Annotated[str, Argument(metavar="INPUT", help="Image, folder, quoted glob or video.")],
    model: Annotated[str, Option("--model", help="An artifact, a model's name or a checkpoint.")],
    folder: Annotated[Path, Option("-o", "--out", help="Folder for labels and overlays.")] = Path(
        "predictions"
    ),
    label_ids: Annotated[
        bool, Option("--label-ids", help="Write the data set's own ids (Cityscapes: 7, 8, 11...).")
    ] = False,
    backend: Backend = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Segment images or a video: label PNGs and color overlays.

    rtseg predict drive.mp4 --model artifacts/csfcn_nano_512x1024_fp32.onnx -o predictions
    """
    from ..data.frames import Frame, Unreadable, open_source
    from ..demo.predict import predict as run
    from ..resolve import open_segmenter

    frames = open_source(source)
    with working() as step:
        segmenter = open_segmenter(model, backend=backend, device=device, progress=step)
    with segmenter, bar("frames") as progress:
        task = progress.add_task("predict", total=frames.count or None)

        def advance(frame: Frame | Unreadable) -> None:
            progress.advance(task)
            if isinstance(frame, Unreadable):
                err.print(f"skipped: {frame.reason}", soft_wrap=True)

        summary = run(frames, segmenter, folder, label_ids, progress=advance)
    facts = {
        "frames": summary.frames,
        "skipped": summary.skipped,
        "mean_ms": round(summary.ms, 3),
        "out": str(folder),
    }
    line = f"{summary.frames} frames in {folder}, {summary.ms:.1f} ms each"
    show(json.dumps(facts), f"{line}, {len(summary.skipped)} skipped", as_json)
    if not summary.frames:
        raise JobFailed("no frame could be read")
