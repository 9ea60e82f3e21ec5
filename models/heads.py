"""Necks and heads shared by two or more families, and the network that combines them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    BINS,
    Constant,
    ConvNorm,
    Head,
    TrainingOnly,
    he_normal,
    pooling_matrix,
    resize,
)
from .network import Network
from .variant import Keys, conv_norm_keys


class EncoderDecoder(Network):
    """A backbone's four maps go to the head, and in training the third one to an auxiliary head.

    image (N, 3, H, W) -> logits (N, classes, H/4, W/4); in train mode with "auxiliary", at the
    third map's size, if there is such a head.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, auxiliary_head: nn.Module | None = None
    ):
        super().__init__()
        self.backbone, self.head = backbone, head
        self.extra = TrainingOnly()
        if auxiliary_head is not None:
            self.extra["auxiliary"] = auxiliary_head
        self.upsample_logits = nn.Identity()

    def forward_logits(self, image: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone(image))
        return logits

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.backbone(image)
        return self.head(features), {name: head(features[2]) for name, head in self.extra.items()}


def fcn_head(inputs: int, width: int, num_classes: int) -> Head:
    """The auxiliary head of MMSegmentation."""
    head = Head(inputs, width, num_classes, dropout=0.1)
    he_normal(head)
    small_normal(head.classifier)
    return head


def head_keys(theirs: str, ours: str) -> Keys:
    """Of a `Head` in MMSegmentation's names."""
    return (
        *conv_norm_keys(f"{theirs}.convs.0", f"{ours}.hidden"),
        (f"{theirs}.conv_seg", f"{ours}.classifier"),
    )


AUXILIARY_KEYS: Keys = head_keys("auxiliary_head", "extra.auxiliary")


def small_normal(conv: nn.Conv2d) -> nn.Conv2d:
    """A classifier that starts with all classes nearly equal."""
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def xavier(conv: nn.Conv2d) -> nn.Conv2d:
    """A pyramid's convolution without a norm, as it starts."""
    nn.init.xavier_uniform_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def top_down(laterals: Sequence[Tensor], mode: str) -> list[Tensor]:
    """Each map plus the enlarged sum of all deeper ones, by `mode` "nearest" or "bilinear"."""
    # By size, not by factor: odd maps do not double exactly.
    summed = [laterals[-1]]
    for lateral in laterals[-2::-1]:
        summed.append(lateral + F.interpolate(summed[-1], lateral.shape[-2:], mode=mode))
    return summed[::-1]


class Laterals(nn.Module):
    """A feature pyramid without its output layers: maps of the `inputs` channels -> of `width`."""

    def __init__(self, inputs: Sequence[int], width: int):
        super().__init__()
        self.convs = nn.ModuleList(xavier(nn.Conv2d(channels, width, 1)) for channels in inputs)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        laterals = [conv(x) for conv, x in zip(self.convs, features, strict=True)]
        return top_down(laterals, "nearest")


class SemanticFPN(nn.Module):
    """Feature pyramid whose levels are brought to stride 4 step by step and summed.

    Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019. Maps at strides 4, 8, 16, 32 of
    the `inputs` channels -> (N, classes, H/4, W/4).
    """

    def __init__(self, inputs: Sequence[int], num_classes: int, width: int = 256, out: int = 128):
        super().__init__()
        self.laterals = Laterals(inputs, width)
        self.outputs = nn.ModuleList(xavier(nn.Conv2d(width, width, 3, padding=1)) for _ in inputs)
        self.scales = nn.ModuleList(
            nn.Sequential(*(ConvNorm(out if i else width, out) for i in range(max(1, level))))
            for level in range(len(inputs))
        )
        he_normal(self)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = small_normal(nn.Conv2d(out, num_classes, kernel_size=1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        total: Tensor | None = None
        pyramid = self.laterals(features)
        for level, (x, output, scale) in enumerate(
            zip(pyramid, self.outputs, self.scales, strict=True)
        ):
            x = output(x)
            assert isinstance(scale, nn.Sequential)
            for i, conv in enumerate(scale):
                x = conv(x)
                if level:  # doubled after each convolution: a level at stride 32 takes three steps
                    x = resize(x, like=pyramid[level - 1 - i])
            total = x if total is None else total + x
        assert total is not None
        return self.classifier(self.dropout(total))


FPN_KEYS: Keys = (
    ("neck.lateral_convs.{i}.conv", "head.laterals.convs.{i}"),
    ("neck.fpn_convs.{i}.conv", "head.outputs.{i}"),
    # A scale head is a sequence of convolutions and enlargements in turns.
    *conv_norm_keys("decode_head.scale_heads.{i}.0", "head.scales.{i}.0"),
    *conv_norm_keys("decode_head.scale_heads.{i}.2", "head.scales.{i}.1"),
    *conv_norm_keys("decode_head.scale_heads.{i}.4", "head.scales.{i}.2"),
    ("decode_head.conv_seg", "head.classifier"),
)


class UPerHead(nn.Module):
    """Pyramid pooling on the deepest map, a feature pyramid, and all levels together at stride 4.

    Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018. Maps at strides 4,
    8, 16, 32 of the `inputs` channels -> (N, classes, H/4, W/4).
    """

    def __init__(self, inputs: Sequence[int], num_classes: int, width: int = 512):
        super().__init__()
        *shallow, deepest = inputs
        self.levels = nn.ModuleList(ConvNorm(deepest, width, kernel=1) for _ in BINS)
        self.pooling = Constant(partial(pooling_matrix, BINS))
        self.bottleneck = ConvNorm(deepest + len(BINS) * width, width)
        self.laterals = nn.ModuleList(ConvNorm(channels, width, kernel=1) for channels in shallow)
        self.outputs = nn.ModuleList(ConvNorm(width, width) for _ in shallow)
        self.fuse = ConvNorm(len(inputs) * width, width)
        he_normal(self)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = small_normal(nn.Conv2d(width, num_classes, kernel_size=1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *shallow, deepest = features
        laterals = [lateral(x) for lateral, x in zip(self.laterals, shallow, strict=True)]
        pyramid = top_down([*laterals, self.bottleneck(self.pool(deepest))], "bilinear")
        levels = [output(x) for output, x in zip(self.outputs, pyramid[:-1], strict=True)]
        finest, *others = [*levels, pyramid[-1]]
        fused = self.fuse(torch.cat([finest, *(resize(x, like=finest) for x in others)], dim=1))
        return self.classifier(self.dropout(fused))

    def pool(self, x: Tensor) -> Tensor:
        """The map and its averages over grids of cells, each narrowed, all at the map's size."""
        pooled = x.flatten(2) @ self.pooling(*x.shape[-2:], like=x)
        cells = pooled.split([rows * columns for rows, columns in BINS], dim=2)
        small = [
            level(cell.unflatten(2, bins))
            for level, cell, bins in zip(self.levels, cells, BINS, strict=True)
        ]
        return torch.cat([x, *(resize(y, like=x) for y in small)], dim=1)


UPER_KEYS: Keys = (
    *conv_norm_keys("decode_head.psp_modules.{i}.1", "head.levels.{i}"),
    *conv_norm_keys("decode_head.bottleneck", "head.bottleneck"),
    *conv_norm_keys("decode_head.lateral_convs.{i}", "head.laterals.{i}"),
    *conv_norm_keys("decode_head.fpn_convs.{i}", "head.outputs.{i}"),
    *conv_norm_keys("decode_head.fpn_bottleneck", "head.fuse"),
    ("decode_head.conv_seg", "head.classifier"),
)
