"""Which precision pays on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, need, show, working
from ._opening import check_classes
from ._options import Classes, Json, Method, Weights, class_set, parse_sizes


def pareto(
    model: Annotated[str, Argument(help="A name that `rtseg models` lists, or a checkpoint.")],
    dataset: Annotated[str, Argument(help="camvid, cityscapes, folder, ...")],
    root: Annotated[Path, Option(help="The data set's folder.")],
    calib: Annotated[Path, Option(help="Folder of real frames that int8 is calibrated on.")],
    size: Annotated[str | None, Option("--size", help="HxW in pixels; else the frames'.")] = None,
    split: Annotated[str, Option(help="Which part of it.")] = "val",
    weights: Weights = None,
    classes: Classes = None,
    calibration: Annotated[
        Method, Option(help="How int8 takes its ranges from them.")
    ] = Method.percentile,
    threads: Annotated[int | None, Option(help="CPU threads; by default one per core.")] = None,
    runs: Annotated[int, Option(min=20, help="Runs of each way.")] = 200,
    images: Annotated[
        int | None, Option(min=1, help="Score so many frames, spread over the split; else all.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure time and mIoU of fp32, fp16, bf16 and int8 here; refuse int8 where it is beaten.

    rtseg pareto csfcn_nano camvid --root data/camvid --calib data/camvid/train
    """
    need("torch", "PyTorch", "train", "pareto")
    from ..data.datasets import open_data
    from ..export.calibrate import Calibration
    from ..models.loading import open_source
    from ..speed.pareto import pareto as run

    data = open_data(dataset, root, split, class_set(classes) if dataset == "folder" else None)
    source = open_source(model, weights, class_set(classes))
    check_classes(source.classes.names, data.classes)
    height, width = data[0].image.shape[:2]
    sizes = parse_sizes([size or f"{height}x{width}"])
    with working() as step:
        front = run(
            source,
            sizes[0],
            data,
            Calibration(calib, calibration.value),
            threads=threads,
            runs=runs,
            images=images,
            progress=step,
        )
    show(front.to_json(), front.table(), as_json)
    if not front.int8:
        raise JobFailed
