"""Exact labels of coarse logits against resize and argmax in PyTorch, in turns.

python scripts/label_cost.py csfcn_nano --frames camvid/val --size 512x1024 --size 1024x2048
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rtseg.cli._options import parse_sizes
from rtseg.data.frames import read_folder
from rtseg.data.scenes import scenes
from rtseg.errors import UsageError
from rtseg.models import Network
from rtseg.models.loading import load_model
from rtseg.models.pipeline import find_last_upsample, normalize_frame, run_to_last_upsample
from rtseg.reporting import Table
from rtseg.runtime.argmax import Certificate
from rtseg.runtime.argmax_torch import bypass_layer, find_head, make_label_maker
from rtseg.speed.timing import Lane, Limits, Ratio, race, ratio
from torch import Tensor, nn


@dataclass(frozen=True)
class LabelCost:
    """One frame size. `uniform`: share of cells that were filled, on a CPU; `different_pixels`: of
    all frames, against PyTorch in float32 on a CPU; `gain`: PyTorch's time over ours; `certified`:
    our time with certified pixels over that without, where it was asked for."""

    model: str
    size: tuple[int, int]
    device: str
    threads: int
    frames: int
    uniform: float | None
    different_pixels: int
    plain_ms: float
    cells_ms: float
    gain: Ratio
    certified: Ratio | None = None

    def row(self) -> list[str]:
        uniform = "-" if self.uniform is None else f"{self.uniform:.1%}"
        return [
            f"{self.size[0]}x{self.size[1]}",
            str(self.threads),
            uniform,
            f"{self.plain_ms:.3f}",
            f"{self.cells_ms:.3f}",
            f"{self.gain.value:.1f}x",
            f"{self.gain.low:.1f} to {self.gain.high:.1f}",
            str(self.different_pixels),
            f"{self.certified.value:.3f}x" if self.certified else "-",
        ]


HEADER = [
    "size",
    "threads",
    "uniform",
    "PyTorch ms",
    "cells ms",
    "gain",
    "95 %",
    "differ",
    "certified",
]


def label_cost(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
    threads: int = 1,
    limits: Limits | None = None,
    device: str = "cpu",
    lead: float | None = None,
) -> LabelCost:
    """Measure on what the plain network gives its end for images brought to `size` (height, width);
    both sides take turns.

    On a CPU that is coarse logits, and both sides use `threads` threads. On "cuda" it is float16,
    channels last, and for a shuffled head the head's features: its convolution is part of both.

    lead: a CPU also makes them certified, by that lead, in turns with the others.

    Raises ValueError if the network's logits are not enlarged by a resize or a shuffle.
    """
    how = find_last_upsample(network, size)
    if how is None:
        raise UsageError(f"{network.info.name} enlarges no logits: nothing to measure")
    end = NetworkEnd(network, size, how, device)
    inputs = [end.given(image) for image in images]
    maker = make_label_maker(inputs[0], size, how, threads, end.head)  # type: ignore[arg-type]
    with _threads(threads):
        different = sum(int(np.count_nonzero(maker(x).cpu() != end.exact(x))) for x in inputs)
        plain = Lane({"run": _finished(end.plain, inputs, device)})
        cells = Lane({"run": _finished(maker, inputs, device)})
        lanes = [plain, cells]
        if lead is not None:
            wanted = Certificate(lead)
            lanes.append(Lane({"run": _finished(_certifying(maker, wanted), inputs, device)}))
        race(lanes, limits or Limits(runs=30, seconds=10.0))
    plain_ms, cells_ms = (float(np.median(lane.times("run"))) for lane in (plain, cells))
    return LabelCost(
        model=network.info.name,
        size=size,
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
        threads=threads,
        frames=len(inputs),
        uniform=_uniform(maker, inputs),
        different_pixels=different,
        plain_ms=plain_ms,
        cells_ms=cells_ms,
        gain=ratio(cells.rounds["run"], plain.rounds["run"]),
        certified=ratio(cells.rounds["run"], lanes[2].rounds["run"]) if lanes[2:] else None,
    )


class NetworkEnd:
    """The last steps of a network as scripts write them, and what they are given."""

    def __init__(self, network: Network, size: tuple[int, int], how: str, device: str):
        self.network, self.size, self.how, self.device = network.eval(), size, how, device
        self.on_gpu = device != "cpu"
        self.dtype = torch.float16 if self.on_gpu else torch.float32
        self.name = find_head(network, size) if self.on_gpu and how == "shuffle" else None
        self.head: nn.Conv2d | None = None
        if self.name is not None:
            head = copy.deepcopy(network.get_submodule(self.name)).to(self.device, self.dtype)
            self.head = head  # type: ignore[assignment]

    def given(self, image: NDArray[np.uint8]) -> Tensor:
        """What the end reads, for an image (H, W, 3) uint8 BGR resized to the size."""
        fitted = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        inputs = normalize_frame(np.asarray(fitted, np.uint8), self.network)
        with torch.inference_mode(), bypass_layer(self.network, self.name):
            coarse, _ = run_to_last_upsample(
                self.network, self.network.forward_logits(inputs), *self.size
            )
        if not self.on_gpu:
            return coarse.contiguous()
        return coarse.to(self.device, self.dtype, memory_format=torch.channels_last)

    def plain(self, given: Tensor) -> Tensor:
        with torch.inference_mode():
            return plain_labels(self.head(given) if self.head else given, self.size, self.how)

    def exact(self, given: Tensor) -> Tensor:
        """The labels in float32, on a CPU."""
        given = given.cpu().float().contiguous()
        with torch.inference_mode():
            if self.head is not None:
                given = copy.deepcopy(self.head).cpu().float()(given)
            return plain_labels(given, self.size, self.how)


def plain_labels(coarse: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """(1, H, W) uint8: the enlargement and the argmax as scripts write them."""
    if how == "shuffle":
        full = torch.pixel_shuffle(coarse, size[0] // coarse.shape[2])
    else:
        full = torch.nn.functional.interpolate(
            coarse, size, mode="bilinear", align_corners=how == "bilinear_aligned"
        )
    return full.argmax(1).to(torch.uint8)


def _finished(
    run: Callable[[Tensor], Tensor], inputs: Sequence[Tensor], device: str
) -> Callable[[], object]:
    """A call that gives `run` the next input and ends when it has."""
    following = itertools.cycle(inputs)

    def call() -> None:
        run(next(following))
        if device != "cpu":
            torch.cuda.synchronize(device)

    return call


def _certifying(maker: Any, wanted: Certificate) -> Callable[[Tensor], Tensor]:
    """`maker`, certifying too."""

    def run(given: Tensor) -> Tensor:
        maker.maker.certify(wanted)
        try:
            found: Tensor = maker(given)
        finally:
            maker.maker.certify(None)
        return found

    return run


def _uniform(maker: Any, inputs: Sequence[Tensor]) -> float | None:
    """Mean share of the cells that were filled."""
    cells = getattr(maker, "maker", None)
    if cells is None:
        return None
    shares = []
    for given in inputs:
        maker(given)
        shares.append(cells.uniform)
    return float(np.mean(shares))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="a name that `rtseg models` lists, or a checkpoint")
    parser.add_argument("--frames", type=Path, help="folder of images; else drawn scenes")
    parser.add_argument("--size", action="append", help="HxW; may be repeated")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads, for both sides")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--certify", type=float, help="lead that certifies: a third lane, on CPUs")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each side, or 30 runs")
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    given = parser.parse_args(arguments)
    network, costs = load_model(given.model).network, []
    for size in parse_sizes(given.size or ["512x1024", "1024x2048"]):
        frames = [i for _, i in read_folder(given.frames)][:4] if given.frames else scenes(4, size)
        limits = Limits(30, given.seconds)
        costs.append(
            label_cost(network, frames, size, given.threads, limits, given.device, given.certify)
        )
    if given.json:
        text = json.dumps([asdict(cost) for cost in costs], indent=2)
    else:
        text = Table(HEADER, [cost.row() for cost in costs], network.info.name).markdown()
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
