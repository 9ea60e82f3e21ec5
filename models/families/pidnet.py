"""PIDNet: detail, context and boundary branches, after a PID controller.

Xu, Xiong, Bhattacharyya: "PIDNet: A Real-time Semantic Segmentation Network Inspired by PID
Controllers", CVPR 2023. Reference implementation: github.com/XuJiacong/PIDNet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import BasicBlock, block_keys, blocks
from ..layers import ConvNorm, NormConv, TrainingOnly, he_normal, resize, set_norm_scale
from ..network import Network
from ..variant import CAMVID, CITYSCAPES, CITYSCAPES_TEST, Score, Variant
from .dappm import (
    DAPPM,
    PAPPM,
    SHARED_KEYS,
    NormHead,
    ShortBottleneck,
    head_keys,
    norm_conv_keys,
    sequence_keys,
    two_convolutions,
)


class PagFM(nn.Module):
    """Pag: the detail map takes from the context map where the two agree.

    detail (N, C, h, w), context (N, C, h', w') -> (N, C, h, w)
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.detail = ConvNorm(channels, width, kernel=1, act=False)
        self.context = ConvNorm(channels, width, kernel=1, act=False)

    def init_untrained(self) -> None:
        """The gate of random weights, brought from the sum over channels to about their mean."""
        # The sum is so large that rounding, not the maps, would open and shut the gate.
        set_norm_scale(self.detail, 1 / self.detail.conv.out_channels)

    def forward(self, detail: Tensor, context: Tensor) -> Tensor:
        own = self.detail(detail)
        other = resize(self.context(context), like=detail)
        # Sums of large products: half precision would overflow.
        alike = torch.sigmoid((own.float() * other.float()).sum(1, keepdim=True)).to(own.dtype)
        return detail + alike * (resize(context, like=detail) - detail)


class LightBag(nn.Module):
    """Light-Bag: at boundaries the detail map counts, elsewhere the context.

    detail, context, boundary (N, C, h, w) -> the same
    """

    def __init__(self, channels: int):
        super().__init__()
        self.detail = ConvNorm(channels, channels, kernel=1, act=False)
        self.context = ConvNorm(channels, channels, kernel=1, act=False)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = torch.sigmoid(boundary)
        return self.detail(detail + (1 - edge) * context) + self.context(context + edge * detail)


class Bag(nn.Module):
    """Bag: as LightBag, mixed first and then smoothed.

    detail, context, boundary (N, C, h, w) -> the same
    """

    def __init__(self, channels: int):
        super().__init__()
        self.smooth = NormConv(channels, channels, kernel=3)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        return self.smooth(context + torch.sigmoid(boundary) * (detail - context))


class PIDNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H/8, W/8).

    In train mode also "detail", logits of the detail branch, and "boundary" (N, 1, H/8, W/8), the
    logit of lying at a boundary between classes. `large`: the chained pyramid, a wide boundary
    branch and the full fusion.
    """

    def __init__(
        self,
        num_classes: int,
        width: int,
        detail_depth: int,
        context_depth: int,
        pyramid_width: int,
        head_width: int,
        large: bool = False,
    ):
        super().__init__()
        c, p = width, 2 * width  # channels at stride 4; of the detail branch at stride 8
        basic = partial(blocks, BasicBlock)
        self.stem = two_convolutions(c)
        self.layer1 = basic(c, c, detail_depth)
        self.layer2 = basic(c, p, detail_depth, stride=2)
        self.layer3 = basic(p, 4 * c, context_depth, stride=2)
        self.layer4 = basic(4 * c, 8 * c, context_depth, stride=2)
        self.layer5 = nn.Sequential(
            ShortBottleneck(8 * c, 8 * c, stride=2, act=False),
            ShortBottleneck(16 * c, 8 * c, act=False),
        )
        self.detail3 = basic(p, p, detail_depth, last_act=False)
        self.detail4 = basic(p, p, detail_depth, last_act=False)
        self.detail5 = blocks(ShortBottleneck, p, p, depth=1, last_act=False)
        boundary = p if large else c
        self.boundary3 = BasicBlock(p, boundary, act=False)
        self.boundary4: nn.Module = (
            BasicBlock(p, p, act=False)
            if large
            else blocks(ShortBottleneck, c, c, 1, last_act=False)
        )
        self.boundary5 = blocks(ShortBottleneck, p, p, depth=1, last_act=False)
        self.compression3 = ConvNorm(4 * c, p, kernel=1, act=False)
        self.compression4 = ConvNorm(8 * c, p, kernel=1, act=False)
        self.pag3, self.pag4 = PagFM(p, c), PagFM(p, c)
        self.difference3 = ConvNorm(4 * c, boundary, act=False)
        self.difference4 = ConvNorm(8 * c, p, act=False)
        pyramid = DAPPM if large else PAPPM
        self.pyramid = pyramid(16 * c, pyramid_width, 4 * c)
        self.fusion: nn.Module = Bag(4 * c) if large else LightBag(4 * c)
        self.head = NormHead(4 * c, head_width, num_classes)
        self.extra = TrainingOnly(
            {"detail": NormHead(p, head_width, num_classes), "boundary": NormHead(p, c, 1)}
        )
        # The reference returns logits at stride 8 and leaves the resize to its caller.
        self.upsample_logits = nn.Identity()
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.branches(image)[0]

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, detail, boundary = self.branches(image)
        inputs = {"detail": detail, "boundary": boundary}
        return logits, {name: head(inputs[name]) for name, head in self.extra.items()}

    def branches(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, detail map of stage 3, boundary map of stage 4), all at stride 8."""
        x = self.layer2(self.layer1(self.stem(image)))
        context = self.layer3(x)
        detail3 = F.relu(self.pag3(self.detail3(x), self.compression3(context)))
        boundary = self.boundary3(x)
        boundary = F.relu(boundary + resize(self.difference3(context), like=x))
        context = self.layer4(context)
        detail = F.relu(self.pag4(self.detail4(detail3), self.compression4(context)))
        boundary4 = self.boundary4(boundary) + resize(self.difference4(context), like=x)
        boundary4 = F.relu(boundary4)
        context = resize(self.pyramid(self.layer5(context)), like=x)
        fused = self.fusion(self.detail5(detail), context, self.boundary5(boundary4))
        return self.head(fused), detail3, boundary4


KEYS = (
    *block_keys("layer{stage}_.{block}", "detail{stage}.{block}"),
    *block_keys("layer{stage}_d.{block}", "boundary{stage}.{block}"),
    *block_keys("layer{stage}_d", "boundary{stage}"),
    *block_keys("layer{stage}.{block}", "layer{stage}.{block}"),
    *sequence_keys("diff{stage}", "difference{stage}"),
    *sequence_keys("pag{stage}.f_x", "pag{stage}.detail"),
    *sequence_keys("pag{stage}.f_y", "pag{stage}.context"),
    *sequence_keys("dfm.conv_p", "fusion.detail"),
    *sequence_keys("dfm.conv_i", "fusion.context"),
    *norm_conv_keys("dfm.conv", "fusion.smooth"),
    *head_keys("seghead_p", "extra.detail"),
    *head_keys("seghead_d", "extra.boundary"),
    *SHARED_KEYS,
)
_small = partial(PIDNet, detail_depth=2, context_depth=3, pyramid_width=96, head_width=128)
_large = partial(PIDNet, detail_depth=3, context_depth=4, pyramid_width=112, head_width=256)


def _variant(make: Callable[..., PIDNet], val: float, test: float, *more: Score) -> Variant:
    return Variant(
        make,
        KEYS,
        size=(1024, 2048),
        paper="Xu et al., CVPR 2023",
        reference="github.com/XuJiacong/PIDNet",
        scores=(Score(CITYSCAPES, val), Score(CITYSCAPES_TEST, test), *more),
        align_corners=True,
    )


VARIANTS = {
    "pidnet_s": _variant(partial(_small, width=32), 78.8, 78.6, Score(CAMVID, 80.1)),
    "pidnet_m": _variant(partial(_small, width=64), 79.9, 79.8, Score(CAMVID, 82.0)),
    "pidnet_l": _variant(partial(_large, width=64, large=True), 80.9, 80.6),
}
