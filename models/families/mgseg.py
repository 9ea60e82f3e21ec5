"""MGSeg: features of several granularities, weighted per class.

He et al.: "MGSeg: Multiple Granularity-Based Real-Time Semantic Segmentation Network", IEEE
Transactions on Image Processing 30, 2021. Reference implementation: the model zoo of
github.com/kaigelee/CSFCN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..backbones.resnet import resnet18, stage_keys
from ..layers import BilinearUpsample, ConvNorm, TrainingOnly, he_normal, resize
from ..network import Network
from ..variant import Row, Variant, conv_norm_keys


def _conv(inputs: int, outputs: int, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with neither norm nor activation."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, groups=groups, bias=False)


class Weighted(nn.Module):
    """A reduced map plus itself, each channel weighted by the map's mean.

    (N, inputs, h, w) -> (N, width, h, w)
    """

    def __init__(self, inputs: int, width: int, kernel: int, hidden: int | None = None):
        super().__init__()
        self.reduce = ConvNorm(inputs, width, kernel)
        self.weigh = nn.Sequential(nn.Linear(width, hidden or width, bias=False))
        if hidden:
            self.weigh.extend([nn.ReLU(inplace=True), nn.Linear(hidden, width, bias=False)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        weights = torch.sigmoid(self.weigh(x.mean((2, 3))))
        return x + x * weights[..., None, None]


class HAFA(nn.Module):
    """HAFA: maps at strides 8, 16 and 32 -> `Granularities`."""

    def __init__(self, inputs: tuple[int, int, int], num_classes: int, width: int, narrow: int):
        super().__init__()
        shallow, middle, deep = inputs
        self.weighted32 = Weighted(deep, width, kernel=3)
        self.weighted16 = Weighted(middle, width, kernel=3)
        self.weighted8 = Weighted(shallow + width, width, kernel=1, hidden=width // 2)
        self.smooth = nn.ModuleList(_conv(width, width) for _ in inputs)
        self.reduce = nn.ModuleList(_conv(width, narrow) for _ in inputs)
        self.merge = nn.ModuleList(_conv(narrow, narrow) for _ in inputs)
        self.predictor = _conv(narrow, num_classes)

    def forward(self, shallow: Tensor, middle: Tensor, deep: Tensor) -> list[Tensor]:
        """The weighted maps (N, width, h, w) at strides 16, 16 and 8, and logits at stride 8."""
        third = resize(self.weighted32(deep), like=middle, align_corners=True)
        x3 = self.smooth[2](third)
        second = self.weighted16(middle)
        x2 = self.smooth[1](resize(x3 + second, like=shallow, align_corners=True))
        first = self.weighted8(torch.cat([shallow, x2], dim=1))
        x1 = self.smooth[0](first + x2)
        x1, x2, x3 = (reduce(x) for reduce, x in zip(self.reduce, (x1, x2, x3), strict=True))
        x1 = self.merge[0](x1)
        x2 = self.merge[1](x1 + x2)
        x3 = self.merge[2](resize(x2, like=x3, align_corners=True) + x3)
        x3 = resize(x3, like=x2, align_corners=True)
        return [third, second, first, self.predictor(x3 + x2 + x1)]


class FGR(nn.Module):
    """FGR: one map of each granularity, and the logits, added with weights for each class.

    maps as HAFA gives them, deep (N, 512, H/32, W/32) -> logits (N, classes, H/8, W/8)
    """

    def __init__(self, inputs: int, num_classes: int, width: int):
        super().__init__()
        self.hidden = _conv(inputs, width)
        # Eight maps a class, that the grouped convolution below makes four weights of.
        self.expand = nn.Conv2d(width, 8 * num_classes, 1, bias=False)
        self.weights = _conv(8 * num_classes, 4 * num_classes, groups=num_classes)
        self.maps = nn.ModuleList(_conv(width, 1) for _ in range(3))
        self.twice = BilinearUpsample(2, align_corners=True)

    def forward(self, maps: list[Tensor], deep: Tensor) -> Tensor:
        *granular, logits = maps
        weights = self.twice(self.weights(self.twice(self.expand(self.hidden(deep)))))
        # Four weights a class: one for each granular map, and one for the logits.
        columns = weights.unflatten(1, (logits.shape[1], 4)).split(1, dim=2)
        total = columns[3].squeeze(2) * logits
        for column, conv, x in zip(columns[:3], self.maps, granular, strict=True):
            enlarged = resize(x, like=logits, align_corners=True)
            total = total + column.squeeze(2) * conv(enlarged)
        return total


class MGSeg(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W); auxiliary: the logits before their
    refinement, and some from the stride-16 map."""

    WIDTH, NARROW = 128, 32

    def __init__(self, num_classes: int):
        super().__init__()
        self.backbone = resnet18("bare")
        _, shallow, middle, deep = self.backbone.outputs
        inputs = (shallow, middle, deep)
        self.aggregation = HAFA(inputs, num_classes, self.WIDTH, self.NARROW)
        self.refinement = FGR(deep, num_classes, self.WIDTH)
        self.extra = TrainingOnly(
            {
                "aux16": nn.Sequential(
                    ConvNorm(middle, 64), nn.Conv2d(64, 16**2 * num_classes, 1), nn.PixelShuffle(16)
                )
            }
        )
        self.upsample_logits = BilinearUpsample(8, align_corners=True)
        for module in (*self.aggregation.modules(), *self.refinement.modules()):
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=1)
        he_normal(self.backbone)

    def forward_logits(self, image: Tensor) -> Tensor:
        _, shallow, middle, deep = self.backbone(image)
        return self.refinement(self.aggregation(shallow, middle, deep), deep)

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        _, shallow, middle, deep = self.backbone(image)
        maps = self.aggregation(shallow, middle, deep)
        extra = {"unrefined": self.upsample_logits(maps[-1]), "aux16": self.extra["aux16"](middle)}
        return self.refinement(maps, deep), extra


