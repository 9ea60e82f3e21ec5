"""What exact labels of coarse logits cost, beside resize and argmax in PyTorch, in one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime.labels import LabelMaker
from .clock import Lane, Limits, Ratio, race, ratio

if TYPE_CHECKING:
    from ..models import Network

Coarse = NDArray[np.float32]  # (1, channels, h, w)


@dataclass(frozen=True)
class LabelCost:
    """One frame size. `uniform`: share of cells that were filled; `different_pixels`: of all
    frames, against PyTorch; `gain`: PyTorch's time over ours."""

    model: str
    size: tuple[int, int]
    threads: int
    frames: int
    uniform: float
    different_pixels: int
    plain_ms: float
    cells_ms: float
    gain: Ratio

    def row(self) -> str:
        return (
            f"{self.size[0]}x{self.size[1]:<6}{self.threads:>7}{self.uniform:>9.1%}"
            f"{self.plain_ms:>11.1f}{self.cells_ms:>10.2f}{self.gain.value:>8.0f}x"
            f"  ({self.gain.low:.0f} to {self.gain.high:.0f}){self.different_pixels:>8}"
        )


HEADER = "size      threads  uniform  PyTorch ms  cells ms    gain  95 %          differ"


def label_cost(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
    threads: int = 1,
    limits: Limits | None = None,
) -> LabelCost:
    """Measure on the coarse logits that the plain network gives for images brought to `size`
    (height, width); both sides use `threads` threads and take turns.

    Raises ValueError if the network's logits are not enlarged by a resize or a shuffle.
    """
    import torch

    from ..models.pipeline import enlargement

    how = enlargement(network, size)
    if how is None:
        raise ValueError(f"{network.info.name} enlarges no logits: nothing to measure")
    inputs = [coarse_logits(network, image, size) for image in images]
    maker = LabelMaker(inputs[0].shape, size, how, threads)  # type: ignore[arg-type]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        different, uniform = _differences(maker, inputs, size, how)
        turn = {"plain": 0, "cells": 0}

        def next_input(lane: str) -> Coarse:
            turn[lane] += 1
            return inputs[turn[lane] % len(inputs)]

        plain = Lane({"run": lambda: plain_labels(next_input("plain"), size, how)})
        cells = Lane({"run": lambda: maker(next_input("cells"))})
        race([plain, cells], limits or Limits(runs=30, seconds=10.0))
    finally:
        torch.set_num_threads(before)
        maker.close()
    plain_ms, cells_ms = (float(np.median(lane.times("run"))) for lane in (plain, cells))
    gain = ratio(cells.rounds["run"], plain.rounds["run"])
    return LabelCost(
        network.info.name,
        size,
        threads,
        len(inputs),
        uniform,
        different,
        plain_ms,
        cells_ms,
        gain,
    )


def coarse_logits(network: Network, image: NDArray[np.uint8], size: tuple[int, int]) -> Coarse:
    """What the last enlargement reads, for an image (H, W, 3) uint8 BGR resized to `size`."""
    import torch

    from ..models.pipeline import last_enlargement
    from ..models.source import normalised

    fitted = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    with torch.inference_mode():
        head = network.eval().coarse(normalised(fitted, network))
        coarse: Coarse = last_enlargement(network, head, *size)[0].contiguous().numpy()
    return coarse


def plain_labels(coarse: Coarse, size: tuple[int, int], how: str) -> NDArray[np.uint8]:
    """(1, H, W): the enlargement and the argmax as scripts write them."""
    import torch

    logits = torch.from_numpy(coarse)
    with torch.inference_mode():
        if how == "shuffle":
            full = torch.pixel_shuffle(logits, size[0] // logits.shape[2])
        else:
            full = torch.nn.functional.interpolate(
                logits, size, mode="bilinear", align_corners=how == "bilinear_aligned"
            )
        labels: NDArray[np.uint8] = full.argmax(1).to(torch.uint8).numpy()
    return labels


def _differences(
    maker: LabelMaker, inputs: Sequence[Coarse], size: tuple[int, int], how: str
) -> tuple[int, float]:
    """(pixels that differ in all inputs, mean share of uniform cells)."""
    different, uniform = 0, []
    for coarse in inputs:
        different += int(np.count_nonzero(maker(coarse) != plain_labels(coarse, size, how)))
        uniform.append(maker.uniform)
    return different, float(np.mean(uniform))


def to_json(costs: Sequence[LabelCost]) -> str:
    rows: list[dict[str, Any]] = [asdict(cost) for cost in costs]
    return json.dumps(rows, indent=2)
