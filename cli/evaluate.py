"""mIoU of a network or an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import bar, need, show
from ._opening import check_classes, labeller, map_labels
from ._options import (
    Backend,
    Classes,
    Computed,
    Device,
    Flip,
    FrameSize,
    Json,
    Model,
    Scales,
    View,
    Weights,
    Window,
    class_set,
)


def evaluate(
    model: Model,
    dataset: Annotated[str, Argument(help="camvid, cityscapes, folder, ...")],
    root: Annotated[Path, Option(help="The data set's folder.")],
    split: Annotated[str, Option(help="Which part of it.")] = "val",
    weights: Weights = None,
    classes: Classes = None,
    class_map: Annotated[
        str | None, Option(help="What the model's classes are in the data: cityscapes_to_camvid.")
    ] = None,
    size: FrameSize = None,
    scale: Scales = None,
    flip: Flip = False,
    window: Window = None,
    precision: Computed = "fp32",
    backend: Backend = None,
    device: Device = None,
    worst: Annotated[Path | None, Option(help="Picture of the worst frames to write.")] = None,
    as_json: Json = False,
) -> None:
    """Measure mIoU on labeled frames: of a network, or of an artifact as it will run.

    rtseg eval artifacts/csfcn_nano_360x480_fp32.onnx camvid --root data/camvid
    """
    need("torch", "PyTorch", "train", "eval")
    from ..data.datasets import open_data
    from ..data.files import write_atomically
    from ..data.images import png
    from ..train.evaluate import evaluate as run
    from ..train.report import table, worst_frames

    data = open_data(dataset, root, split, class_set(classes) if dataset == "folder" else None)
    view = View(size, scale, flip, window, precision)
    must_be = data.classes if class_map is None else None
    job = labeller(model, weights, classes, backend, device, view, must_be)
    with job as (segment, names), bar("frames") as steps:
        if class_map is None:
            check_classes(names, data.classes)
        else:
            segment = map_labels(segment, names, class_map, data.classes)
        task = steps.add_task("eval", total=len(data))
        result = run(segment, data, seen=lambda index: steps.advance(task))
        picture = worst_frames(result, segment, data) if worst else None
    if worst and picture is not None:
        write_atomically(worst, png(picture))
    show(result.to_json(), table(result, f"{model} on {dataset} {split}"), as_json)
