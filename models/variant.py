"""Variants: a family's description of each of its networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .network import IMAGENET_MEAN, IMAGENET_STD

Row = tuple[str, str | None]  # official name, ours; None: we have no such entry
Keys = Sequence[Row]

# Data sets, as `Score` names them.
CITYSCAPES, CITYSCAPES_TEST = "Cityscapes val", "Cityscapes test"
CAMVID, BDD100K, ADE20K = "CamVid test", "BDD100K val", "ADE20K val"
COCO_STUFF, PASCAL_CONTEXT = "COCO-Stuff 10K test", "Pascal Context 59 val"
# Where a score is stated: in a paper, in the repository's README, or in a training log alone.
PUBLISHED, REPOSITORY, LOG = "published", "repository", "training log"


def at_size(height: int, width: int) -> str:
    """Cityscapes val, as `Score` names it where a network was also trained and scored at another
    size than its variant's: other weights of the same network."""
    return f"{CITYSCAPES} at {height}x{width}"


def conv_norm_keys(
    theirs: str, ours: str, parts: tuple[str, str] = ("conv", "bn")
) -> tuple[Row, Row]:
    """The rows of a ConvNorm; `parts` are the official names of its convolution and its norm."""
    return ((f"{theirs}.{parts[0]}", f"{ours}.conv"), (f"{theirs}.{parts[1]}", f"{ours}.norm"))


@dataclass(frozen=True)
class Score:
    """mIoU in percent at a single scale, and over several scales with flip, as its authors state.

    None: not reported.
    """

    data: str
    single: float | None
    multiple: float | None = None
    source: str = PUBLISHED


@dataclass(frozen=True)
class Variant:
    """A network that can be built by name.

    Attributes:
        make: (num_classes, **options) -> the network, a `Network`.
        keys: official names of its state dict beside ours; the first row that matches counts.
        size: (height, width) that it is reported at.
        paper: where it is from; "ours" begins it where there is no official checkpoint.
        reference: the implementation whose outputs it reproduces; None: the network is ours.
        license: of `reference`, as its LICENSE file says; None: not known here.
        scores: as published.
        classes: the class count that its parameters and MACs are reported with.
        mean, std: of RGB in 0..1.
        multiple: what the sides of its input must be multiples of.
        align_corners: of the last resize to the image.
    """

    make: Callable[..., Any]
    keys: Keys
    size: tuple[int, int]
    paper: str
    reference: str | None = None
    license: str | None = None
    scores: tuple[Score, ...] = ()
    classes: int = 19
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    multiple: int = 8
    align_corners: bool = False
