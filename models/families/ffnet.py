"""FFNet: a deep, narrow ResNet of basic blocks, and a small pyramid of plain convolutions.

Mehta et al., "Simple and Efficient Architectures for Semantic Segmentation", CVPR Workshops 2022.
Reference implementation: github.com/Qualcomm-AI-research/FFNet. These are its `dBBB_mobile`
networks, which take whole Cityscapes frames.

Checked: parameters of 40S, 54S and 78S as the model cards of Qualcomm AI Hub have them; with random
weights the logits of 40S are those of a forward pass that is written from the checkpoint's names
alone. No published cost of 86S was found. Not checked: outputs of the reference, and the released
weights, which could not be fetched, and so the scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..backbones.resnet import ResNet, stage_keys
from ..layers import ConvNorm, Head, he_normal, repeat
from ..network import Network
from ..variant import CITYSCAPES, REPOSITORY, Keys, Score, Variant, conv_norm_keys


class UpBranch(nn.Module):
    """A top-down pyramid: maps (N, inputs, h, w), shallow to deep -> (N, sum of outputs, h, w) at
    the size of the first. Maps are enlarged by repetition, which costs an NPU nothing."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]):
        super().__init__()
        self.smooth = nn.ModuleList(
            ConvNorm(channels, width) for channels, width in zip(inputs, outputs, strict=True)
        )
        # Place i holds what brings level i + 1 to the channels of level i.
        self.up = nn.ModuleList(
            ConvNorm(deeper, shallower, kernel=1)
            for shallower, deeper in itertools.pairwise(inputs)
        )

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        *shallower, x = features
        smoothed = [self.smooth[-1](x)]
        for level in range(len(shallower) - 1, -1, -1):
            x = shallower[level] + repeat(self.up[level](x), like=shallower[level])
            smoothed.append(self.smooth[level](x))
        finest = smoothed[-1]
        return torch.cat([finest, *(repeat(y, like=finest) for y in smoothed[-2::-1])], dim=1)


class FFNet(Network):
    """image (N, 3, H, W) -> logits (N, classes, H/8, W/8)."""

    def __init__(self, num_classes: int, depths: Sequence[int]):
        super().__init__()
        stem = nn.Sequential(ConvNorm(3, 32, stride=2), ConvNorm(32, 64, stride=2))
        # All four stages halve the map: strides 8 to 64, for frames of twice the usual size.
        self.backbone = ResNet(stem, 64, (64, 128, 192, 320), depths, strides=(2, 2, 2, 2))
        narrow = (64, 128, 128, 256)
        self.adapters = nn.ModuleList(
            ConvNorm(inputs, width, kernel=1)
            for inputs, width in zip(self.backbone.outputs, narrow, strict=True)
        )
        outputs = (96, 96, 64, 32)
        self.pyramid = UpBranch(narrow, outputs)
        self.head = Head(sum(outputs), 256, num_classes, bias=True)
        # 3x3, where a Head's classifier is 1x1.
        self.head.classifier = nn.Conv2d(256, num_classes, 3, padding=1)
        # The reference returns logits at stride 8 and leaves the resize to its caller.
        self.upsample_logits = nn.Identity()
        he_normal(self)

    def forward_logits(self, image: Tensor) -> Tensor:
        features = self.backbone(image)
        narrowed = [adapt(x) for adapt, x in zip(self.adapters, features, strict=True)]
        logits: Tensor = self.head(self.pyramid(narrowed))
        return logits


_LAYERS = "head.layers.{}.{}.layers"
KEYS: Keys = (
    ("backbone_model.conv0", "backbone.stem.0.conv"),
    ("backbone_model.bn0", "backbone.stem.0.norm"),
    ("backbone_model.conv1", "backbone.stem.1.conv"),
    ("backbone_model.bn1", "backbone.stem.1.norm"),
    *stage_keys("backbone_model."),
    *conv_norm_keys("head.layers.0.adapter_conv.{i}.layers", "adapters.{i}", ("0", "1")),
    *(
        row
        for level, name in enumerate(("fam_4", "fam_8_sm", "fam_16_sm", "fam_32_sm"))
        for row in conv_norm_keys(_LAYERS.format(1, name), f"pyramid.smooth.{level}", ("0", "1"))
    ),
    *(
        row
        for level, name in enumerate(("fam_8_up", "fam_16_up", "fam_32_up"))
        for row in conv_norm_keys(_LAYERS.format(1, name), f"pyramid.up.{level}", ("0", "1"))
    ),
    # Place 2 only joins the maps.
    *conv_norm_keys("head.layers.3.last_layer", "head.hidden", ("0", "1")),
    ("head.layers.3.last_layer.3", "head.classifier"),
)


def _variant(depths: Sequence[int], score: float) -> Variant:
    return Variant(
        partial(FFNet, depths=depths),
        keys=KEYS,
        size=(1024, 2048),
        paper="Mehta et al., CVPR Workshops 2022",
        reference="github.com/Qualcomm-AI-research/FFNet",
        license="BSD-3-Clause-Clear",
        scores=(Score(CITYSCAPES, score, source=REPOSITORY),),
        multiple=64,
    )


VARIANTS = {
    "ffnet_40s": _variant((4, 5, 6, 4), 79.2),
    "ffnet_54s": _variant((5, 8, 8, 5), 80.8),
    "ffnet_78s": _variant((6, 12, 12, 8), 81.3),
    "ffnet_86s": _variant((8, 12, 16, 6), 81.5),
}
