"""DDRNet: two branches of different resolution that exchange their maps.

Hong, Pan, Sun, Jia: "Deep Dual-resolution Networks for Real-time and Accurate Semantic Segmentation
of Road Scenes", 2021. Reference implementation: github.com/ydhongHIT/DDRNet.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.resnet import BasicBlock, block_keys, blocks
from ..layers import ConvNorm, TrainingOnly, he_normal, resize
from ..network import Network
from ..variant import CAMVID, CITYSCAPES, CITYSCAPES_TEST, Score, Variant
from .dappm import (
    DAPPM,
    SHARED_KEYS,
    NormHead,
    ShortBottleneck,
    head_keys,
    sequence_keys,
    two_convolutions,
)


class DDRNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H/8, W/8); in train mode with "detail", logits of
    the high resolution after the first exchange."""

    def __init__(self, num_classes: int, width: int, head_width: int, pyramid_width: int = 128):
        super().__init__()
        c, p = width, 2 * width  # channels at stride 4; of the high resolution, at stride 8
        basic = partial(blocks, BasicBlock, depth=2)
        self.stem = two_convolutions(c)
        self.layer1 = basic(c, c)
        self.layer2 = basic(c, p, stride=2)
        self.layer3 = basic(p, 4 * c, stride=2, last_act=False)
        self.layer4 = basic(4 * c, 8 * c, stride=2, last_act=False)
        self.layer5 = blocks(ShortBottleneck, 8 * c, 8 * c, depth=1, stride=2, last_act=False)
        self.high3 = basic(p, p, last_act=False)
        self.high4 = basic(p, p, last_act=False)
        self.high5 = blocks(ShortBottleneck, p, p, depth=1, last_act=False)
        self.down3 = ConvNorm(p, 4 * c, stride=2, act=False)
        self.down4 = nn.Sequential(
            ConvNorm(p, 4 * c, stride=2), ConvNorm(4 * c, 8 * c, stride=2, act=False)
        )
        self.compression3 = ConvNorm(4 * c, p, kernel=1, act=False)
        self.compression4 = ConvNorm(8 * c, p, kernel=1, act=False)
        self.pyramid = DAPPM(16 * c, pyramid_width, 4 * c)
        self.head = NormHead(4 * c, head_width, num_classes)
        self.extra = TrainingOnly({"detail": NormHead(p, head_width, num_classes)})
        # The reference returns logits at stride 8 and leaves the resize to its caller.
        self.upsample_logits = nn.Identity()
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        return self.branches(image)[0]

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        logits, detail = self.branches(image)
        return logits, {name: head(detail) for name, head in self.extra.items()}

    def branches(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, high-resolution map after the first exchange), both at stride 8."""
        x = self.layer2(self.layer1(self.stem(image)))
        own, high = self.layer3(x), self.high3(x)
        # Both branches take from each other's state of before the exchange.
        low = own + self.down3(F.relu(high))
        first = high + resize(self.compression3(F.relu(own)), like=x)
        own, high = self.layer4(F.relu(low)), self.high4(F.relu(first))
        low = own + self.down4(F.relu(high))
        high = high + resize(self.compression4(F.relu(own)), like=x)
        low = resize(self.pyramid(self.layer5(F.relu(low))), like=x)
        return self.head(low + self.high5(F.relu(high))), first


KEYS = (
    *block_keys("layer{stage}_.{block}", "high{stage}.{block}"),
    *block_keys("layer{stage}.{block}", "layer{stage}.{block}"),
    *sequence_keys("down3", "down3"),
    *sequence_keys("down4", "down4.0"),
    *sequence_keys("down4", "down4.1", first=3),
    *head_keys("seghead_extra", "extra.detail"),
    *SHARED_KEYS,
)
_variant = partial(
    Variant,
    keys=KEYS,
    size=(1024, 2048),
    paper="Hong et al., 2021",
    reference="github.com/ydhongHIT/DDRNet",
    license="MIT",
)
VARIANTS = {
    "ddrnet_23_slim": _variant(
        partial(DDRNet, width=32, head_width=64),
        scores=(Score(CITYSCAPES, 77.8), Score(CITYSCAPES_TEST, 77.4), Score(CAMVID, 74.7)),
    ),
    "ddrnet_23": _variant(
        partial(DDRNet, width=64, head_width=128),
        scores=(Score(CITYSCAPES, 79.5), Score(CITYSCAPES_TEST, 79.4)),
    ),
}
