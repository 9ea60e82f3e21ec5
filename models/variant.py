"""What a variant's name stands for: a constructor and the facts that travel with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .network import IMAGENET_MEAN, IMAGENET_STD, Network

Row = tuple[str, str | None]  # official name, ours; None: we have no such entry
Keys = Sequence[Row]


def conv_norm_keys(
    theirs: str, ours: str, parts: tuple[str, str] = ("conv", "bn")
) -> tuple[Row, Row]:
    """The rows of a ConvNorm; `parts` are the official names of its convolution and its norm."""
    return ((f"{theirs}.{parts[0]}", f"{ours}.conv"), (f"{theirs}.{parts[1]}", f"{ours}.norm"))


@dataclass(frozen=True)
class Variant:
    """`make(num_classes, **options)` builds the network; `keys` renames official state dicts.

    `size` (height, width) is the one the network is reported at; `multiple` what its sides must be
    multiples of; `align_corners` is of the last resize to the image. Where `paper` says "ours"
    there is no official checkpoint.
    """

    make: Callable[..., Any]
    keys: Keys
    size: tuple[int, int]
    paper: str
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    multiple: int = 8
    align_corners: bool = False

    def build(self, num_classes: int, **options: Any) -> Network:
        network: Network = self.make(num_classes, **options)
        return network
