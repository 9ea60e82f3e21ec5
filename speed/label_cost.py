"""What exact labels of coarse logits cost, beside resize and argmax in PyTorch, in one run."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .timing import Lane, Limits, Ratio, race, ratio

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..models import Network


@dataclass(frozen=True)
class LabelCost:
    """One frame size. `uniform`: share of cells that were filled, on a CPU; `different_pixels`: of
    all frames, against PyTorch in float32 on a CPU; `gain`: PyTorch's time over ours."""

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

    def row(self) -> str:
        uniform = "-" if self.uniform is None else f"{self.uniform:.1%}"
        return (
            f"{self.size[0]}x{self.size[1]:<6}{self.threads:>7}{uniform:>9}"
            f"{self.plain_ms:>12.3f}{self.cells_ms:>10.3f}{self.gain.value:>8.1f}x"
            f"  ({self.gain.low:.1f} to {self.gain.high:.1f}){self.different_pixels:>8}"
        )


HEADER = "size      threads  uniform  PyTorch ms  cells ms    gain  95 %          differ"


def label_cost(
    network: Network,
    images: Sequence[NDArray[np.uint8]],
    size: tuple[int, int],
    threads: int = 1,
    limits: Limits | None = None,
    device: str = "cpu",
) -> LabelCost:
    """Measure on what the plain network gives its end for images brought to `size` (height, width);
    both sides take turns.

    On a CPU that is coarse logits, and both sides use `threads` threads. On "cuda" it is float16,
    channels last, and for a shuffled head the head's features: its convolution is part of both.

    Raises ValueError if the network's logits are not enlarged by a resize or a shuffle.
    """
    from ..models.pipeline import find_last_upsample
    from ..runtime.argmax_torch import make

    how = find_last_upsample(network, size)
    if how is None:
        raise UsageError(f"{network.info.name} enlarges no logits: nothing to measure")
    end = _End(network, size, how, device)
    inputs = [end.given(image) for image in images]
    maker = make(inputs[0], size, how, threads, end.head)  # type: ignore[arg-type]
    with _threads(threads):
        different = sum(int(np.count_nonzero(maker(x).cpu() != end.exact(x))) for x in inputs)
        plain = Lane({"run": _finished(end.plain, inputs, device)})
        cells = Lane({"run": _finished(maker, inputs, device)})
        race([plain, cells], limits or Limits(runs=30, seconds=10.0))
    plain_ms, cells_ms = (float(np.median(lane.times("run"))) for lane in (plain, cells))
    return LabelCost(
        model=network.info.name,
        size=size,
        device=device if device == "cpu" else _name_of(device),
        threads=threads,
        frames=len(inputs),
        uniform=_uniform(maker, inputs),
        different_pixels=different,
        plain_ms=plain_ms,
        cells_ms=cells_ms,
        gain=ratio(cells.rounds["run"], plain.rounds["run"]),
    )


class _End:
    """The last steps of a network as scripts write them, and what they are given."""

    def __init__(self, network: Network, size: tuple[int, int], how: str, device: str):
        import torch

        from ..runtime.argmax_torch import head_of

        self.network, self.size, self.how, self.device = network.eval(), size, how, device
        self.on_gpu = device != "cpu"
        self.dtype = torch.float16 if self.on_gpu else torch.float32
        self.name = head_of(network, size) if self.on_gpu and how == "shuffle" else None
        self.head: nn.Conv2d | None = None
        if self.name is not None:
            head = copy.deepcopy(network.get_submodule(self.name)).to(self.device, self.dtype)
            self.head = head  # type: ignore[assignment]

    def given(self, image: NDArray[np.uint8]) -> Tensor:
        """What the end reads, for an image (H, W, 3) uint8 BGR resized to the size."""
        import torch

        from ..models.pipeline import normalize_frame, run_to_last_upsample
        from ..runtime.argmax_torch import without

        fitted = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_LINEAR)
        inputs = normalize_frame(np.asarray(fitted, np.uint8), self.network)
        with torch.inference_mode(), without(self.network, self.name):
            coarse, _ = run_to_last_upsample(
                self.network, self.network.forward_logits(inputs), *self.size
            )
        if not self.on_gpu:
            return coarse.contiguous()
        return coarse.to(self.device, self.dtype, memory_format=torch.channels_last)

    def plain(self, given: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            return plain_labels(self.head(given) if self.head else given, self.size, self.how)

    def exact(self, given: Tensor) -> Tensor:
        """The labels in float32, on a CPU."""
        import torch

        given = given.cpu().float().contiguous()
        with torch.inference_mode():
            if self.head is not None:
                given = copy.deepcopy(self.head).cpu().float()(given)
            return plain_labels(given, self.size, self.how)


def plain_labels(coarse: Tensor, size: tuple[int, int], how: str) -> Tensor:
    """(1, H, W) uint8: the enlargement and the argmax as scripts write them."""
    import torch

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
    import torch

    following = itertools.cycle(inputs)

    def call() -> None:
        run(next(following))
        if device != "cpu":
            torch.cuda.synchronize(device)

    return call


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
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _name_of(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def to_json(costs: Sequence[LabelCost]) -> str:
    rows: list[dict[str, Any]] = [asdict(cost) for cost in costs]
    return json.dumps(rows, indent=2)
