"""Accuracy as the networks' authors report it, for plots of speed against accuracy."""

from __future__ import annotations

# mIoU in % on Cityscapes val, single scale, whole images of 1024x2048; from the papers or the
# repositories that the networks' files name. None of it was measured here.
CITYSCAPES_VAL = {
    "csfcn": 79.0,
    "sfnet_r18": 78.03,
    "bisenetv1": 75.44,
    "bisenetv2": 74.95,
    "pidnet_s": 78.8,
    "pidnet_m": 79.9,
    "pidnet_l": 80.9,
    "ddrnet_23_slim": 77.8,
    "ddrnet_23": 79.5,
    "icnet": 71.0,
}
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
