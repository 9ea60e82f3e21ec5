"""Network: the base of all families. A backbone-to-logits function and the upsampling after it."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class NetworkInfo:
    """The input that a built network takes, and its output.

    Attributes:
        name, num_classes: of the variant.
        mean, std: per RGB channel, on pixels in 0..1.
        multiple: height and width of the input must be multiples of it.
        align_corners: of the bilinear upsampling of logits that are smaller than the image.
    """

    name: str
    num_classes: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    multiple: int = 8
    align_corners: bool = False

    def check_size(self, height: int, width: int) -> None:
        """Check an input's size.

        Raises:
            UsageError: with the nearest sizes that fit, unless `height` x `width` does.
        """
        if height > 0 and width > 0 and height % self.multiple == 0 and width % self.multiple == 0:
            return
        step = self.multiple
        down = [max(step, side // step * step) for side in (height, width)]
        up = [max(step, math.ceil(side / step) * step) for side in (height, width)]
        near = " or ".join(dict.fromkeys(f"{h}x{w}" for h, w in (down, up)))
        raise UsageError(
            f"{self.name} takes sizes that are multiples of {step}, not {height}x{width}: "
            f"use {near}"
        )


class Network(nn.Module, ABC):
    """A segmentation network. Subclasses write `forward_logits` and set `upsample_logits`.

    In eval mode `forward` maps an image (N, 3, H, W), float RGB normalized as `info` says, to the
    logits that the reference implementation returns. In train mode it gives a dict: `"logits"`
    and, for networks that have them, the auxiliary outputs by name.

    Attributes:
        info: set by `build`.
        keys: official names of its state dict beside ours.
        upsample_logits: what the reference does to the head's logits before it returns them.
    """

    info: NetworkInfo
    keys: Sequence[tuple[str, str | None]] = ()
    upsample_logits: nn.Module

    @abstractmethod
    def forward_logits(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) -> logits (N, K, h, w) at the head's own stride."""

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """image (1, 3, H, W) -> the logits that `forward` returns, and the labels (1, h, w) of a
        network that says them itself."""
        return self(image), None

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What training sees: (as `forward_logits`, auxiliary logits by name)."""
        return self.forward_logits(image), {}

    def upgrade_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's entries by the official names of today, for families that had others."""
        return state

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's entries, by our names, as this network holds them: for families whose
        checkpoints come in more than one form."""
        return state

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        self.info.check_size(image.shape[-2], image.shape[-1])
        if not self.training:
            return self.upsample_logits(self.forward_logits(image))
        logits, auxiliary = self.forward_auxiliary(image)
        return {"logits": self.upsample_logits(logits), **auxiliary}


def copy_to_meta(network: AnyModule) -> AnyModule:
    """A copy in eval mode without values: to find shapes, costs and who reads what by running it,
    in a moment at any size."""
    return copy.deepcopy(network).to("meta").eval()


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of its weights; float32 where it has none."""
    return next((each.dtype for each in network.parameters()), torch.float32)
