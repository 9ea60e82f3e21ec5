"""Layers that two families or more share."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvNorm(nn.Module):
    """Convolution, batch norm, and (unless `act=False`) ReLU; same padding; no bias by default.

    (N, inputs, H, W) -> (N, outputs, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
        bias: bool = False,
    ):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.act: nn.Module = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def deployed(self) -> ConvNorm:
        """The norm goes into the convolution's weight and bias."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()
        return self


def resize(x: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    """`x` (N, C, h, w) bilinearly resized to the height and width of `like`."""
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=align_corners)


class Enlarge(nn.Module):
    """Bilinear enlargement by a whole factor: (N, K, h, w) -> (N, K, factor h, factor w)."""

    def __init__(self, factor: int, align_corners: bool):
        super().__init__()
        self.factor = factor
        self.align_corners = align_corners

    def forward(self, logits: Tensor) -> Tensor:
        size = [side * self.factor for side in logits.shape[-2:]]
        return F.interpolate(logits, size, mode="bilinear", align_corners=self.align_corners)


class Constant(nn.Module):
    """A tensor that depends on sizes only, made once per size and kept.

    `make(*sizes)` gives a float32 CPU tensor; a copy is kept per device and dtype. A graph that is
    traced after a size was seen holds the tensor as a constant, not the arithmetic that made it.
    """

    def __init__(self, make: Callable[..., Tensor]):
        super().__init__()
        self.make = make
        self.made: dict[tuple[int, ...], Tensor] = {}
        self._placed: dict[tuple[object, ...], Tensor] = {}

    def forward(self, *sizes: int, like: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            made = self.made[sizes] if sizes in self.made else self.make(*sizes)
            return made.to(like.device, like.dtype)
        key = (sizes, like.device, like.dtype)
        if key not in self._placed:
            if sizes not in self.made:
                self.made[sizes] = self.make(*sizes)
            self._placed[key] = self.made[sizes].to(like.device, like.dtype)
        return self._placed[key]
