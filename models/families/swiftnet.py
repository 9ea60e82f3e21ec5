"""SwiftNet: a light decoder on a ResNet-18, for one image scale or three.

Orsic, Kreso, Bevandic, Segvic: "In Defense of Pre-trained ImageNet Architectures for Real-time
Semantic Segmentation of Road-driving Images", CVPR 2019. Reference implementation:
github.com/orsic/swiftnet.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import WIDTHS, resnet18, stage_keys
from ..fuse import deploy
from ..layers import (
    BilinearUpsample,
    Constant,
    ConvNorm,
    NormConv,
    he_normal,
    pooling_matrix,
    relative_bins,
    resize,
)
from ..network import Network
from ..variant import CITYSCAPES_TEST, Row, Score, Variant, conv_norm_keys

WIDTH = 128
SPP_ROWS = (8, 4, 2)
LEVELS = 3  # of the image pyramid
BLENDS = 5


def spp_pooling(height: int, width: int) -> Tensor:
    """Average pooling of a height x width map to 8, 4 and 2 rows of about square cells."""
    return pooling_matrix(relative_bins(SPP_ROWS, height, width), height, width)


class SpatialPyramid(nn.Module):
    """SPP: the map beside averages of itself at three scales, (N, 512, h, w) -> (N, 128, h, w)."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        level_width = width // len(SPP_ROWS)
        self.reduce = NormConv(inputs, width)
        self.levels = nn.ModuleList(NormConv(width, level_width) for _ in SPP_ROWS)
        self.fuse = NormConv(width + len(SPP_ROWS) * level_width, width)
        self.pooling = Constant(spp_pooling)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.005  # as in the reference

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        height, width = x.shape[-2:]
        bins = relative_bins(SPP_ROWS, height, width)
        cells = x.flatten(2) @ self.pooling(height, width, like=x)
        parts = cells.split([rows * columns for rows, columns in bins], dim=2)
        pooled = [
            resize(level(part.unflatten(2, shape)), like=x)
            for level, part, shape in zip(self.levels, parts, bins, strict=True)
        ]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class UpsampleBlend(nn.Module):
    """deep (N, width, h, w), skip (N, inputs, 2h, 2w) -> (N, width, 2h, 2w)"""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.lateral = NormConv(inputs, width)
        self.blend = NormConv(width, width, kernel=3)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        skip = self.lateral(skip)
        return self.blend(resize(deep, like=skip) + skip)


class SwiftNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W), of one image scale."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.backbone = resnet18()
        *skips, deep = self.backbone.outputs
        self.spp = SpatialPyramid(deep, WIDTH)
        self.upsample = nn.ModuleList(UpsampleBlend(inputs, WIDTH) for inputs in reversed(skips))
        self.classifier = NormConv(WIDTH, num_classes, bias=True)
        self.upsample_logits = BilinearUpsample(4, align_corners=False)
        he_normal(self)
        # Back to PyTorch's own: he_normal is for what a norm and a ReLU follow.
        self.classifier.conv.reset_parameters()

    def forward_logits(self, image: Tensor) -> Tensor:
        *skips, deep = self.backbone(image)
        x = self.spp(deep)
        for upsample, skip in zip(self.upsample, reversed(skips), strict=True):
            x = upsample(x, skip)
        return self.classifier(x)


class LevelNorm(nn.ModuleList):
    """A batch norm for each level of the image pyramid; `level` says which is in use.

    (N, C, h, w) -> the same
    """

    level = 0

    def __init__(self, channels: int):
        super().__init__(nn.BatchNorm2d(channels) for _ in range(LEVELS))

    def forward(self, x: Tensor) -> Tensor:
        return self[self.level](x)


class SharedResNet(nn.Module):
    """A ResNet whose convolutions serve all levels; of norms, but for shortcuts', each has its own.

    (image (N, 3, H, W), level) -> the four stage outputs before their last ReLU.
    """

    def __init__(self) -> None:
        super().__init__()
        # Skips without their last ReLU: the lateral convolutions read both signs.
        self.body = resnet18(skip_act=False)
        for name, module in self.body.named_modules():
            if isinstance(module, ConvNorm) and not name.endswith("shortcut"):
                module.norm = LevelNorm(module.conv.out_channels)

    def forward(self, image: Tensor, level: int) -> list[Tensor]:
        for module in self.body.modules():
            if isinstance(module, LevelNorm):
                module.level = level
        features: list[Tensor] = self.body(image)
        return features

    def to_deployed(self) -> UnsharedResNet:
        return UnsharedResNet(self)


class UnsharedResNet(nn.Module):
    """A ResNet for each level, so that its norms can go into its convolutions."""

    def __init__(self, shared: SharedResNet):
        super().__init__()
        self.levels = nn.ModuleList()
        for level in range(LEVELS):
            body = copy.deepcopy(shared.body)
            for module in body.modules():
                if isinstance(module, ConvNorm) and isinstance(module.norm, LevelNorm):
                    module.norm = module.norm[level]
            self.levels.append(deploy(body))

    def forward(self, image: Tensor, level: int) -> list[Tensor]:
        features: list[Tensor] = self.levels[level](image)
        return features


