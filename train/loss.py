"""Losses, and the boundary maps that some of them need.

Throughout: logits (N, K, H, W) of any float type, label (N, H, W) int64 with 255 not counted. The
data loader makes the maps, (H, W) uint8, from labels (H, W) uint8; in batches they are (N, H, W).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal

import cv2
import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.classes import IGNORE
from ..errors import UsageError
from .recipe import Loss, Term

EDGE_WIDTH = 4  # pixels
NEAR = ((16, 8), (64, 4), (128, 2))  # closer to a border than so many pixels: the weight
SHARPNESS = 0.5


def find_edges(label: np.ndarray, margin: int = 0) -> np.ndarray:
    """1 along the borders between classes (what does not count is one), a few pixels wide, else 0;
    none begins within `margin` pixels of the image's border."""
    # Thresholds below any step between ids: every border is an edge.
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


def border_cross_entropy(logits: Tensor, label: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy in which pixels count by `weights` (N, H, W), see `border_weights`, and by how
    unlikely their true class still is: exp((1 - p) / 2). Over the pixels of weight above 0."""
    losses = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    # Detached: the weight says which pixels count, and must not be learned to be small.
    unsure = (SHARPNESS * (1 - torch.exp(-losses.detach()))).exp()
    return (weights * unsure * losses).sum() / (weights > 0).sum().clamp(min=1)


Mean = Literal["weights", "pixels", "all"]
NO_MAPS: Mapping[str, Tensor] = {}
SEEN = 0.8  # probability from which the edge output is believed
SMALLEST = 1e-15  # probability whose logarithm is taken


class Criterion(nn.Module):
    """The recipe's loss over a network's training outputs, as one number.

    Smaller outputs are enlarged to the label, with `align_corners` as the network does it.
    """

    class_weights: Tensor | None

    def __init__(
        self, loss: Loss, class_weights: Tensor | None = None, align_corners: bool = False
    ):
        super().__init__()
        self.loss, self.align_corners = loss, align_corners
        if class_weights is None and loss.class_weights is not None:
            class_weights = torch.tensor(loss.class_weights)
        self.register_buffer("class_weights", class_weights)

    def forward(
        self, outputs: Mapping[str, Tensor], label: Tensor, maps: Mapping[str, Tensor] = NO_MAPS
    ) -> Tensor:
        """The loss of a batch, a float32 scalar.

        Args:
            outputs: By name, (N, K, h, w); "logits" is the main one.
            label: (N, H, W) int64.
            maps: Those that `loss.maps` names, (N, H, W) uint8.

        Raises:
            UsageError: if outputs and terms do not go together.
        """
        self._check(outputs)
        total = label.new_zeros((), dtype=torch.float32)
        for name, output in outputs.items():
            term = self.term(name)
            if term.weight:
                total = total + term.weight * self._single(term, output, label, maps)
        if self.loss.boundary:
            seen = self._at_edges(outputs, label)
            again = self._single(self.loss, outputs["logits"], seen, maps)
            total = total + self.loss.boundary * again
        return total

    def term(self, name: str) -> Term:
        """How the output `name` is compared."""
        if name == "logits":
            return self.loss
        own = self.loss.outputs.get(name)
        return own or self.loss.model_copy(update={"weight": self.loss.auxiliary})

    def _single(
        self, term: Term, output: Tensor, label: Tensor, maps: Mapping[str, Tensor]
    ) -> Tensor:
        # Half precision has too few digits for the logarithm of a sum over classes.
        output = output.float()
        if term.kind == "probabilities":
            output = output.clamp(min=SMALLEST).log()
        if output.shape[-2:] != label.shape[-2:]:
            if term.at == "output":
                label = _shrink(label, output)
            else:
                output = self._upsample(output, label)
        if term.kind == "edges":
            return edge_loss(output, maps["edges"])
        if term.kind == "bordered":
            value = border_cross_entropy(output, label, maps["bordered"])
        elif term.kind == "ohem":
            kept = self._count_kept(term, label)
            weights = self.class_weights
            value = ohem(output, label, term.threshold, kept, weights, term.mean)
        else:
            value = cross_entropy(output, label, self.class_weights, term.mean)
        if term.dice:
            value = value + term.dice * dice(output, label)
        return value

    def _upsample(self, output: Tensor, label: Tensor) -> Tensor:
        size = label.shape[-2:]
        return F.interpolate(output, size, mode="bilinear", align_corners=self.align_corners)

    def _count_kept(self, term: Term, label: Tensor) -> int:
        if term.kept_per == "batch":
            return round(term.kept)
        counted = len(label) if term.kept_per == "image" else int((label != IGNORE).sum())
        return max(1, int(term.kept * counted))

    def _at_edges(self, outputs: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """The label where the edge output sees a border; elsewhere nothing counts."""
        assert self.loss.edges is not None
        edge = self._upsample(outputs[self.loss.edges].detach().float(), label)
        return label.masked_fill(edge[:, 0].sigmoid() <= SEEN, IGNORE)

    def _check(self, outputs: Mapping[str, Tensor]) -> None:
        for name in self.loss.outputs:
            if name not in outputs:
                near = get_close_matches(name, outputs, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(outputs)}"
                raise UsageError(f"loss.outputs: the network has no output {name!r}: {hint}")
        classes = outputs["logits"].shape[1]
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise UsageError(
                f"loss.class_weights has {len(self.class_weights)} values for {classes} classes"
            )
        for name, output in outputs.items():
            term, channels = self.term(name), output.shape[1]
            expected = 1 if term.kind == "edges" else classes
            if term.weight and channels != expected:
                raise UsageError(
                    f"output {name!r} has {channels} channels, not {expected}: give it a term of "
                    f"its own in loss.outputs, or weight 0 there"
                )


def _shrink(label: Tensor, output: Tensor) -> Tensor:
    # nearest-exact: PyTorch's plain nearest takes the upper left pixel, half a cell off.
    small = F.interpolate(label[:, None].float(), output.shape[-2:], mode="nearest-exact")
    return small[:, 0].long()


def cross_entropy(
    logits: Tensor, label: Tensor, weights: Tensor | None = None, mean: Mean = "weights"
) -> Tensor:
    """Mean over the pixels that count, of all processes together; 0 where there are none.

    weights (K,) of the classes; mean: what the sum is divided by, the pixels' weights, how many
    `pixels` count, or how many there are in `all`.
    """
    total = F.cross_entropy(logits, label, weights, ignore_index=IGNORE, reduction="sum")
    if mean == "all":
        return total / label.numel()
    if mean == "pixels" or weights is None:
        counted = (label != IGNORE).sum()
    else:
        # Padded with zeros up to 255, so that pixels that do not count weigh nothing.
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
    logits: Tensor,
    label: Tensor,
    threshold: float,
    kept: int,
    weights: Tensor | None = None,
    mean: Mean = "weights",
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
    return cross_entropy(logits, label.masked_fill(~valid, IGNORE), weights, mean)


def dice(logits: Tensor, label: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - the mean over the classes present of 2 |P and T| / (|P| + |T|), over the whole batch."""
    valid = label != IGNORE
    index = label.masked_fill(~valid, 0)
    probability = logits.softmax(dim=1) * valid[:, None]
    true = probability.gather(1, index[:, None])
    # By index_add, since a one-hot label would take as much memory as the logits.
    none = logits.new_zeros(logits.shape[1])
    overlap = none.index_add(0, index.flatten(), true.flatten())
    present = none.index_add(0, index.flatten(), valid.to(none.dtype).flatten())
    score = (2 * overlap + smooth) / (probability.sum(dim=(0, 2, 3)) + present + smooth)
    # Times 0 where no class is present, so that the graph has a gradient in every process.
    return 1 - score[present > 0].mean() if (present > 0).any() else probability.sum() * 0


def balance_classes(counts: np.ndarray, power: float) -> Tensor:
    """Class weights (median frequency / frequency) ** power from pixel counts, of mean 1.

    Classes that never occur get weight 0.
    """
    seen = counts > 0
    weights = np.zeros(len(counts))
    weights[seen] = (np.median(counts[seen]) / counts[seen]) ** power
    return torch.from_numpy(weights / weights[seen].mean()).float()
