"""ECFD: a decoder in which context tokens and spatial tokens correct each other.

"Efficient Cross-information Fusion Decoder for Semantic Segmentation", with its ablations. The
decoder reads a backbone's maps F1 to F4 at strides 4, 8, 16 and 32 (C1 to C4 channels).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convnext import KEYS as CONVNEXT_KEYS
from .convnext import convnext_large
from .deformable import Atlas, DeformableAttention, Size
from .heads import AUXILIARY_KEYS, EncoderDecoder, fcn_head, small_normal
from .layers import Constant, ConvNorm, resize, to_map, to_tokens
from .resnet import deep_stem_keys, resnet50, stage_keys
from .swin import ORIGINAL, swin_large
from .swin import ORIGINAL_KEYS as SWIN_KEYS
from .variant import Keys, Variant, unit_keys

EPS = 1e-6  # of the decoder's layer norms


class FusedContext(nn.Module):
    """Maps at strides 8, 16 and 32 (of the `inputs` channels) as one at stride 16.

    -> (N, outputs, H/16, W/16)
    """

    def __init__(self, inputs: Sequence[int], hidden: int, outputs: int):
        super().__init__()
        fine, middle, deep = inputs
        self.fine = nn.Conv2d(fine, hidden, 1)
        self.middle = nn.Conv2d(middle, hidden, 1)
        self.deep = nn.ConvTranspose2d(deep, hidden, 1)
        self.fuse = nn.Conv2d(3 * hidden, outputs, 1)

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        maps = [self.fine(fine), self.middle(middle), self.deep(deep)]
        return self.fuse(torch.cat([resize(x, like=middle) for x in maps], dim=1))

    def deployed(self) -> DeployedFusedContext:
        return DeployedFusedContext(self)


class DeployedFusedContext(nn.Module):
    """With the two linear maps of each level merged, at the smaller of the two sizes: a 1x1
    convolution and a bilinear resize commute, and a bias passes through both."""

    def __init__(self, plain: FusedContext):
        super().__init__()
        layers = plain.fine, plain.middle, plain.deep
        weights = [layer.weight.detach().double().flatten(1) for layer in layers]
        weights[2] = weights[2].T
        fuse = plain.fuse.weight.detach().double().flatten(1)
        parts = fuse.chunk(3, dim=1)
        merged = [part @ weight for part, weight in zip(parts, weights, strict=True)]
        assert plain.fuse.bias is not None
        bias = plain.fuse.bias.detach().double()
        for part, layer in zip(parts, layers, strict=True):
            assert layer.bias is not None
            bias = bias + part @ layer.bias.detach().double()
        self.shallow = _pointwise(torch.cat(merged[:2], dim=1), bias, plain.fuse.weight)
        self.deep = _pointwise(merged[2], None, plain.fuse.weight)

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        shallow = torch.cat([resize(fine, like=middle), middle], dim=1)
        return self.shallow(shallow) + resize(self.deep(deep), like=middle)


def _pointwise(weight: Tensor, bias: Tensor | None, like: Tensor) -> nn.Conv2d:
    """The 1x1 convolution of a matrix (outputs, inputs), in the dtype of `like`."""
    outputs, inputs = weight.shape
    conv = nn.Conv2d(inputs, outputs, 1, bias=bias is not None)
    conv.weight = nn.Parameter(weight[..., None, None].to(like.dtype))
    if bias is not None:
        conv.bias = nn.Parameter(bias.to(like.dtype))
    return conv


class DeepContext(nn.Module):
    """The deepest map alone in place of `FusedContext`, enlarged to the middle one's size."""

    def __init__(self, inputs: Sequence[int], outputs: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs[-1], outputs, 1)

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        return resize(self.proj(deep), like=middle)


