"""ICNet: an image cascade, in which the deep layers see a small image.

Zhao et al.: "ICNet for Real-Time Semantic Segmentation on High-Resolution Images", ECCV 2018.
Reference implementations: github.com/liminn/ICNet-pytorch and the model zoo of
github.com/kaigelee/CSFCN.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import deep_stem_keys, resnet50, stage_keys
from ..layers import (
    BINS,
    BilinearUpsample,
    Constant,
    ConvNorm,
    he_normal,
    keep_unused,
    pooling_matrix,
    resize,
    spreading_matrix,
)
from ..network import Network
from ..variant import CITYSCAPES, Row, Score, Variant, conv_norm_keys


class PyramidPooling(nn.Module):
    """The map plus its averages over grids of cells, enlarged: (N, C, h, w) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling = Constant(partial(pooling_matrix, BINS))
        self.spreading = Constant(partial(spreading_matrix, BINS))

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        cells = x.flatten(2) @ self.pooling(*size, like=x)
        return x + (cells @ self.spreading(*size, like=x)).unflatten(2, size)


class CFF(nn.Module):
    """CFF: low (N, low, h, w), high (N, high, 2h, 2w) -> (N, width, 2h, 2w) and, for `classifier`,
    the low map's own part of it."""

    def __init__(self, low: int, high: int, num_classes: int, width: int = 128):
        super().__init__()
        self.low = ConvNorm(low, width, dilation=2, act=False)
        self.high = ConvNorm(high, width, kernel=1, act=False)
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        low = self.low(resize(low, like=high, align_corners=True))
        return F.relu(low + self.high(high)), low


class ICNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H, W).

    A few convolutions read the image, half of the backbone reads it at half size, all of it at a
    quarter. In train mode also the logits at stride 4, and those of the fusions at 8 and 16.
    """

    def __init__(self, num_classes: int, depth: int = 50, width: int = 128):
        super().__init__()
        self.backbone = resnet50(
            64, depth, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True
        )
        _, middle, _, deep = self.backbone.outputs
        self.detail = nn.Sequential(
            ConvNorm(3, 32, stride=2), ConvNorm(32, 32, stride=2), ConvNorm(32, 64, stride=2)
        )
        self.pooling = PyramidPooling()
        self.fusion16 = CFF(deep, middle, num_classes, width)
        self.fusion8 = CFF(width, 64, num_classes, width)
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=False)
        # The classifier comes before the first enlargement, not after it: the two commute.
        self.upsample_logits = nn.Sequential(
            BilinearUpsample(2, align_corners=True), BilinearUpsample(4, align_corners=True)
        )
        # ImageNet's classifier, which the reference's checkpoints bring along.
        self.unused = keep_unused(classifier=nn.Linear(deep, 1000))
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.classifier(self.cascade(image)[0])

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        fused, low8, low16 = self.cascade(image)
        logits = self.classifier(fused)
        return logits, {
            "stride4": BilinearUpsample(2, align_corners=True)(logits),
            "stride8": self.fusion8.classifier(low8),
            "stride16": self.fusion16.classifier(low16),
        }

    def cascade(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(fused map at stride 8, the low maps' parts at strides 8 and 16)."""
        deep = self.pooling(self.backbone(_shrink(image, 4))[-1])
        middle = self.backbone(_shrink(image, 2), stages=2)[-1]
        fused, low16 = self.fusion16(deep, middle)
        fused, low8 = self.fusion8(fused, self.detail(image))
        return fused, low8, low16


def _shrink(image: Tensor, factor: int) -> Tensor:
    size = [side // factor for side in image.shape[-2:]]
    return F.interpolate(image, size, mode="bilinear", align_corners=True)


def _fusion_keys(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        *conv_norm_keys(f"head.{theirs}.conv_low", f"{ours}.low", ("0", "1")),
        *conv_norm_keys(f"head.{theirs}.conv_high", f"{ours}.high", ("0", "1")),
        (f"head.{theirs}.conv_low_cls", f"{ours}.classifier"),
    )


KEYS = (
    *deep_stem_keys("pretrained.conv1", "pretrained.bn1"),
    *stage_keys("pretrained."),
    ("pretrained.fc", "unused.classifier"),
    *conv_norm_keys("conv_sub1.{i}", "detail.{i}"),
    *_fusion_keys("cff_24", "fusion16"),
    *_fusion_keys("cff_12", "fusion8"),
    ("head.conv_cls", "classifier"),
)
VARIANTS = {
    "icnet": Variant(
        ICNet,
        KEYS,
        size=(1024, 2048),
        paper="Zhao et al., ECCV 2018",
        reference="github.com/liminn/ICNet-pytorch, github.com/kaigelee/CSFCN",
        license="MIT",
        scores=(Score(CITYSCAPES, 71.0),),
        align_corners=True,
    )
}
