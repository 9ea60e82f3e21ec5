"""Losses. logits (N, K, H, W) of any float type, label (N, H, W) int64 with 255 not counted."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Literal

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.classes import IGNORE
from ..errors import UsageError
from .borders import bordered, edge_loss
from .sections import Loss, Term

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
        """maps: those that `loss.maps` names, (N, H, W). Raises ValueError for outputs and terms
        that do not go together."""
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
        output = output.float()
        if term.kind == "probabilities":
            output = output.clamp(min=SMALLEST).log()
        if output.shape[-2:] != label.shape[-2:]:
            if term.at == "output":
                label = _shrunk(label, output)
            else:
                output = self._enlarged(output, label)
        if term.kind == "edges":
            return edge_loss(output, maps["edges"])
        if term.kind == "bordered":
            value = bordered(output, label, maps["bordered"])
        elif term.kind == "ohem":
            kept = self._kept(term, label)
            weights = self.class_weights
            value = ohem(output, label, term.threshold, kept, weights, term.mean)
        else:
            value = cross_entropy(output, label, self.class_weights, term.mean)
        if term.dice:
            value = value + term.dice * dice(output, label)
        return value

    def _enlarged(self, output: Tensor, label: Tensor) -> Tensor:
        size = label.shape[-2:]
        return F.interpolate(output, size, mode="bilinear", align_corners=self.align_corners)

    def _kept(self, term: Term, label: Tensor) -> int:
        if term.kept_per == "batch":
            return round(term.kept)
        counted = len(label) if term.kept_per == "image" else int((label != IGNORE).sum())
        return max(1, int(term.kept * counted))

    def _at_edges(self, outputs: Mapping[str, Tensor], label: Tensor) -> Tensor:
        """The label where the edge output sees a border; elsewhere nothing counts."""
        assert self.loss.edges is not None
        edge = self._enlarged(outputs[self.loss.edges].detach().float(), label)
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


def _shrunk(label: Tensor, output: Tensor) -> Tensor:
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
