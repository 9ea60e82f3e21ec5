"""Conditions of an export compared with those of the training: size, aspect, light of the frames.

A proof shows that an artifact equals the network, not that the network is used as it was trained:
csfcn_tiny, trained at 360x480, equals itself at 1024x2048 too, with half of its accuracy.
Conditions far from those of the training are warnings in the proof.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.letterbox import fit_frame
from ..runtime.artifact import Card
from .calibrate import SEEN, CalibrationFrames
from .reference import ProofFrames, ReferenceOutputs

LUMA = np.array([0.299, 0.587, 0.114])  # of RGB
# Training shows frames at half to twice their size; three times that halved the mIoU.
FAR_SCALE = 1.5
FAR_ASPECT = 1.4
# In standard deviations of the normalization. Measured against ImageNet's: CamVid and Cityscapes
# frames lie 0.5 to 0.8 below its mean and spread by 0.8 to 1.1; at 12 % of their brightness they
# lie 1.9 below and spread by 0.1.
FAR_MEAN = 1.25
FAR_SPREAD = 0.4
FAR_LIGHT = 0.12  # of full scale, between calibration and proof


@dataclass(frozen=True)
class Light:
    """Gray levels of frames in 0..1: mean, and mean over frames of their standard deviations."""

    mean: float
    spread: float


def measure_light(frames: Iterable[NDArray[np.uint8]]) -> Light:
    """The light of frames (H, W, 3) uint8 BGR, of any sizes."""
    means, spreads = [], []
    for frame in frames:
        small = cv2.resize(frame, SEEN[::-1], interpolation=cv2.INTER_AREA)
        gray = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY) / 255
        means.append(gray.mean())
        spreads.append(gray.std())
    return Light(float(np.mean(means)), float(np.mean(spreads)))


def find_warnings(card: Card, proof: ProofFrames) -> list[str]:
    """What is far from the training's in the size, and in the light of frames that were given."""
    found = []
    if card.trained and (trained := card.trained_size):
        (height, width), (high, wide) = card.size, trained
        scale = (height * width / (high * wide)) ** 0.5
        aspect = (width * high) / (height * wide)
        far = [f"{scale:.2g} times its scale"] if not 1 / FAR_SCALE <= scale <= FAR_SCALE else []
        far += ["another aspect"] if max(aspect, 1 / aspect) > FAR_ASPECT else []
        if far:
            found.append(
                f"the network was trained at {text_of(trained)}, and {text_of(card.size)} is "
                f"{' and '.join(far)}: labels may be worse, which `rtseg eval` measures"
            )
    # Drawn scenes have a light of their own, which says nothing about the user's frames.
    if proof.origin == "given":
        found += _compare_light("the proof's frames", [f for _, f in proof.frames], card)
    return found


def find_missing_classes(card: Card, expected: ReferenceOutputs) -> list[str]:
    """A line where the network itself gives one class alone: any such file would equal it, so the
    proof shows little. Wrong weights or a wrong normalization do that."""
    seen = np.unique(expected.reference.labels)
    if len(seen) > 1 or not card.trained:
        return []
    return [
        f"the network labels every pixel of the proof's frames {card.classes[int(seen[0])]!r}: are "
        "its weights and its normalization right? this proof shows little"
    ]


def compare_calibration(
    card: Card, picked: CalibrationFrames, expected: ReferenceOutputs
) -> list[str]:
    """What is far from the training's, or from the proof's frames, in calibration frames."""
    frames = [frame for _, frame in picked.used]
    found = _compare_light("the calibration frames", frames, card)
    # Fitted as the proof's frames are, which may have black beside them.
    fitted = (fit_frame(frame, card.size, card.fit, card.pad_color) for frame in frames)
    ours, theirs = measure_light(fitted), measure_light(expected.reference.frames)
    if abs(ours.mean - theirs.mean) > FAR_LIGHT:
        found.append(
            f"the calibration frames (gray level {255 * ours.mean:.0f} of 255 on average) are "
            f"unlike the proof's ({255 * theirs.mean:.0f}): take frames of every light that is "
            "driven in"
        )
    return found


def _compare_light(what: str, frames: list[NDArray[np.uint8]], card: Card) -> list[str]:
    light = measure_light(frames)
    mean, std = float(LUMA @ card.mean), float(LUMA @ card.std)
    off = (light.mean - mean) / std
    if abs(off) > FAR_MEAN:
        kind = "darker" if off < 0 else "brighter"
    elif light.spread < FAR_SPREAD * std:
        kind = "flatter"
    else:
        return []
    return [
        f"{what} are far {kind} (gray level {255 * light.mean:.0f} of 255 on average, spread "
        f"{255 * light.spread:.0f}) than the network's normalization expects ({255 * mean:.0f}, "
        f"spread {255 * std:.0f})"
    ]


def text_of(size: tuple[int, int]) -> str:
    """(height, width) as "360x480"."""
    return f"{size[0]}x{size[1]}"