class Shrink(nn.Module):
    """Bicubic reduction to a half or a quarter, corners not aligned, no smoothing:
    (N, C, H, W) -> (N, C, H / factor, W / factor)."""

    # Every sample lies half way between two pixels, so that four fixed taps a side do it: a
    # convolution, which all runtimes compute alike, unlike bicubic resizes.
    TAPS = (-0.09375, 0.59375, 0.59375, -0.09375)  # at 1/2 of the cubic with coefficient -0.75

    def __init__(self, factor: int):
        super().__init__()
        self.factor = factor
        # Four taps about the middle of a cell of two reach one pixel beyond it; of four, none.
        self.padding = {2: 1, 4: 0}[factor]
        self.kernel = Constant(self._kernel)

    def _kernel(self, channels: int) -> Tensor:
        taps = torch.tensor(self.TAPS)
        return torch.outer(taps, taps).expand(channels, 1, 4, 4).contiguous()

    def forward(self, image: Tensor) -> Tensor:
        channels = image.shape[1]
        padded = F.pad(image, [self.padding] * 4, mode="replicate") if self.padding else image
        kernel = self.kernel(channels, like=image)
        return F.conv2d(padded, kernel, stride=self.factor, groups=channels)


class SwiftNetPyramid(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W).

    The backbone reads the image at three scales; maps of equal size are added, whatever scale and
    stage they are of, and blended from the deepest up.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.backbone = SharedResNet()
        self.shrink = nn.ModuleList([nn.Identity(), Shrink(2), Shrink(4)])
        self.laterals = nn.ModuleList(nn.Conv2d(w, WIDTH, 1, bias=False) for w in reversed(WIDTHS))
        self.blends = nn.ModuleList(NormConv(WIDTH, WIDTH, kernel=3) for _ in range(BLENDS))
        self.classifier = NormConv(WIDTH, num_classes, bias=True)
        self.upsample_logits = BilinearUpsample(4, align_corners=False)
        he_normal(self)
        for weight in self.laterals.parameters():
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        # Back to PyTorch's own: he_normal is for what a norm and a ReLU follow.
        self.classifier.conv.reset_parameters()

    def forward_logits(self, image: Tensor) -> Tensor:
        sums: dict[int, Tensor] = {}  # by halvings since stride 4
        for level, shrink in enumerate(self.shrink):
            features = self.backbone(shrink(image), level)
            for stage, (lateral, x) in enumerate(
                zip(reversed(self.laterals), features, strict=True)
            ):
                place = level + stage
                reduced = lateral(x)
                sums[place] = sums[place] + reduced if place in sums else reduced
        x = sums[BLENDS]
        for place, blend in zip(reversed(range(BLENDS)), self.blends, strict=True):
            x = blend(resize(x, like=sums[place]) + sums[place])
        return self.classifier(x)


def _norm_conv(theirs: str, ours: str) -> tuple[Row, ...]:
    return conv_norm_keys(theirs, ours, ("conv", "norm"))


_COMMON = (
    *_norm_conv("logits", "classifier"),
    ("backbone.img_mean", None),  # the normalization, which NetworkInfo holds
    ("backbone.img_std", None),
)
KEYS = (
    *conv_norm_keys("backbone", "backbone.stem.0", ("conv1", "bn1")),
    *stage_keys("backbone."),
    *_norm_conv("backbone.spp.spp.spp_bn", "spp.reduce"),
    *_norm_conv("backbone.spp.spp.spp_fuse", "spp.fuse"),
    *_norm_conv("backbone.spp.spp.spp{i}", "spp.levels.{i}"),
    *_norm_conv("backbone.upsample.{i}.bottleneck", "upsample.{i}.lateral"),
    *_norm_conv("backbone.upsample.{i}.blend_conv", "upsample.{i}.blend"),
    *_COMMON,
)
PYRAMID_KEYS = (
    ("backbone.conv1", "backbone.body.stem.0.conv"),
    ("backbone.bn1.{level}", "backbone.body.stem.0.norm.{level}"),
    (
        "backbone.layer{stage}.{block}.bn{i}.{level}",
        "backbone.body.layer{stage}.{block}.conv{i}.norm.{level}",
    ),
    *stage_keys("backbone.", "backbone.body."),
    ("backbone.upsample_bottlenecks.{i}", "laterals.{i}"),
    *_norm_conv("backbone.upsample_blends.{i}.blend_conv", "blends.{i}"),
    *_COMMON,
)


_variant = partial(
    Variant,
    size=(1024, 2048),
    paper="Orsic et al., CVPR 2019",
    reference="github.com/orsic/swiftnet",
    mean=(73.15 / 255, 82.90 / 255, 72.3 / 255),
    std=(47.67 / 255, 48.49 / 255, 47.73 / 255),
    multiple=4,
)
VARIANTS = {
    "swiftnet_r18": _variant(SwiftNet, KEYS, scores=(Score(CITYSCAPES_TEST, 75.5),)),
    "swiftnet_r18_pyramid": _variant(SwiftNetPyramid, PYRAMID_KEYS),
}
