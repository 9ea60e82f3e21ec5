"""`rtseg predict`: labels and overlays of images or a video."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, note, show, steps, working
from ._options import Backend, Device, Json, OptionalModel, RequireSignature, Steady


def predict(
    source: Annotated[str, Argument(metavar="INPUT", help="Image, folder, quoted glob or video.")],
    model: OptionalModel = None,
    out: Annotated[Path, Option("-o", "--out", help="Folder for labels and overlays.")] = Path(
        "predictions"
    ),
    label_ids: Annotated[
        bool, Option("--label-ids", help="Write the data set's own ids (Cityscapes: 7, 8, 11...).")
    ] = False,
    steady: Steady = False,
    backend: Backend = None,
    device: Device = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Segment images or a video: label PNGs and color overlays.

    rtseg predict drive.mp4 -o predictions
    rtseg predict frames/ --model artifacts/csfcn_nano_360x480_fp32.onnx
    """
    from ..data.frames import open_source
    from ..demo.predict import predict as run
    from ..resolve import BEST_TO_LOOK_AT, is_artifact, open_segmenter
    from ..runtime.backends.backend import choose_certifying

    frames = open_source(source)
    with working() as step:
        chosen = model or BEST_TO_LOOK_AT
        if steady and is_artifact(chosen):
            backend = choose_certifying(Path(chosen), backend, device)
        segmenter = open_segmenter(chosen, backend=backend, device=device, progress=step)
    with segmenter, steps("predict", frames.count or None) as advance:
        summary = run(frames, segmenter, out, label_ids, progress=advance, steady=steady)
    for reason in summary.skipped:
        note(f"skipped: {reason}")
    facts = {
        "model": segmenter.card.model,
        "frames": summary.frames,
        "skipped": summary.skipped,
        "mean_ms": round(summary.ms, 3),
        "out": str(out),
    }
    line = f"{summary.frames} frames in {out}, {summary.ms:.1f} ms each"
    show(json.dumps(facts), f"{line}, {len(summary.skipped)} skipped", as_json)
    if not summary.frames:
        raise JobFailed("no frame could be read")
