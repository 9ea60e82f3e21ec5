"""`rtseg pareto`: which precision pays off on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from ._console import JobFailed, show, working
from ._options import (
    Classes,
    Dataset,
    Json,
    Method,
    Network,
    Root,
    Split,
    Threads,
    Weights,
    parse_size,
)


def pareto(
    model: Network,
    dataset: Dataset,
    root: Root,
    calib: Annotated[Path, Option(help="Folder of real frames that int8 is calibrated on.")],
    size: Annotated[
        str | None, Option("--size", help="HxW in pixels; by default the frames'.")
    ] = None,
    split: Split = "val",
    weights: Weights = None,
    classes: Classes = None,
    calibration: Annotated[
        Method, Option(help="How int8 ranges are derived from them.")
    ] = Method.auto,
    threads: Threads = None,
    runs: Annotated[int, Option(min=20, help="Runs of each way.")] = 200,
    images: Annotated[
        int | None,
        Option(min=1, help="Score so many frames, spread over the split; by default all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure time against mIoU of each precision on this machine.

    The exit code is 1 if int8 does not pay off.

    rtseg pareto csfcn_nano camvid --root data/camvid --calib data/camvid/train
    """
    from ..api import check_classes, open_dataset, shipped_for
    from ..export.calibrate import Calibration
    from ..resolve import load_source
    from ..speed.pareto import pareto as run

    data = open_dataset(dataset, root, split, classes)
    # Weights for the data's classes where such ship; the bare name may mean others.
    fitting = shipped_for(model, data.classes) if weights is None and classes is None else None
    source = load_source(model, weights, classes or fitting)
    check_classes(source.classes.names, data.classes)
    with working() as step:
        front = run(
            source,
            parse_size(size) if size else data[0].image.shape[:2],
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
