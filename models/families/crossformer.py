"""CrossFormer: embeddings at several scales, short- and long-distance attention in alternation.

Wang et al., "CrossFormer: A Versatile Vision Transformer Hinging on Cross-scale Attention", ICLR
2022, with the heads of its segmentation experiments. Reference implementation:
github.com/cheerss/CrossFormer.

The reference changed its arithmetic in December 2023 without touching a weight's name. Checkpoints
and reported numbers belong to the code before (`code=2021`); the variants `*_code2023` are what its
main branch computes today.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import Block, GroupPlan, Groups, group, relative_index, spread_bias
from ..backbones.swin import original_block_keys
from ..heads import (
    AUXILIARY_KEYS,
    FPN_KEYS,
    UPER_KEYS,
    EncoderDecoder,
    SemanticFPN,
    UPerHead,
    fcn_head,
)
from ..layers import Constant, init_narrow, to_map, to_tokens
from ..variant import ADE20K, Keys, Score, Variant

# Group sizes and intervals of the four stages.
G7 = ((7, 7, 7, 7), (8, 4, 2, 1))
G14 = ((14, 14, 7, 7), (16, 8, 2, 1))
HIDDEN = -3e4  # the score of a padded key: nothing is left of it, and half precision holds it


@lru_cache(maxsize=64)
def crossing_plan(height: int, width: int, size: int, interval: int, code: int) -> GroupPlan:
    """Groups of `size` x `size` neighbors (interval 0), or of tokens that are `interval` apart.

    Distant groups span the whole padded map in the code of 2021, so that they grow with it, and are
    of `size` x `size` tokens in that of 2023. A map with a side of at most `size` has near groups
    only, of its shorter (2021) or longer (2023) side. Padded keys are hidden.
    """
    # Neither rule can be told from a checkpoint: the weights have the same names and shapes.
    if min(height, width) <= size:
        size, interval = (min if code == 2021 else max)(height, width), 0
    shape = (size, size)
    if interval and code == 2021:
        # 2021: `interval` groups along each axis, as large as the map makes them.
        shape = (-(-height // interval), -(-width // interval))
    tokens = group(height, width, *shape, interval=interval or 1)
    padded = tokens == height * width
    return GroupPlan(tokens, shape, padded[:, None, None] if padded.any() else None, HIDDEN)


def offsets(rows: int, columns: int) -> Tensor:
    """All offsets (down, right) between two tokens of a group, in the order of `relative_index`."""
    down, across = torch.arange(1.0 - rows, rows), torch.arange(1.0 - columns, columns)
    return torch.cartesian_prod(down, across)


def offset_index(rows: int, columns: int) -> Tensor:
    """(tokens, tokens): `relative_index` as a tensor."""
    return torch.from_numpy(relative_index(rows, columns))


class PositionMlp(nn.Module):
    """The bias of attention, worked out from the offset of query and key.

    (rows, columns) of a group -> (heads, tokens, tokens).
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.inlet = nn.Linear(2, width)
        self.steps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, outputs))
            for outputs in (width, width, heads)
        )
        self.offsets, self.index = Constant(offsets), Constant(offset_index)

    def forward(self, rows: int, columns: int) -> Tensor:
        table = self.inlet(self.offsets(rows, columns, like=self.inlet.weight))
        for step in self.steps:
            table = step(table)
        return spread_bias(table, self.index(rows, columns, like=table))

    def to_deployed(self) -> ConstantBias:
        return ConstantBias(self)


class ConstantBias(nn.Module):
    """The bias of a PositionMlp, made once per size."""

    def __init__(self, mlp: PositionMlp):
        super().__init__()
        # In a plain list, which keeps the MLP out of the network's weights.
        self.bias = Constant(partial(_evaluate, [mlp]))
        # Nothing but a device and a dtype to make the bias in: the module has no weight to take it
        # from.
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def forward(self, rows: int, columns: int) -> Tensor:
        return self.bias(rows, columns, like=self.like)


def _evaluate(holder: list[PositionMlp], rows: int, columns: int) -> Tensor:
    with torch.no_grad():
        return holder[0](rows, columns).contiguous()


