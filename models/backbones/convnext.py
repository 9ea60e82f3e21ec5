"""ConvNeXt (Liu et al., "A ConvNet for the 2020s", CVPR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import DropPath, init_narrow
from ..variant import Keys

# ConvNeXt's own; PyTorch's default is 1e-5.
EPS = 1e-6


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a map (N, C, H, W)."""

    def __init__(self, width: int):
        super().__init__(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        # PyTorch norms the last axes only, so the channels go there and back.
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """A 7x7 convolution per channel, and an MLP over the channels, scaled by `gamma`.

    (N, C, H, W) -> (N, C, H, W)
    """

    def __init__(self, width: int, drop_path: float):
        super().__init__()
        self.spatial = nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.ones(width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        tokens = self.fc2(F.gelu(self.fc1(tokens)))
        if self.gamma is not None:
            tokens = tokens * self.gamma
        return x + self.drop_path(tokens.permute(0, 3, 1, 2))

    def to_deployed(self) -> ConvNeXtBlock:
        """The scale goes into the last linear map."""
        if self.gamma is not None:
            with torch.no_grad():
                self.fc2.weight.mul_(self.gamma[:, None])
                self.fc2.bias.mul_(self.gamma)
            self.gamma = None
        return self


class ConvNeXt(nn.Module):
    """image (N, 3, H, W) -> four maps of the `widths` at strides 4, 8, 16 and 32, rounded down.

    `norms` apply to the maps that are given back, not to what the next stage reads.
    """

    def __init__(self, depths: Sequence[int], widths: Sequence[int], drop_path: float):
        super().__init__()
        self.outputs = list(widths)
        # On the CPU even where the network is built on meta, whose values nobody can read.
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.downs, self.stages = nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if i:
                # Between stages the norm stands before the convolution, in the stem behind it.
                down = [ChannelNorm(inputs), nn.Conv2d(inputs, width, kernel_size=2, stride=2)]
            else:
                down = [nn.Conv2d(inputs, width, kernel_size=4, stride=4), ChannelNorm(width)]
            self.downs.append(nn.Sequential(*down))
            blocks = (ConvNeXtBlock(width, rates.pop(0)) for _ in range(depth))
            self.stages.append(nn.Sequential(*blocks))
            inputs = width
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        init_narrow(self, nn.Conv2d, nn.Linear)

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for down, stage, norm in zip(self.downs, self.stages, self.norms, strict=True):
            x = stage(down(x))
            features.append(norm(x))
        return features


def convnext_large(drop_path: float = 0.4) -> ConvNeXt:
    """ConvNeXt-L: maps of 192, 384, 768 and 1536 channels."""
    return ConvNeXt((3, 3, 27, 3), (192, 384, 768, 1536), drop_path)


KEYS: Keys = (
    ("backbone.downsample_layers.{i}.{part}", "backbone.downs.{i}.{part}"),
    ("backbone.stages.{i}.{j}.dwconv", "backbone.stages.{i}.{j}.spatial"),
    ("backbone.stages.{i}.{j}.pwconv{k}", "backbone.stages.{i}.{j}.fc{k}"),
    ("backbone.norm{i}", "backbone.norms.{i}"),
)
