"""Borders between classes: the maps of them that the data loader makes, and the losses on them.

label (H, W) uint8 train ids; maps (H, W) uint8, for batches (N, H, W).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.classes import IGNORE

EDGE_WIDTH = 4  # pixels
NEAR = ((16, 8), (64, 4), (128, 2))  # closer to a border than so many pixels: the weight
SHARPNESS = 0.5


def edges(label: np.ndarray, margin: int = 0) -> np.ndarray:
    """1 along the borders between classes (what does not count is one), a few pixels wide, else 0;
    none begins within `margin` pixels of the image's border."""
    found = cv2.Canny(label, 0.1, 0.2)
    if margin:
        inner = np.zeros_like(found)
        inner[margin:-margin, margin:-margin] = found[margin:-margin, margin:-margin]
        found = inner
    wide = cv2.dilate(found, np.ones((EDGE_WIDTH, EDGE_WIDTH), np.uint8))
    return np.asarray(wide > 0, np.uint8)


def border_weights(label: np.ndarray) -> np.ndarray:
    """How much a pixel counts by its distance to the next pixel of another class: 8 next to it, 1
    far away; 0 for pixels that do not count."""
    weights: NDArray[np.uint8] = (label != IGNORE).astype(np.uint8)
    for train_id in np.unique(label[label != IGNORE]):
        own = label == train_id
        distance = cv2.distanceTransform(own.astype(np.uint8), cv2.DIST_L2, 5)
        for limit, weight in reversed(NEAR):
            weights[own & (distance < limit)] = weight
    return weights


def edge_loss(logits: Tensor, edge: Tensor) -> Tensor:
    """Binary cross-entropy, in which edges weigh as much as all the rest.

    logits (N, 1, H, W), edge (N, H, W) of 0 and 1.
    """
    truth = edge[:, None].to(logits.dtype)
    part = truth.mean()
    weight = truth * (1 - part) + (1 - truth) * part
    return F.binary_cross_entropy_with_logits(logits, truth, weight)


def bordered(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy in which pixels count by `weights` (N, H, W), see `border_weights`, and by how
    unlikely their true class still is: exp((1 - p) / 2). Over the pixels of weight above 0."""
    losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    unsure = (SHARPNESS * (1 - torch.exp(-losses.detach()))).exp()
    return (weights * unsure * losses).sum() / (weights > 0).sum().clamp(min=1)