class PositionEmbedding(nn.Module):
    """A learned value per position of a training crop, bicubically resized to the map at hand.

    It was learned at stride 4 of the crop (height, width). tokens (N, h * w, C) -> the same, moved.
    """

    def __init__(self, width: int, crop: Size):
        super().__init__()
        self.crop = (crop[0] // 4, crop[1] // 4)
        # The first entry stands for a class token, which there is none of.
        self.values = nn.Parameter(torch.zeros(1, 1 + self.crop[0] * self.crop[1], width))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x + resized_positions(self.values, self.crop, *size)

    def soften(self) -> None:
        """Random positions, where training starts from none."""
        nn.init.normal_(self.values, std=0.2)

    def deployed(self) -> FixedPositions:
        return FixedPositions(self.values.detach(), self.crop)


class FixedPositions(nn.Module):
    """A PositionEmbedding that is resized once per size."""

    def __init__(self, values: Tensor, crop: Size):
        super().__init__()
        self.resized = Constant(partial(resized_positions, values, crop))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x + self.resized(*size, like=x)


def resized_positions(values: Tensor, crop: Size, height: int, width: int) -> Tensor:
    """values (1, 1 + tokens of the crop, C) -> (1, height * width, C)."""
    grid = to_map(values[:, 1:], crop)
    return to_tokens(F.interpolate(grid, (height, width), mode="bicubic", align_corners=False))


class SpatialMlp(nn.Module):
    """Two linear maps with a 3x3 convolution per channel and map between: tokens -> tokens."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.spatial = nn.Conv2d(hidden, hidden, kernel_size=3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.atlas = Atlas()

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        maps = self.spatial(self.atlas.lay(self.fc1(x), sizes))
        return self.fc2(F.gelu(self.atlas.take(maps, sizes)))


class Fusion(nn.Module):
    """Attention of `queries` to `values` tokens, each behind a norm."""

    def __init__(self, width: int, heads: int, levels: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=EPS)
        self.value_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = DeformableAttention(width, heads, levels)

    def attend(
        self, queries: Tensor, values: Tensor, asked: Sequence[Size], read: Sequence[Size]
    ) -> Tensor:
        return self.attention(self.query_norm(queries), self.value_norm(values), asked, read)


class ContextCorrection(Fusion):
    """CICM: context tokens read the spatial tokens of all three maps. Silent at the start."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, levels=3)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.zeros(width))

    def forward(
        self, queries: Tensor, values: Tensor, asked: Sequence[Size], read: Sequence[Size]
    ) -> Tensor:
        correction = self.attend(queries, values, asked, read)
        return queries + (correction if self.gamma is None else self.gamma * correction)

    def soften(self) -> None:
        """Not silent, as it is where training starts."""
        if self.gamma is not None:
            nn.init.normal_(self.gamma, std=0.2)

    def deployed(self) -> ContextCorrection:
        """The scale goes into the attention's last linear map."""
        if self.gamma is not None:
            last = self.attention.output
            with torch.no_grad():
                last.weight.mul_(self.gamma[:, None])
                last.bias.mul_(self.gamma)
            self.gamma = None
        return self


class SpatialCorrection(Fusion):
    """SICM: spatial tokens read the context tokens, then go through an MLP.

    residual: the MLP's shortcut starts after the attention. In the ablations it starts before it,
    so that the attention reaches the result through the MLP alone.
    """

    def __init__(self, width: int, heads: int, levels: int, hidden: int, residual: bool = True):
        super().__init__(width, heads, levels)
        self.mlp_norm = nn.LayerNorm(width, eps=EPS)
        self.mlp = SpatialMlp(width, hidden)
        self.residual = residual

    def forward(
        self, queries: Tensor, values: Tensor, asked: Sequence[Size], read: Sequence[Size]
    ) -> Tensor:
        attended = queries + self.attend(queries, values, asked, read)
        shortcut = attended if self.residual else queries
        return shortcut + self.mlp(self.mlp_norm(attended), asked)


class CrossBlock(nn.Module):
    """The context corrected by the spatial tokens, then these by the corrected context."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.context = ContextCorrection(width, heads)
        self.spatial = SpatialCorrection(width, heads, levels=1, hidden=width // 2)

    def forward(
        self, context: Tensor, spatial: Tensor, middle: Size, sizes: Sequence[Size]
    ) -> tuple[Tensor, Tensor]:
        context = self.context(context, spatial, [middle], sizes)
        return context, self.spatial(spatial, context, sizes, [middle])


class GatedDetail(nn.Module):
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
        self.gated = GatedDetail(width)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = small_normal(nn.Conv2d(width, num_classes, 1))

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x))


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
            raise ValueError(f"add_context needs three blocks, one for each map, not {blocks}")
        self.spatial = nn.ModuleList(nn.Conv2d(channels, embed, 1) for channels in inputs[1:])
        self.context = (
            FusedContext(inputs[1:], inputs[0], embed) if fused else DeepContext(inputs[1:], embed)
        )
        self.positions = PositionEmbedding(embed, crop)
        self.blocks = nn.ModuleList(CrossBlock(embed, heads) for _ in range(blocks))
        self.up = nn.ConvTranspose2d(embed, width, kernel_size=2, stride=2)
        self.project = nn.ModuleList(
            ConvNorm(embed, width, kernel=1, act=False, bias=True) for _ in range(3)
        )
        self.pyramid = Pyramid(width)
        self.add_context = add_context

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = [conv(x) for conv, x in zip(self.spatial, features[1:], strict=True)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        middle = sizes[1]
        spatial = torch.cat([to_tokens(x) for x in maps], dim=1)
        context = self.positions(to_tokens(self.context(*features[1:])), middle)
        contexts = []
        for block in self.blocks:
            context, spatial = block(context, spatial, middle, sizes)
            contexts.append(to_map(context, middle))
        finest = self.gated(self.detail(features[0]), self.up(contexts[-1]))
        maps = split_maps(spatial, sizes)
        if self.add_context:
            maps = [x + resize(c, like=x) for x, c in zip(maps, contexts, strict=True)]
        maps = [project(x) for project, x in zip(self.project, maps, strict=True)]
        return self.classify(self.pyramid([finest, *maps]))


def split_maps(tokens: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Tokens of several maps, one after another -> the maps."""
    parts = tokens.split([height * width for height, width in sizes], dim=1)
    return [to_map(part, size) for part, size in zip(parts, sizes, strict=True)]


class PlainDecoder(Decoder):
    """The ablation without fusion: each map goes to the pyramid by itself."""

    def __init__(self, inputs: Sequence[int], num_classes: int, width: int, embed: int):
        super().__init__(inputs, num_classes, width)
        self.spatial = nn.ModuleList(nn.Conv2d(channels, embed, 1) for channels in inputs[1:])
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
        self.context = (
            FusedContext(inputs[1:], inputs[0], embed) if fused else DeepContext(inputs[1:], embed)
        )
        self.positions = PositionEmbedding(embed, crop)
        self.blocks = nn.ModuleList(
            SpatialCorrection(embed, heads, levels=1, hidden=embed // 4, residual=False)
            for _ in range(blocks)
        )
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
        self.spatial = nn.ModuleList(nn.Conv2d(channels, embed, 1) for channels in inputs[1:])
        self.blocks = nn.ModuleList(
            SpatialCorrection(embed, heads, levels=3, hidden=embed // 4, residual=False)
            for _ in range(blocks)
        )
        self.context = FusedContext([embed] * 3, width, width)
        self.project = nn.ModuleList(
            ConvNorm(embed, width, kernel=1, act=False, bias=True) for _ in range(3)
        )
        self.pyramid = Pyramid(width)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = [conv(x) for conv, x in zip(self.spatial, features[1:], strict=True)]
        sizes = [(x.shape[-2], x.shape[-1]) for x in maps]
        tokens = torch.cat([to_tokens(x) for x in maps], dim=1)
        for block in self.blocks:
            tokens = block(tokens, tokens, sizes, sizes)
        maps = split_maps(tokens, sizes)
        finest = self.gated(self.detail(features[0]), self.context(*maps))
        maps = [project(x) for project, x in zip(self.project, maps, strict=True)]
        return self.classify(self.pyramid([finest, *maps]))


def _network(
    num_classes: int,
    backbone: Callable[[], Any],
    decoder: Callable[..., Decoder] = ECFD,
    **options: Any,
) -> EncoderDecoder:
    encoder = backbone()
    head = decoder(encoder.outputs, num_classes, **options)
    return EncoderDecoder(encoder, head, fcn_head(encoder.outputs[2], 256, num_classes))


def _stages(official: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Of three convolutions that are numbered 2, 3, 4 by their stage."""
    return tuple((official.format(i + 2), ours.format(i)) for i in range(3))


def _block_keys(theirs: str, ours: str) -> Keys:
    attention = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    return (
        (f"{theirs}.gamma", f"{ours}.gamma"),
        (f"{theirs}.feat_norm", f"{ours}.value_norm"),
        (f"{theirs}.Mlp.dwconv.dwconv", f"{ours}.mlp.spatial"),
        (f"{theirs}.Mlp.fc{{i}}", f"{ours}.mlp.fc{{i}}"),
        (f"{theirs}.{{name}}_norm", f"{ours}.{{name}}_norm"),
        *(
            (f"{theirs}.attn.{official}", f"{ours}.attention.{name}")
            for official, name in zip(
                attention, ("offsets", "weights", "value", "output"), strict=True
            )
        ),
    )


KEYS: Keys = (
    ("decode_head.pos_embed", "head.positions.values"),
    ("decode_head.c1_conv1x1", "head.detail"),
    *_stages("decode_head.c{}_conv1x1", "head.spatial.{}"),
    ("decode_head.RCE.layer2_embedding", "head.context.fine"),
    ("decode_head.RCE.layer3_embedding", "head.context.middle"),
    ("decode_head.RCE.layer4_embedding", "head.context.deep"),
    ("decode_head.RCE.fuse_layer", "head.context.fuse"),
    ("decode_head.RCE.proj", "head.context.proj"),
    *_block_keys("decode_head.blocks.{k}.CICM", "head.blocks.{k}.context"),
    *_block_keys("decode_head.blocks.{k}.SICM", "head.blocks.{k}.spatial"),
    *_block_keys("decode_head.blocks.{k}.GeneralFusion", "head.blocks.{k}"),
    ("decode_head.up", "head.up"),
    ("decode_head.clgd.gamma", "head.gated.gamma"),
    *unit_keys("decode_head.clgd.conv_low", "head.gated.details", ("0", "1")),
    ("decode_head.clgd.conv_att.0", "head.gated.gate"),
    *unit_keys("decode_head.clgd.conv_cat", "head.gated.join", ("0", "1")),
    *unit_keys("decode_head.clgd.conv_out", "head.gated.smooth", ("0", "1")),
    *unit_keys("decode_head.fpn.c4conv", "head.pyramid.deepest", ("0", "1")),
    *unit_keys("decode_head.fpn.fpn_lateral.{i}", "head.pyramid.laterals.{i}", ("0", "1")),
    *unit_keys("decode_head.fpn.fpn_out.{i}", "head.pyramid.outputs.{i}", ("0", "1")),
    *unit_keys("decode_head.fpn.conv5", "head.pyramid.fuse", ("0", "1")),
    ("decode_head.conv_seg", "head.classifier"),
    *AUXILIARY_KEYS,
)
PROJECTION_KEYS: Keys = (
    *_stages("decode_head.c{}_deconv1x1", "head.project.{}.conv"),
    *_stages("decode_head.norm{}", "head.project.{}.norm"),
)
PLAIN_PROJECTION_KEYS: Keys = (
    *_stages("decode_head.c{}_deconv1x1", "head.project.{}"),
    ("decode_head.clgd_conv1x1", "head.deepest"),
)
RESNET_KEYS: Keys = (*deep_stem_keys("backbone.stem"), *stage_keys("backbone."))
BACKBONES: dict[str, tuple[Callable[[], Any], Keys, int]] = {  # and the decoder's width
    "r50": (resnet50, RESNET_KEYS, 256),
    "r101": (partial(resnet50, depth=101), RESNET_KEYS, 256),
    "swin_l": (partial(swin_large, window=7, layout=ORIGINAL), SWIN_KEYS, 192),
    "convnext_l": (convnext_large, CONVNEXT_KEYS, 192),
}
DILATED = partial(resnet50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
TINY: dict[str, Any] = {"embed": 192, "heads": 6}
SMALL: dict[str, Any] = {"embed": 384, "heads": 6}
BASE: dict[str, Any] = {"embed": 768, "heads": 12}
LARGE: dict[str, Any] = {"embed": 1024, "heads": 16}


def _variant(name: str, *, keys: Keys = PROJECTION_KEYS, **options: Any) -> Variant:
    backbone, backbone_keys, width = BACKBONES[name]
    return Variant(
        partial(_network, **{"backbone": backbone, "width": width, **options}),
        keys=(*backbone_keys, *keys, *KEYS),
        size=(512, 1024),
        paper="Efficient Cross-information Fusion Decoder",
        multiple=4,
    )


VARIANTS = {
    **{f"ecfd_tiny_{name}": _variant(name, **TINY) for name in BACKBONES},
    **{f"ecfd_small_{name}": _variant(name, **SMALL) for name in BACKBONES},
    "ecfd_base_r50": _variant("r50", **BASE),
    "ecfd_large_r50": _variant("r50", **LARGE),
    "ecfd_tiny_r50_context": _variant("r50", add_context=True, **TINY),
    "ecfd_patch4_r50": _variant("r50", fused=False, **TINY),
    "ecfd_fpn_r50": _variant("r50", keys=PLAIN_PROJECTION_KEYS, decoder=PlainDecoder, embed=192),
    "ecfd_generalfpn_r50": _variant("r50", decoder=ContextDecoder, **TINY),
    "ecfd_general_r50": _variant(
        "r50", backbone=DILATED, decoder=ContextDecoder, fused=False, **TINY
    ),
    "ecfd_spatial_r50": _variant("r50", decoder=SpatialDecoder, **TINY),
}
