"""ECFD's decoder and its ablations: a backbone's maps F1 to F4 -> logits at stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import UsageError
from ..heads import small_normal
from ..layers import ConvNorm, resize, to_map, to_tokens
from .ecfd_deformable import Size
from .ecfd_tokens import (
    SICM,
    CrossBlock,
    FusedContext,
    PositionEmbedding,
    make_context,
)


class CLGD(nn.Module):
    """CLGD: details of a shallow map, where a deep one asks for them, beside the deep one.

    low (N, C, h, w), high (N, C, smaller) -> (N, C, h, w)
    """

    def __init__(self, width: int, details: int = 32):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1))
        self.details = ConvNorm(width, details)
        self.gate = nn.Conv2d(details + width, 1, 1)
        self.join = ConvNorm(details + width, width)
        self.smooth = ConvNorm(width, width)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        details = self.details(low)
        high = resize(high, like=low)
        gate = torch.sigmoid(self.gate(torch.cat([details, high], dim=1)))
        return self.smooth(self.join(torch.cat([self.gamma * gate * details, high], dim=1)))


class Pyramid(nn.Module):
    """FPN from the deepest map up, all results at the finest map's size in one convolution.

    Four maps of C channels, fine to deep -> (N, C, H/4, W/4). Enlargements align corners.
    """

    def __init__(self, width: int):
        super().__init__()
        self.deepest = ConvNorm(width, width)
        self.laterals = nn.ModuleList(ConvNorm(width, width, kernel=1) for _ in range(3))
        self.outputs = nn.ModuleList(ConvNorm(width, width) for _ in range(3))
        self.fuse = ConvNorm(4 * width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.deepest(maps[-1])
        levels = [x]
        for i in (2, 1, 0):
            lateral = self.laterals[i](maps[i])
            # Corners aligned here and below, unlike the rest of the decoder, as in the reference.
            x = resize(x, like=lateral, align_corners=True) + lateral
            levels.append(self.outputs[i](x))
        finest = levels[-1]
        enlarged = [resize(x, like=finest, align_corners=True) for x in levels[:-1]]
        return self.fuse(torch.cat([*enlarged, finest], dim=1))


class Decoder(nn.Module):
    """What all decoders here begin and end with: maps F1 to F4 -> (N, classes, H/4, W/4)."""

    def __init__(self, inputs: Sequence[int], num_classes: int, width: int):
        super().__init__()
        self.detail = nn.Conv2d(inputs[0], width, 1)
        self.gated = CLGD(width)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = small_normal(nn.Conv2d(width, num_classes, 1))

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x))


def make_narrowing(inputs: Sequence[int], embed: int) -> nn.ModuleList:
    """To the tokens' width, for each map but the finest."""
    return nn.ModuleList(nn.Conv2d(channels, embed, 1) for channels in inputs[1:])


def make_projections(embed: int, width: int) -> nn.ModuleList:
    """From the tokens' width to the pyramid's, for each map but the finest."""
    return nn.ModuleList(ConvNorm(embed, width, kernel=1, act=False, bias=True) for _ in range(3))