def _weighted_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *conv_norm_keys(f"hafa.{theirs}.reduce.conv", f"aggregation.{ours}.reduce", ("0", "1")),
        (f"hafa.{theirs}.fc.{{i}}", f"aggregation.{ours}.weigh.{{i}}"),
    )


def _level_keys(level: int, i: int) -> tuple[Row, ...]:
    return (
        (f"hafa.q{level + 2}_conv", f"aggregation.smooth.{i}"),
        (f"hafa.p{level}_conv", f"aggregation.reduce.{i}"),
        (f"hafa.p{level}_1_conv", f"aggregation.merge.{i}"),
    )


KEYS = (
    ("resnet.stem", "backbone.stem.0"),
    *stage_keys("resnet."),
    *_weighted_keys("q5_slwa", "weighted32"),
    *_weighted_keys("q4_slwa", "weighted16"),
    *_weighted_keys("q3_lwa", "weighted8"),
    *_level_keys(1, 0),
    *_level_keys(2, 1),
    *_level_keys(3, 2),
    ("hafa.predictor", "aggregation.predictor"),
    ("fgr.gwl.conv_1.0", "refinement.hidden"),
    ("fgr.gwl.conv_1.1", "refinement.expand"),
    ("fgr.gwl.GC_conv", "refinement.weights"),
    ("fgr.conv_1", "refinement.maps.0"),
    ("fgr.conv_2", "refinement.maps.1"),
    ("fgr.conv_3", "refinement.maps.2"),
    *conv_norm_keys("conv_out16.conv.conv", "extra.aux16.0", ("0", "1")),
    ("conv_out16.conv_out", "extra.aux16.1"),
)
VARIANTS = {
    "mgseg": Variant(
        MGSeg,
        KEYS,
        size=(1024, 2048),
        paper="He et al., TIP 2021",
        reference="github.com/kaigelee/CSFCN",
        license="MIT",
        multiple=32,
        align_corners=True,
    )
}
