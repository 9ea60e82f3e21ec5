"""Losses. logits (N, K, H, W) of any float type, label (N, H, W) int64 with 255 not counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.classes import IGNORE
from .recipe import Loss


class Criterion(nn.Module):
    """The recipe's loss over a network's training outputs, as one number.

    The `"logits"` count fully, every auxiliary output by the recipe's weight; smaller auxiliary
    maps are enlarged to the label.
    """

    class_weights: Tensor | None

    def __init__(self, loss: Loss, class_weights: Tensor | None = None):
        super().__init__()
        self.loss = loss
        self.register_buffer("class_weights", class_weights)

    def forward(self, outputs: Mapping[str, Tensor], label: Tensor) -> Tensor:
        total = self._single(outputs["logits"], label)
        for name, logits in outputs.items():
            if name != "logits" and self.loss.auxiliary:
                _check_classes(name, logits, like=outputs["logits"])
                total = total + self.loss.auxiliary * self._single(logits, label)
        return total

    def _single(self, logits: Tensor, label: Tensor) -> Tensor:
        logits = logits.float()
        if logits.shape[-2:] != label.shape[-2:]:
            logits = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=False)
        if self.loss.kind == "ohem":
            value = ohem(logits, label, self.loss.threshold, self.loss.kept, self.class_weights)
        else:
            value = cross_entropy(logits, label, self.class_weights)
        if self.loss.dice:
            value = value + self.loss.dice * dice(logits, label)
        return value


def _check_classes(name: str, logits: Tensor, like: Tensor) -> None:
    if logits.shape[1] != like.shape[1]:
        raise ValueError(
            f"auxiliary output {name!r} has {logits.shape[1]} channels, not the {like.shape[1]} "
            "classes: set loss.auxiliary=0, for there is no loss for it here"
        )


def cross_entropy(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the pixels that count, of all processes together; 0 where there are none."""
    total = F.cross_entropy(logits, label, weights, ignore_index=IGNORE, reduction="sum")
    if weights is None:
        counted = (label != IGNORE).sum()
    else:
        counted = F.pad(weights, (0, IGNORE + 1 - len(weights)))[label].sum()
    return total / mean_over_processes(counted.to(total.dtype)).clamp(min=1e-6)


def mean_over_processes(value: Tensor) -> Tensor:
    """So that averaging gradients over processes gives the mean over all pixels."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    value = value.detach().clone()
    distributed.all_reduce(value)
    return value / distributed.get_world_size()


def ohem(
    logits: Tensor, label: Tensor, threshold: float, kept: int, weights: Tensor | None = None
) -> Tensor:
    """Cross-entropy over the hard pixels of the batch: those whose true class has a probability
    of at most max(threshold, that of the `kept`-th hardest pixel); all, if fewer than `kept` count.
    """
    valid = label != IGNORE
    with torch.no_grad():
        index = label.masked_fill(~valid, 0)
        true = logits.softmax(dim=1).gather(1, index[:, None])[:, 0].masked_fill(~valid, 1.0)
        if valid.sum() >= kept:
            hardest = true.flatten().kthvalue(kept).values
            valid = valid & (true <= hardest.clamp(min=threshold))
    return cross_entropy(logits, label.masked_fill(~valid, IGNORE), weights)


def dice(logits: Tensor, label: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - the mean over the classes present of 2 |P and T| / (|P| + |T|), over the whole batch."""
    valid = label != IGNORE
    index = label.masked_fill(~valid, 0)
    probability = logits.softmax(dim=1) * valid[:, None]
    true = probability.gather(1, index[:, None])
    none = logits.new_zeros(logits.shape[1])
    overlap = none.index_add(0, index.flatten(), true.flatten())
    present = none.index_add(0, index.flatten(), valid.to(none.dtype).flatten())
    score = (2 * overlap + smooth) / (probability.sum(dim=(0, 2, 3)) + present + smooth)
    return 1 - score[present > 0].mean() if (present > 0).any() else probability.sum() * 0


def balance(counts: np.ndarray, power: float) -> Tensor:
    """Class weights (median frequency / frequency) ** power from pixel counts, of mean 1.

    Classes that never occur get weight 0.
    """
    seen = counts > 0
    weights = np.zeros(len(counts))
    weights[seen] = (np.median(counts[seen]) / counts[seen]) ** power
    return torch.from_numpy(weights / weights[seen].mean()).float()
