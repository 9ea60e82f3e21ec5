"""Networks: `build` one by name, `load_checkpoint` into it, `deploy` it for inference."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from ..errors import CheckpointError, UsageError
from .checkpoints import digest, load_checkpoint, save_checkpoint
from .cost import Cost, count
from .families import (
    bisenet,
    crossformer,
    csfcn,
    ddrnet,
    ecfd,
    icnet,
    mgseg,
    pidnet,
    senformer,
    sfanet,
    sfnet,
    swiftnet,
)
from .fuse import deploy
from .network import Info, Network
from .pipeline import FrameToLabels
from .variant import Variant

VARIANTS: dict[str, Variant] = (  # a new family: one import, one more term
    csfcn.VARIANTS
    | sfnet.VARIANTS
    | swiftnet.VARIANTS
    | bisenet.VARIANTS
    | pidnet.VARIANTS
    | ddrnet.VARIANTS
    | sfanet.VARIANTS
    | mgseg.VARIANTS
    | icnet.VARIANTS
    | crossformer.VARIANTS
    | ecfd.VARIANTS
    | senformer.VARIANTS
)

__all__ = [
    "VARIANTS",
    "CheckpointError",
    "Cost",
    "FrameToLabels",
    "Info",
    "Network",
    "Variant",
    "build",
    "count",
    "deploy",
    "digest",
    "load_checkpoint",
    "save_checkpoint",
]


def build(variant: str, num_classes: int = 19, **options: Any) -> Network:
    """The network `variant` in eval mode, with random weights from torch's generator.

    Raises ValueError for a name that is not in VARIANTS or a class count outside 2..255.
    """
    if variant not in VARIANTS:
        near = get_close_matches(variant, VARIANTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(VARIANTS)}"
        raise UsageError(f"no model is called {variant!r}: {hint}")
    if not 2 <= num_classes <= 255:
        raise UsageError(f"num_classes must lie in 2..255 (labels are uint8), not {num_classes}")
    entry = VARIANTS[variant]
    network = entry.build(num_classes, **options)
    network.info = Info(
        variant, num_classes, entry.mean, entry.std, entry.multiple, entry.align_corners
    )
    return network.eval()
