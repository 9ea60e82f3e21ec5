"""`rtseg submit`: the zip for Cityscapes' test server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ._console import show, steps
from ._options import (
    Backend,
    Computed,
    Device,
    Flip,
    FrameSize,
    Model,
    Scales,
    Split,
    Weights,
    Window,
    parse_size,
)


def submit(
    model: Model,
    root: Annotated[Path, Option(help="The folder of Cityscapes.")],
    split: Split = "test",
    weights: Weights = None,
    size: FrameSize = None,
    scale: Scales = None,
    flip: Flip = False,
    window: Window = None,
    precision: Computed = "fp32",
    backend: Backend = None,
    device: Device = None,
    out: Annotated[Path, Option("-o", "--out", help="The zip to upload.")] = Path(
        "cityscapes_test.zip"
    ),
) -> None:
    """Predict Cityscapes test in the form that its server wants.

    That is a zip with one PNG of label ids per frame.

    rtseg submit runs/csfcn/best.safetensors --root data/cityscapes -o submission.zip
    """
    from ..api import submit as run

    with steps("submit", None) as advance:
        count = run(
            model,
            root,
            out,
            split=split,
            weights=weights,
            size=parse_size(size) if size else None,
            scale=scale or (),
            flip=flip,
            window=parse_size(window) if window else None,
            precision=precision,
            backend=backend,
            device=device,
            seen=advance,
        )
    show("", f"{count} frames: {out}", as_json=False)
