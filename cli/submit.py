"""The archive for Cityscapes' test server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ._console import bar, need, out
from ._opening import check_classes, labeller
from ._options import (
    Backend,
    Computed,
    Device,
    Flip,
    FrameSize,
    Model,
    Scales,
    View,
    Weights,
    Window,
)


def submit(
    model: Model,
    root: Annotated[Path, Option(help="The folder of Cityscapes.")],
    split: Annotated[str, Option(help="Which part of it.")] = "test",
    weights: Weights = None,
    size: FrameSize = None,
    scale: Scales = None,
    flip: Flip = False,
    window: Window = None,
    precision: Computed = "fp32",
    backend: Backend = None,
    device: Device = None,
    archive: Annotated[Path, Option("-o", "--out", help="The zip to upload.")] = Path(
        "cityscapes_test.zip"
    ),
) -> None:
    """Predict the frames of Cityscapes test as its server wants them: label ids, in a zip.

    rtseg submit runs/csfcn/best.safetensors --root data/cityscapes -o submission.zip
    """
    need("torch", "PyTorch", "train", "submit")
    from ..data.datasets import open_data
    from ..train.submit import submit as run

    data = open_data("cityscapes", root, split)
    view = View(size, scale, flip, window, precision)
    job = labeller(model, weights, None, backend, device, view, data.classes)
    with job as (segment, names), bar("frames") as steps:
        check_classes(names, data.classes)
        task = steps.add_task("submit", total=len(data))
        count = run(segment, data, archive, seen=lambda index: steps.advance(task))
    out.print(f"{count} frames: {archive}", soft_wrap=True)
