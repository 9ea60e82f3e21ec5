"""`rtseg eval`: mIoU on labeled frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ._console import show, steps
from ._options import (
    NETWORK,
    Backend,
    Classes,
    Computed,
    Dataset,
    Device,
    Flip,
    FrameSize,
    Json,
    Model,
    RequireSignature,
    Root,
    Scales,
    Split,
    Weights,
    Window,
    in_group,
    parse_size,
)


def evaluate(
    model: Model,
    dataset: Dataset,
    root: Root,
    split: Split = "val",
    weights: Weights = None,
    classes: Classes = None,
    class_map: Annotated[
        str | None,
        in_group(NETWORK, help="Map from its classes to the data's, such as cityscapes_to_camvid."),
    ] = None,
    size: FrameSize = None,
    scale: Scales = None,
    flip: Flip = False,
    window: Window = None,
    precision: Computed = "fp32",
    backend: Backend = None,
    device: Device = None,
    images: Annotated[
        int | None,
        Option(min=1, help="Score so many frames, spread over the split; by default all."),
    ] = None,
    worst: Annotated[Path | None, Option(help="Picture of the worst frames to write.")] = None,
    reliability: Annotated[
        Path | None,
        Option(help="Reliability diagram of an artifact's confidences to write (PNG)."),
    ] = None,
    corrupt: Annotated[
        bool,
        Option(
            "--corrupt",
            help="mIoU of dark, blurred, noisy, strongly compressed and fog-like frames too.",
        ),
    ] = False,
    temporal: Annotated[
        bool,
        Option(
            "--temporal",
            help="Flicker too: pixels that change between consecutive frames, their labels not.",
        ),
    ] = False,
    steady: Annotated[
        bool,
        Option(
            "--steady",
            help="Hold uncertain labels of an artifact for up to 2 frames, with --temporal.",
        ),
    ] = False,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Measure mIoU of a network or an artifact on labeled frames.

    A network runs in PyTorch, an artifact as it will run in the vehicle.

    rtseg eval csfcn_tiny camvid --root data/camvid
    rtseg eval artifacts/csfcn_nano_360x480_fp32.onnx camvid --root data/camvid
    rtseg eval artifacts/csfcn_nano_360x480_fp32.xml camvid --root data/camvid --reliability out.png
    rtseg eval csfcn_nano camvid --root data/camvid --corrupt --images 20
    rtseg eval csfcn_nano camvid --root data/camvid --temporal
    """
    from ..api import evaluate as run
    from ..api import open_dataset
    from ..data.corruptions import CORRUPTIONS
    from ..train.evaluate import build_table

    data = open_dataset(dataset, root, split, classes)
    passes = 1 + len(CORRUPTIONS) * corrupt
    with steps("eval", min(images or len(data), len(data)) * passes) as advance:
        result = run(
            model,
            data,
            weights=weights,
            classes=classes,
            class_map=class_map,
            size=parse_size(size) if size else None,
            scale=scale or (),
            flip=flip,
            window=parse_size(window) if window else None,
            precision=precision,
            backend=backend,
            device=device,
            worst=worst,
            reliability=reliability,
            corrupt=corrupt,
            temporal=temporal,
            steady=steady,
            images=images,
            seen=advance,
        )
    title = f"{model} on {dataset} {split}, run by {result.backend} in {result.precision}"
    show(result.to_json(), build_table(result, title), as_json)
