"""Which networks the speed table holds, and their accuracy as reported."""

from __future__ import annotations

# Families' members that are meant for real time; what --table measures.
REAL_TIME = (
    "csfcn",
    "csfcn_tiny",
    "csfcn_nano",
    "sfnet_r18",
    "sfnet_lite_r18",
    "swiftnet_r18",
    "swiftnet_r18_pyramid",
    "bisenetv1",
    "bisenetv2",
    "pidnet_s",
    "pidnet_m",
    "pidnet_l",
    "ddrnet_23_slim",
    "ddrnet_23",
    "sfanet",
    "mgseg",
    "icnet",
)
SIZES = ((512, 1024), (768, 1536), (1024, 2048))


def reported_miou(model: str) -> float | None:
    """% on Cityscapes val at a single scale, as its authors report it; None where they do not."""
    from ..models.registry import VARIANTS
    from ..models.variant import CITYSCAPES

    return next(
        (score.single for score in VARIANTS[model].scores if score.data == CITYSCAPES), None
    )
