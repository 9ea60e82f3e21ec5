"""What labels of coarse logits cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import need, show, working
from ._options import Json, Sizes, parse_sizes


def bench_labels(
    model: Annotated[str, Argument(help="A name that `rtseg models` lists, or a checkpoint.")],
    frames: Annotated[Path | None, Option(help="Folder of images; else drawn scenes.")] = None,
    size: Sizes = None,
    threads: Annotated[int, Option(help="CPU threads, for both sides.")] = 1,
    device: Annotated[str, Option(help="cpu, cuda or cuda:N.")] = "cpu",
    seconds: Annotated[float, Option(help="Measuring time for each side, or 30 runs.")] = 10.0,
    as_json: Json = False,
) -> None:
    """Measure labels of coarse logits against resize and argmax in PyTorch, in turns.

    rtseg bench-labels csfcn_nano --frames camvid/val --size 512x1024 --size 1024x2048
    """
    need("torch", "PyTorch", "export", "bench-labels")
    from ..data.frames import read_folder
    from ..data.scenes import scenes
    from ..models.loading import load_model
    from ..speed.label_cost import HEADER, label_cost, to_json
    from ..speed.timing import Limits

    network = load_model(model).network
    costs = []
    with working() as step:
        for each in parse_sizes(size) or [(512, 1024), (1024, 2048)]:
            step(f"{network.info.name} {each[0]}x{each[1]}")
            images = [i for _, i in read_folder(frames)][:4] if frames else scenes(4, each)
            costs.append(label_cost(network, images, each, threads, Limits(30, seconds), device))
    show(to_json(costs), "\n".join([HEADER, *(cost.row() for cost in costs)]), as_json)