def join_maps(convs: nn.ModuleList, maps: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """(tokens of all maps, narrowed, one map after another; the maps' sizes)."""
    narrow = [conv(x) for conv, x in zip(convs, maps, strict=True)]
    sizes = [(x.shape[-2], x.shape[-1]) for x in narrow]
    return torch.cat([to_tokens(x) for x in narrow], dim=1), sizes


def join_resized(maps: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
    """Tokens of maps that are first resized, each to one of `sizes`, one map after another."""
    resized = [
        F.interpolate(x, size, mode="bilinear", align_corners=False)
        for x, size in zip(maps, sizes, strict=True)
    ]
    return torch.cat([to_tokens(x) for x in resized], dim=1)


def split_maps(tokens: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """The way back: tokens of several maps -> the maps."""
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    return [to_map(part, size) for part, size in zip(parts, sizes, strict=True)]


class ECFD(Decoder):
    """The decoder itself.

    width: C, of the maps at the end; embed: D, of the tokens; crop: of the training images, which
    the position embedding was learned for. fused: the context comes from three maps, else from the
    deepest alone. add_context: the context after each of the three blocks is added to one of the
    maps; the published weights were trained without it.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        num_classes: int,
        width: int,
        embed: int,
        heads: int = 6,
        blocks: int = 3,
        crop: Size = (512, 1024),
        fused: bool = True,
        add_context: bool = False,
    ):
        super().__init__(inputs, num_classes, width)
        if add_context and blocks != 3:
            raise UsageError(f"add_context needs three blocks, one for each map, not {blocks}")
        self.spatial = make_narrowing(inputs, embed)
        self.context = make_context(inputs[1:], inputs[0], embed, fused)
        self.positions = PositionEmbedding(embed, crop)
        self.blocks = nn.ModuleList(CrossBlock(embed, heads) for _ in range(blocks))
        self.up = nn.ConvTranspose2d(embed, width, kernel_size=2, stride=2)
        self.project = make_projections(embed, width)
        self.pyramid = Pyramid(width)
        self.add_context = add_context

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        spatial, sizes = join_maps(self.spatial, features[1:])
        middle = sizes[1]
        context = self.positions(to_tokens(self.context(*features[1:])), middle)
        contexts = []
        for block in self.blocks:
            context, spatial = block(context, spatial, middle, sizes)
            contexts.append(to_map(context, middle))
        finest = self.gated(self.detail(features[0]), self.up(contexts[-1]))
        if self.add_context:
            # As tokens: OpenVINO (2026.4) reads the sum of a split map and a resized one wrongly.
            spatial = spatial + join_resized(contexts, sizes)
        maps = split_maps(spatial, sizes)
        maps = [project(x) for project, x in zip(self.project, maps, strict=True)]
        return self.classify(self.pyramid([finest, *maps]))


def make_corrections(blocks: int, embed: int, heads: int, levels: int) -> nn.ModuleList:
    """The ablations' blocks, in which tokens of one kind read each other."""
    return nn.ModuleList(
        SICM(embed, heads, levels=levels, hidden=embed // 4, residual=False) for _ in range(blocks)
    )


class PlainDecoder(Decoder):
    """The ablation without fusion: each map goes to the pyramid on its own."""

    def __init__(self, inputs: Sequence[int], num_classes: int, width: int, embed: int):
        super().__init__(inputs, num_classes, width)
        self.spatial = make_narrowing(inputs, embed)
        self.project = nn.ModuleList(nn.Conv2d(embed, width, 1) for _ in range(3))
        self.deepest = nn.Conv2d(inputs[-1], width, 1)
        self.pyramid = Pyramid(width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        finest = self.gated(self.detail(features[0]), self.deepest(features[-1]))
        stages = zip(self.spatial, self.project, features[1:], strict=True)
        maps = [project(spatial(x)) for spatial, project, x in stages]
        return self.classify(self.pyramid([finest, *maps]))


class ContextDecoder(Decoder):
    """The ablation with context tokens alone (strategies 1 and 2), at the third map's size."""

    def __init__(
        self,
        inputs: Sequence[int],
        num_classes: int,
        width: int,
        embed: int,
        heads: int = 6,
        blocks: int = 3,
        crop: Size = (512, 1024),
        fused: bool = True,
    ):
        super().__init__(inputs, num_classes, width)
        self.context = make_context(inputs[1:], inputs[0], embed, fused)
        self.positions = PositionEmbedding(embed, crop)
        self.blocks = make_corrections(blocks, embed, heads, levels=1)
        self.up = nn.Conv2d(embed, width, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        context = self.context(*features[1:])
        size = (context.shape[-2], context.shape[-1])
        tokens = self.positions(to_tokens(context), size)
        for block in self.blocks:
            tokens = block(tokens, tokens, [size], [size])
        deep = self.up(to_map(tokens, size))
        return self.classify(self.gated(self.detail(features[0]), deep))


class SpatialDecoder(Decoder):
    """The ablation with spatial tokens alone (strategy 3), which read each other at all scales."""

    def __init__(
        self,
        inputs: Sequence[int],
        num_classes: int,
        width: int,
        embed: int,
        heads: int = 6,
        blocks: int = 3,
    ):
        super().__init__(inputs, num_classes, width)
        self.spatial = make_narrowing(inputs, embed)
        self.blocks = make_corrections(blocks, embed, heads, levels=3)
        self.context = FusedContext([embed] * 3, width, width)
        self.project = make_projections(embed, width)
        self.pyramid = Pyramid(width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        tokens, sizes = join_maps(self.spatial, features[1:])
        for block in self.blocks:
            tokens = block(tokens, tokens, sizes, sizes)
        maps = split_maps(tokens, sizes)
        finest = self.gated(self.detail(features[0]), self.context(*maps))
        maps = [project(x) for project, x in zip(self.project, maps, strict=True)]
        return self.classify(self.pyramid([finest, *maps]))
