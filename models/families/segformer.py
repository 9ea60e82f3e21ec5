"""SegFormer: a Mix Transformer, and a head of linear maps that are enlarged and summed.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021. Reference implementation: github.com/NVlabs/SegFormer.

Checked: parameters within 2 % of the paper's table 1 (a), and the multiply-adds of convolutions and
linear maps; every entry has the name of the authors' checkpoints; with random weights the logits of
B0, B1 and B2 are those of the implementation in `transformers`, whose layer norms are set to the
authors' epsilon. Not checked: the released weights, which could not be fetched, and so the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbones.mix_transformer import KEYS as BACKBONE_KEYS
from ..backbones.mix_transformer import MixTransformer
from ..heads import EncoderDecoder, small_normal
from ..layers import (
    ConvNorm,
    bias_of,
    he_normal,
    init_narrow,
    make_pointwise,
    resize,
    to_map,
    to_tokens,
)
from ..variant import ADE20K, CITYSCAPES, Keys, Score, Variant, conv_norm_keys


class AllMlpHead(nn.Module):
    """Maps at strides 4 to 32 of the `inputs` channels -> (N, classes, H/4, W/4)."""

    def __init__(self, inputs: Sequence[int], num_classes: int, width: int):
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(channels, width) for channels in inputs)
        self.fuse = ConvNorm(len(inputs) * width, width, kernel=1)
        he_normal(self)
        init_narrow(self.maps, nn.Linear)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = small_normal(nn.Conv2d(width, num_classes, 1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        # The deepest comes first in the channels that `fuse` reads.
        mapped = [
            to_map(linear(to_tokens(x)), (x.shape[-2], x.shape[-1]))
            for linear, x in zip(self.maps, features, strict=True)
        ][::-1]
        fused = self.fuse(torch.cat([resize(x, like=mapped[-1]) for x in mapped], dim=1))
        return self.classifier(self.dropout(fused))

    def to_deployed(self) -> SummingHead:
        return SummingHead(self)


class SummingHead(nn.Module):
    """An AllMlpHead without the map of all four levels at stride 4.

    Each level's linear map and its share of the one that joins them are one matrix. It acts on
    single pixels, so that enlarging may follow it: the joint map is a sum of small maps.
    """

    def __init__(self, head: AllMlpHead):
        super().__init__()
        joint = head.fuse.conv  # its norm was folded before
        width = joint.out_channels
        shares = joint.weight.detach().double().flatten(1).split(width, dim=1)[::-1]
        self.maps, self.classifier = nn.ModuleList(), head.classifier
        bias = bias_of(joint).double()
        for linear, share in zip(head.maps, shares, strict=True):
            bias = bias + share @ bias_of(linear).double()
            matrix = share @ linear.get_parameter("weight").detach().double()
            self.maps.append(make_pointwise(matrix, None, joint.weight.dtype))
        # Enlarging leaves a constant as it is, so that all biases meet in the finest map's.
        self.maps[0].bias = nn.Parameter(bias.to(joint.weight.dtype))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        total, *deeper = [conv(x) for conv, x in zip(self.maps, features, strict=True)]
        for x in deeper:
            total = total + resize(x, like=total)
        return self.classifier(F.relu(total))


def _segformer(
    num_classes: int, widths: Sequence[int], depths: Sequence[int], width: int
) -> EncoderDecoder:
    backbone = MixTransformer(widths, depths)
    return EncoderDecoder(backbone, AllMlpHead(backbone.outputs, num_classes, width))


KEYS: Keys = (
    *BACKBONE_KEYS,
    *((f"decode_head.linear_c{i + 1}.proj", f"head.maps.{i}") for i in range(4)),
    *conv_norm_keys("decode_head.linear_fuse", "head.fuse"),
    ("decode_head.linear_pred", "head.classifier"),
    ("decode_head.conv_seg", None),  # of the toolbox's base class; nothing reads it
)


def _variant(
    widths: Sequence[int],
    depths: Sequence[int],
    width: int,
    cityscapes: tuple[float, float],
    ade20k: tuple[float, float],
) -> Variant:
    return Variant(
        partial(_segformer, widths=widths, depths=depths, width=width),
        keys=KEYS,
        size=(1024, 2048),
        paper="Xie et al., NeurIPS 2021",
        reference="github.com/NVlabs/SegFormer",
        license="NVIDIA Source Code License, non-commercial",
        scores=(Score(CITYSCAPES, *cityscapes), Score(ADE20K, *ade20k)),
        multiple=32,
    )


WIDTHS = (64, 128, 320, 512)
VARIANTS = {
    "segformer_b0": _variant((32, 64, 160, 256), (2, 2, 2, 2), 256, (76.2, 78.1), (37.4, 38.0)),
    "segformer_b1": _variant(WIDTHS, (2, 2, 2, 2), 256, (78.5, 80.0), (42.2, 43.1)),
    "segformer_b2": _variant(WIDTHS, (3, 4, 6, 3), 768, (81.0, 82.2), (46.5, 47.5)),
}