class CrossScaleEmbedding(nn.Module):
    """Convolutions of several kernels at one stride, side by side.

    (N, inputs, H, W) -> tokens (N, H/stride * W/stride, sum of widths).
    """

    def __init__(self, inputs: int, widths: Sequence[int], kernels: Sequence[int], stride: int):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, width, kernel, stride, (kernel - stride) // 2)
            for width, kernel in zip(widths, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return to_tokens(torch.cat([conv(x) for conv in self.convs], dim=1))


class CrossFormer(nn.Module):
    """image (N, 3, H, W), sides in multiples of 32 -> four maps of widths C, 2C, 4C, 8C.

    grouping: group sizes and intervals of the four stages; code: 2021 or 2023, see above.
    """

    def __init__(
        self,
        embed: int,
        depths: Sequence[int],
        grouping: tuple[Sequence[int], Sequence[int]] = G14,
        code: int = 2021,
        drop_path: float = 0.2,
    ):
        super().__init__()
        self.outputs = [embed * 2**i for i in range(4)]
        widths = (embed // 2, embed // 4, embed // 8, embed // 8)
        self.embed = CrossScaleEmbedding(3, widths, (4, 8, 16, 32), stride=4)
        self.norm = nn.LayerNorm(embed)
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.stages = nn.ModuleList()
        for width, depth, size, interval in zip(self.outputs, depths, *grouping, strict=True):
            groups = [
                Groups(partial(crossing_plan, size=size, interval=distance, code=code))
                for distance in (0, interval)
            ]
            heads = width // 32
            self.stages.append(
                nn.ModuleList(
                    Block(
                        width, heads, groups[i % 2], PositionMlp(width // 16, heads), rates.pop(0)
                    )
                    for i in range(depth)
                )
            )
        self.down_norms = nn.ModuleList(nn.LayerNorm(width) for width in self.outputs[:3])
        self.downs = nn.ModuleList(
            CrossScaleEmbedding(width, (width, width), (2, 4), stride=2)
            for width in self.outputs[:3]
        )
        init_narrow(self, nn.Linear)

    def forward(self, image: Tensor) -> list[Tensor]:
        size = (image.shape[-2] // 4, image.shape[-1] // 4)
        x = self.norm(self.embed(image))
        features = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.downs[i - 1](to_map(self.down_norms[i - 1](x), size))
                size = (size[0] // 2, size[1] // 2)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                x = block(x, size)
            features.append(to_map(x, size))
        return features


BACKBONES: dict[str, dict[str, Any]] = {
    "s": {"embed": 96, "depths": (2, 2, 6, 2), "drop_path": 0.2},
    "b": {"embed": 96, "depths": (2, 2, 18, 2), "drop_path": 0.3},
    "l": {"embed": 128, "depths": (2, 2, 18, 2), "drop_path": 0.5},
}


def _crossformer(num_classes: int, head: str, size: str, **options: object) -> EncoderDecoder:
    backbone = CrossFormer(**BACKBONES[size] | options)
    if head == "fpn":
        return EncoderDecoder(backbone, SemanticFPN(backbone.outputs, num_classes))
    upernet = UPerHead(backbone.outputs, num_classes)
    return EncoderDecoder(backbone, upernet, fcn_head(backbone.outputs[2], 256, num_classes))


_BLOCK = ("backbone.layers.{i}.blocks.{j}", "backbone.stages.{i}.{j}")
BACKBONE_KEYS: Keys = (
    ("backbone.patch_embed.projs.{i}", "backbone.embed.convs.{i}"),
    ("backbone.patch_embed.norm", "backbone.norm"),
    (f"{_BLOCK[0]}.attn.pos.pos_proj", f"{_BLOCK[1]}.attention.bias.inlet"),
    (f"{_BLOCK[0]}.attn.pos.pos1.{{k}}", f"{_BLOCK[1]}.attention.bias.steps.0.{{k}}"),
    (f"{_BLOCK[0]}.attn.pos.pos2.{{k}}", f"{_BLOCK[1]}.attention.bias.steps.1.{{k}}"),
    (f"{_BLOCK[0]}.attn.pos.pos3.{{k}}", f"{_BLOCK[1]}.attention.bias.steps.2.{{k}}"),
    *original_block_keys(*_BLOCK),
    ("backbone.layers.{i}.downsample.norm", "backbone.down_norms.{i}"),
    ("backbone.layers.{i}.downsample.reductions.{k}", "backbone.downs.{i}.convs.{k}"),
)


def _variant(
    head: str,
    size: str,
    grouping: tuple[Sequence[int], Sequence[int]] | None = None,
    code: int = 2021,
    score: tuple[float, float | None] | None = None,
) -> Variant:
    """grouping: by default the one whose reported cost it is, G14 with FPN and G7 with UPerNet."""
    keys = FPN_KEYS if head == "fpn" else (*UPER_KEYS, *AUXILIARY_KEYS)
    grouping = grouping or (G14 if head == "fpn" else G7)
    return Variant(
        partial(_crossformer, head=head, size=size, grouping=grouping, code=code),
        keys=(*BACKBONE_KEYS, *keys),
        size=(1024, 1024),
        paper="Wang et al., ICLR 2022",
        reference="github.com/cheerss/CrossFormer",
        license="MIT",
        scores=(Score(ADE20K, *score),) if score else (),
        classes=150,
        multiple=32,
    )


VARIANTS = {
    "crossformer_s_fpn": _variant("fpn", "s", score=(46.4, None)),
    "crossformer_b_fpn": _variant("fpn", "b", score=(48.0, None)),
    "crossformer_l_fpn": _variant("fpn", "l", score=(49.1, None)),
    "crossformer_s_upernet": _variant("upernet", "s", score=(47.6, 48.4)),
    "crossformer_b_upernet": _variant("upernet", "b", score=(49.7, 50.6)),
    "crossformer_l_upernet": _variant("upernet", "l", score=(50.4, 51.4)),
    "crossformer_b_fpn_g7": _variant("fpn", "b", G7),
    "crossformer_s_fpn_code2023": _variant("fpn", "s", G7, code=2023),
    "crossformer_l_fpn_code2023": _variant("fpn", "l", G14, code=2023),
    "crossformer_s_upernet_code2023": _variant("upernet", "s", G7, code=2023),
}
