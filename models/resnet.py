"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvNorm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, inputs, H, W) -> (N, width, H/s, W/s)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = ConvNorm(inputs, width, stride=stride)
        self.conv2 = ConvNorm(width, width, act=False)
        plain = stride == 1 and inputs == width
        self.shortcut = (
            nn.Identity() if plain else ConvNorm(inputs, width, kernel=1, stride=stride, act=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem to stride 4 and four stages of basic blocks at strides 4, 8, 16 and 32.

    image (N, 3, H, W) -> the four stage outputs, shallow to deep. The first stage may be of depth 0.
    """

    def __init__(
        self, stem: nn.Module, stem_width: int, widths: Sequence[int], depths: Sequence[int]
    ):
        super().__init__()
        self.stem = stem
        inputs = stem_width
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            strides = [1 if index == 1 else 2] + [1] * (depth - 1)
            stage = nn.Sequential()
            for stride in strides[:depth]:
                stage.append(BasicBlock(inputs, width, stride))
                inputs = width
            setattr(self, f"layer{index}", stage)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = [], self.stem(image)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def deep_stem(width: int = 64, outputs: int = 128) -> nn.Sequential:
    """Three 3x3 convolutions in place of one 7x7, then max pooling: stride 4."""
    return nn.Sequential(
        ConvNorm(3, width, stride=2),
        ConvNorm(width, width),
        ConvNorm(width, outputs),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


# A row: the reference's name, ours; `{x}` stands for one dotted part or a piece of one.
DEEP_STEM_KEYS = (
    ("resnet.conv1.0", "backbone.stem.0.conv"),
    ("resnet.conv1.1", "backbone.stem.0.norm"),
    ("resnet.conv1.3", "backbone.stem.1.conv"),
    ("resnet.conv1.4", "backbone.stem.1.norm"),
    ("resnet.conv1.6", "backbone.stem.2.conv"),
    ("resnet.bn1", "backbone.stem.2.norm"),
)
BASIC_BLOCK_KEYS = (
    ("resnet.layer{stage}.{block}.conv{i}", "backbone.layer{stage}.{block}.conv{i}.conv"),
    ("resnet.layer{stage}.{block}.bn{i}", "backbone.layer{stage}.{block}.conv{i}.norm"),
    ("resnet.layer{stage}.{block}.downsample.0", "backbone.layer{stage}.{block}.shortcut.conv"),
    ("resnet.layer{stage}.{block}.downsample.1", "backbone.layer{stage}.{block}.shortcut.norm"),
)
