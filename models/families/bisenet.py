"""BiSeNet, first and second version: a wide shallow branch for detail, a deep one for context.

Yu et al., ECCV 2018 and IJCV 2021. Reference implementation: github.com/CoinCheung/BiSeNet.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import resnet18, stage_keys
from ..layers import (
    BilinearUpsample,
    ConvNorm,
    Head,
    TrainingOnly,
    global_mean,
    he_normal,
    repeat,
    set_norm_scale,
)
from ..network import Network
from ..variant import CITYSCAPES, REPOSITORY, Row, Score, Variant, conv_norm_keys


class Gate(nn.Module):
    """How much of each channel to keep, from the map's mean: (N, C, h, w) -> (N, C, 1, 1), 0..1."""

    def __init__(self, channels: int):
        super().__init__()
        self.unit = ConvNorm(channels, channels, kernel=1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.unit(global_mean(x)))


class ARM(nn.Module):
    """ARM: (N, inputs, h, w) -> (N, width, h, w)"""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.conv = ConvNorm(inputs, width)
        self.gate = Gate(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x * self.gate(x)


class FFM(nn.Module):
    """FFM: detail and context, both (N, C, h, w) -> (N, 2C, h, w)"""

    def __init__(self, width: int):
        super().__init__()
        self.conv = ConvNorm(width, width, kernel=1)
        self.gate = Gate(width)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        x = self.conv(torch.cat([detail, context], dim=1))
        return x + x * self.gate(x)


class BiSeNetV1(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W); auxiliary logits from the context path."""

    def __init__(self, num_classes: int, width: int = 128):
        super().__init__()
        self.backbone = resnet18()
        _, _, middle, deep = self.backbone.outputs
        self.mean = ConvNorm(deep, width, kernel=1)
        self.refine32 = ARM(deep, width)
        self.refine16 = ARM(middle, width)
        self.smooth32 = ConvNorm(width, width)
        self.smooth16 = ConvNorm(width, width)
        self.detail = nn.Sequential(
            ConvNorm(3, 64, kernel=7, stride=2),
            ConvNorm(64, 64, stride=2),
            ConvNorm(64, 64, stride=2),
            ConvNorm(64, width, kernel=1),
        )
        self.fusion = FFM(2 * width)
        self.head = Head(2 * width, 2 * width, num_classes)
        self.upsample_logits = BilinearUpsample(8, align_corners=False)
        self.extra = TrainingOnly(
            {f"aux{stride}": Head(width, 64, num_classes) for stride in (16, 32)}
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # a=1: the reference initializes for a linear layer, though ReLUs follow.
                nn.init.kaiming_normal_(module.weight, a=1)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.head(self.fusion(self.detail(image), self.context(image)[0]))

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        context, middle = self.context(image)
        extra = {
            "aux16": self.upsample_logits(self.extra["aux16"](context)),
            "aux32": _upsample(self.extra["aux32"](middle), 16),
        }
        return self.head(self.fusion(self.detail(image), context)), extra

    def context(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image -> maps (N, width, h, w) at strides 8 and 16."""
        _, shallow, middle, deep = self.backbone(image)
        # The mean has one pixel: added as it is, it is what the reference's resize would give.
        x = self.refine32(deep) + self.mean(global_mean(deep))
        half = self.smooth32(repeat(x, like=middle))
        x = self.refine16(middle) + half
        return self.smooth16(repeat(x, like=shallow)), half


def _upsample(logits: Tensor, factor: int) -> Tensor:
    return BilinearUpsample(factor, align_corners=False)(logits)


class SemanticStem(nn.Module):
    """(N, 3, H, W) -> (N, 16, H/4, W/4)"""

    def __init__(self, width: int = 16):
        super().__init__()
        self.conv = ConvNorm(3, width, stride=2)
        self.left = nn.Sequential(
            ConvNorm(width, width // 2, kernel=1), ConvNorm(width // 2, width, stride=2)
        )
        self.right = nn.MaxPool2d(3, stride=2, padding=1)
        self.fuse = ConvNorm(2 * width, width)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv(image)
        return self.fuse(torch.cat([self.left(x), self.right(x)], dim=1))


class GatherExpand(nn.Module):
    """GE: a 3x3 convolution, a depthwise one on six times the channels, and back, beside the input.

    (N, C, h, w) -> the same
    """

    EXPANSION = 6

    def __init__(self, width: int):
        super().__init__()
        wide = self.EXPANSION * width
        self.gather = ConvNorm(width, width)
        self.expand = ConvNorm(width, wide, groups=width)
        self.project = ConvNorm(wide, width, kernel=1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.project(self.expand(self.gather(x))) + x)


class GatherExpandDown(nn.Module):
    """GE at stride 2: (N, inputs, h, w) -> (N, outputs, h/2, w/2)"""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        wide = GatherExpand.EXPANSION * inputs
        self.gather = ConvNorm(inputs, inputs)
        self.expand = ConvNorm(inputs, wide, stride=2, groups=inputs, act=False)
        self.deepen = ConvNorm(wide, wide, groups=wide)
        self.project = ConvNorm(wide, outputs, kernel=1, act=False)
        self.shortcut = nn.Sequential(
            ConvNorm(inputs, inputs, stride=2, groups=inputs, act=False),
            ConvNorm(inputs, outputs, kernel=1, act=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        main = self.project(self.deepen(self.expand(self.gather(x))))
        return F.relu(main + self.shortcut(x))


class ContextEmbedding(nn.Module):
    """CE: the map and its mean, (N, C, h, w) -> the same"""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.mean = ConvNorm(width, width, kernel=1)
        self.last = ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.mean(self.norm(global_mean(x))) + x)


class BGA(nn.Module):
    """BGA: each branch is gated by the other, at strides 8 and 32.

    detail (N, C, H/8, W/8), semantic (N, C, H/32, W/32) -> (N, C, H/8, W/8)
    """

    def __init__(self, width: int):
        super().__init__()
        self.detail = self._separable(width)
        self.detail_down = ConvNorm(width, width, stride=2, act=False)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.semantic_up = ConvNorm(width, width, act=False)
        self.semantic = self._separable(width)
        self.last = ConvNorm(width, width)

    def _separable(self, width: int) -> nn.Sequential:
        depthwise = ConvNorm(width, width, groups=width, act=False)
        return nn.Sequential(depthwise, nn.Conv2d(width, width, 1, bias=False))

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        # The sigmoid commutes with a nearest resize, and has a sixteenth of the positions before
        # it.
        fine_gate = torch.sigmoid(self.semantic_up(semantic))
        fine = self.detail(detail) * repeat(fine_gate, like=detail)
        coarse = self.pool(self.detail_down(detail)) * torch.sigmoid(self.semantic(semantic))
        return self.last(fine + repeat(coarse, like=detail))


class BoosterHead(nn.Module):
    """Auxiliary logits: (N, inputs, H/factor, W/factor) -> (N, classes, H, W)."""

    def __init__(self, inputs: int, num_classes: int, factor: int):
        super().__init__()
        self.first = ConvNorm(inputs, 128)
        self.dropout = nn.Dropout(0.1)
        self.second = ConvNorm(128, factor**2)
        self.classifier = nn.Conv2d(factor**2, num_classes, 1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        # In two steps, nearest then bilinear, and classified between: the reference's booster.
        x = F.interpolate(self.dropout(self.first(x)), scale_factor=2.0, mode="nearest")
        return _upsample(self.classifier(self.second(x)), self.factor // 2)


def _detail(inputs: int, width: int, depth: int) -> nn.Sequential:
    first = ConvNorm(inputs, width, stride=2)
    return nn.Sequential(first, *(ConvNorm(width, width) for _ in range(depth - 1)))


class BiSeNetV2(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W); auxiliary ones from the semantic branch."""

    def __init__(self, num_classes: int, width: int = 128):
        super().__init__()
        self.detail = nn.Sequential(
            _detail(3, 64, depth=2), _detail(64, 64, depth=3), _detail(64, width, depth=3)
        )
        self.semantic = nn.ModuleList(
            [
                SemanticStem(),
                nn.Sequential(GatherExpandDown(16, 32), GatherExpand(32)),
                nn.Sequential(GatherExpandDown(32, 64), GatherExpand(64)),
                nn.Sequential(
                    GatherExpandDown(64, width), *(GatherExpand(width) for _ in range(3))
                ),
            ]
        )
        self.context = ContextEmbedding(width)
        self.aggregation = BGA(width)
        self.head = Head(width, 1024, num_classes)
        self.head.dropout = nn.Dropout(0.1)  # of single values, as the reference, not channels
        self.upsample_logits = BilinearUpsample(8, align_corners=False)
        self.extra = TrainingOnly(
            {
                f"aux{stride}": BoosterHead(inputs, num_classes, stride)
                for stride, inputs in ((4, 16), (8, 32), (16, 64), (32, width))
            }
        )
        he_normal(self)
        for module in self.modules():  # residual branches begin silent
            if isinstance(module, (GatherExpand, GatherExpandDown)):
                set_norm_scale(module.project, 0)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.decode(image, self.stages(image)[-1])

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps = self.stages(image)
        extra = {name: head(x) for (name, head), x in zip(self.extra.items(), maps, strict=True)}
        return self.decode(image, maps[-1]), extra

    def stages(self, image: Tensor) -> list[Tensor]:
        """The semantic branch's maps at strides 4, 8, 16 and 32."""
        maps, x = [], image
        for stage in self.semantic:
            x = stage(x)
            maps.append(x)
        return maps

    def decode(self, image: Tensor, deep: Tensor) -> Tensor:
        return self.head(self.aggregation(self.detail(image), self.context(deep)))


def _head_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *conv_norm_keys(f"{theirs}.conv", f"{ours}.hidden"),
        (f"{theirs}.conv_out", f"{ours}.classifier"),
    )


V1_KEYS = (
    *conv_norm_keys("cp.resnet", "backbone.stem.0", ("conv1", "bn1")),
    *stage_keys("cp.resnet."),
    *conv_norm_keys("cp.conv_avg", "mean"),
    *conv_norm_keys("cp.arm{stride}.conv", "refine{stride}.conv"),
    *conv_norm_keys("cp.arm{stride}", "refine{stride}.gate.unit", ("conv_atten", "bn_atten")),
    *conv_norm_keys("cp.conv_head{stride}", "smooth{stride}"),
    *conv_norm_keys("sp.conv1", "detail.0"),
    *conv_norm_keys("sp.conv2", "detail.1"),
    *conv_norm_keys("sp.conv3", "detail.2"),
    *conv_norm_keys("sp.conv_out", "detail.3"),
    *conv_norm_keys("ffm.convblk", "fusion.conv"),
    *conv_norm_keys("ffm", "fusion.gate.unit"),
    *_head_keys("conv_out", "head"),
    *_head_keys("conv_out{stride}", "extra.aux{stride}"),
)
_SEQUENCE = ("0", "1")
V2_KEYS = (
    *conv_norm_keys("detail.S1.{j}", "detail.0.{j}"),
    *conv_norm_keys("detail.S2.{j}", "detail.1.{j}"),
    *conv_norm_keys("detail.S3.{j}", "detail.2.{j}"),
    *conv_norm_keys("segment.S1S2.left.{j}", "semantic.0.left.{j}"),
    *conv_norm_keys("segment.S1S2.{part}", "semantic.0.{part}"),
    *(
        row
        for i, stage in enumerate(("S3", "S4", "S5_4"), start=1)
        for theirs, ours in ((f"segment.{stage}.{{j}}", f"semantic.{i}.{{j}}"),)
        for row in (
            *conv_norm_keys(f"{theirs}.conv1", f"{ours}.gather"),
            *conv_norm_keys(f"segment.{stage}.0.dwconv1", f"semantic.{i}.0.expand", _SEQUENCE),
            *conv_norm_keys(f"{theirs}.dwconv", f"{ours}.expand", _SEQUENCE),
            *conv_norm_keys(f"{theirs}.dwconv2", f"{ours}.deepen", _SEQUENCE),
            *conv_norm_keys(f"{theirs}.conv2", f"{ours}.project", _SEQUENCE),
            *conv_norm_keys(f"{theirs}.shortcut", f"{ours}.shortcut.0", _SEQUENCE),
            *conv_norm_keys(f"{theirs}.shortcut", f"{ours}.shortcut.1", ("2", "3")),
        )
    ),
    ("segment.S5_5.bn", "context.norm"),
    *conv_norm_keys("segment.S5_5.conv_gap", "context.mean"),
    *conv_norm_keys("segment.S5_5.conv_last", "context.last"),
    *conv_norm_keys("bga.left1", "aggregation.detail.0", _SEQUENCE),
    ("bga.left1.2", "aggregation.detail.1"),
    *conv_norm_keys("bga.left2", "aggregation.detail_down", _SEQUENCE),
    *conv_norm_keys("bga.right1", "aggregation.semantic_up", _SEQUENCE),
    *conv_norm_keys("bga.right2", "aggregation.semantic.0", _SEQUENCE),
    ("bga.right2.2", "aggregation.semantic.1"),
    *conv_norm_keys("bga.conv", "aggregation.last", _SEQUENCE),
    *conv_norm_keys("head.conv", "head.hidden"),
    ("head.conv_out.1", "head.classifier"),
    *(
        row
        for official, stride in (("aux2", 4), ("aux3", 8), ("aux4", 16), ("aux5_4", 32))
        for row in (
            *conv_norm_keys(f"{official}.conv", f"extra.aux{stride}.first"),
            *conv_norm_keys(f"{official}.conv_out.0.1", f"extra.aux{stride}.second"),
            (f"{official}.conv_out.1", f"extra.aux{stride}.classifier"),
        )
    ),
)

_variant = partial(
    Variant,
    size=(1024, 2048),
    reference="github.com/CoinCheung/BiSeNet",
    license="MIT",
    # Not ImageNet's: the reference normalizes by Cityscapes' own statistics.
    mean=(0.3257, 0.3690, 0.3223),
    std=(0.2112, 0.2148, 0.2115),
    multiple=32,
)
VARIANTS = {
    "bisenetv1": _variant(
        BiSeNetV1,
        V1_KEYS,
        paper="Yu et al., ECCV 2018",
        scores=(Score(CITYSCAPES, 75.44, source=REPOSITORY),),
    ),
    "bisenetv2": _variant(
        BiSeNetV2,
        V2_KEYS,
        paper="Yu et al., IJCV 2021",
        scores=(Score(CITYSCAPES, 74.95, source=REPOSITORY),),
    ),
}
