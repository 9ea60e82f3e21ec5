"""A small network of a user's own, and its preprocessing with faults planted."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from rtseg.models.own import (
    NORMALIZATIONS,
)
from torch import Tensor, nn

SIZE = (64, 96)


IMAGENET = NORMALIZATIONS["imagenet"]


class Tiny(nn.Module):
    """Two convolutions, logits at a quarter of the size."""

    def __init__(self, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.head = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> Any:
        return self.head(torch.relu(self.stem(image)))


def prepare(
    *,
    order: str = "rgb",
    scale: float = 1 / 255,
    mean: Any = IMAGENET.mean,
    std: Any = IMAGENET.std,
    way: int = cv2.INTER_LINEAR,
    pad: bool = False,
    color: Any = 0,
    pad_last: bool = False,
    middle: bool = False,
    crop: bool = False,
    corners: bool = False,
) -> Any:
    """A preprocessing as people write it, with a fault planted."""

    def preprocess(frame: np.ndarray[Any, Any]) -> Tensor:
        height, width = SIZE
        if corners:
            x = torch.from_numpy(frame.transpose(2, 0, 1).copy())[None].float()
            image = F.interpolate(x, SIZE, mode="bilinear", align_corners=True)[0].numpy()
            image = image.transpose(1, 2, 0)
        elif crop:
            factor = max(height / frame.shape[0], width / frame.shape[1])
            h, w = round(height / factor), round(width / factor)
            top, left = (frame.shape[0] - h) // 2, (frame.shape[1] - w) // 2
            image = cv2.resize(frame[top : top + h, left : left + w], (width, height))
        elif pad:
            factor = min(height / frame.shape[0], width / frame.shape[1])
            h, w = round(frame.shape[0] * factor), round(frame.shape[1] * factor)
            inner = cv2.resize(frame, (w, h))
            image = np.empty((height, width, 3), np.uint8)
            image[:] = color
            top, left = ((height - h) // 2, (width - w) // 2) if middle else (0, 0)
            image[top : top + h, left : left + w] = inner
        else:
            image = cv2.resize(frame, (width, height), interpolation=way)
        if order == "rgb":
            image = image[..., ::-1]
        values = (image.astype(np.float32) * scale - np.float32(mean)) / np.float32(std)
        if pad_last:
            values[h:], values[:, w:] = 0, 0
        return torch.from_numpy(values.transpose(2, 0, 1).copy())[None]

    return preprocess
