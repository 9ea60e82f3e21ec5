"""Parts of PIDNet and DDRNet: pooling pyramids for a small deep map, a head, and a bottleneck."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import Bottleneck
from ..layers import ConvNorm, NormConv, global_mean, resize
from ..variant import Row, conv_norm_keys

POOLS = ((5, 2), (9, 4), (17, 8))  # kernel, stride; the whole map is the fourth


class ShortBottleneck(Bottleneck):
    """A bottleneck that ends in twice its width."""

    EXPANSION = 2


class PoolingPyramid(nn.Module, ABC):
    """The map, averages of it over ever larger windows, and a shortcut.

    (N, inputs, h, w) -> (N, outputs, h, w). Zeros of the padding count in the averages.
    """

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__()
        self.first = NormConv(inputs, width)
        self.pools = nn.ModuleList(nn.AvgPool2d(k, stride, k // 2) for k, stride in POOLS)
        self.scales = nn.ModuleList(NormConv(inputs, width) for _ in POOLS)
        self.mean = NormConv(inputs, width)
        self.compression = NormConv((len(POOLS) + 2) * width, outputs)
        self.shortcut = NormConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [
            resize(scale(pool(x)), like=x)
            for scale, pool in zip(self.scales, self.pools, strict=True)
        ]
        levels = self.combine(self.first(x), [*pooled, self.mean(global_mean(x))])
        return self.compression(torch.cat(levels, dim=1)) + self.shortcut(x)

    @abstractmethod
    def combine(self, first: Tensor, pooled: list[Tensor]) -> list[Tensor]:
        """All levels of the same size, from the map itself and its averages."""


class DAPPM(PoolingPyramid):
    """DAPPM: each level is smoothed together with the one before it."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__(inputs, width, outputs)
        self.process = nn.ModuleList(
            NormConv(width, width, kernel=3) for _ in range(len(POOLS) + 1)
        )

    def combine(self, first: Tensor, pooled: list[Tensor]) -> list[Tensor]:
        levels = [first]
        for process, x in zip(self.process, pooled, strict=True):
            # A chain: each level waits for the one before it.
            levels.append(process(x + levels[-1]))
        return levels


class PAPPM(PoolingPyramid):
    """PAPPM: all levels are smoothed at once, each with the map alone."""

    def __init__(self, inputs: int, width: int, outputs: int):
        super().__init__(inputs, width, outputs)
        levels = len(POOLS) + 1
        # One grouped convolution in place of DAPPM's chain of four.
        self.process = NormConv(levels * width, levels * width, kernel=3, groups=levels)

    def combine(self, first: Tensor, pooled: list[Tensor]) -> list[Tensor]:
        return [first, self.process(torch.cat([x + first for x in pooled], dim=1))]


class NormHead(nn.Module):
    """(N, inputs, h, w), not yet through its ReLU -> logits (N, classes, h, w)"""

    def __init__(self, inputs: int, width: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.hidden = ConvNorm(inputs, width)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(F.relu(self.norm(x))))


def two_convolutions(width: int) -> nn.Sequential:
    """The stem: image (N, 3, H, W) -> (N, width, H/4, W/4)"""
    return nn.Sequential(
        ConvNorm(3, width, stride=2, bias=True), ConvNorm(width, width, stride=2, bias=True)
    )


def sequence_keys(theirs: str, ours: str, first: int = 0) -> tuple[Row, Row]:
    """Of a convolution and its norm, the parts `first` and `first + 1` of a sequence."""
    return conv_norm_keys(theirs, ours, (str(first), str(first + 1)))


def norm_conv_keys(theirs: str, ours: str, first: int = 0) -> tuple[Row, ...]:
    """Of a NormConv: a sequence of norm, ReLU and convolution that begins at place `first`."""
    return (
        (f"{theirs}.{first}", f"{ours}.norm"),
        (f"{theirs}.{first + 2}", f"{ours}.conv"),
    )


def head_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    """Of a NormHead."""
    return (
        (f"{theirs}.bn1", f"{ours}.norm"),
        *conv_norm_keys(theirs, f"{ours}.hidden", ("conv1", "bn2")),
        (f"{theirs}.conv2", f"{ours}.classifier"),
    )


def pyramid_keys(theirs: str) -> tuple[Row, ...]:
    """Of a PoolingPyramid."""
    return (
        *norm_conv_keys(f"{theirs}.scale0", "pyramid.first"),
        *(
            row
            for i in range(3)
            for row in norm_conv_keys(f"{theirs}.scale{i + 1}", f"pyramid.scales.{i}", 1)
        ),
        *norm_conv_keys(f"{theirs}.scale4", "pyramid.mean", first=1),
        *(
            row
            for i in range(4)
            for row in norm_conv_keys(f"{theirs}.process{i + 1}", f"pyramid.process.{i}")
        ),
        *norm_conv_keys(f"{theirs}.scale_process", "pyramid.process"),
        *norm_conv_keys(f"{theirs}.{{part}}", "pyramid.{part}"),
    )


SHARED_KEYS = (
    *sequence_keys("conv1", "stem.0"),
    *sequence_keys("conv1", "stem.1", first=3),
    *sequence_keys("compression{stage}", "compression{stage}"),
    *pyramid_keys("spp"),
    *head_keys("final_layer", "head"),
)
