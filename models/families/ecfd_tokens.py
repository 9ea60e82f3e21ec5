"""ECFD's tokens: where context comes from, and how it and spatial tokens refine each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import Constant, bias_of, make_pointwise, resize, to_map, to_tokens
from .ecfd_deformable import Atlas, DeformableAttention, Size

EPS = 1e-6  # of the layer norms


def make_context(inputs: Sequence[int], hidden: int, outputs: int, fused: bool) -> nn.Module:
    """Context from all three maps, else from the deepest alone."""
    return FusedContext(inputs, hidden, outputs) if fused else DeepContext(inputs, outputs)


class FusedContext(nn.Module):
    """Maps at strides 8, 16 and 32 (of the `inputs` channels) as one at stride 16.

    -> (N, outputs, H/16, W/16)
    """

    def __init__(self, inputs: Sequence[int], hidden: int, outputs: int):
        super().__init__()
        fine, middle, deep = inputs
        self.fine = nn.Conv2d(fine, hidden, 1)
        self.middle = nn.Conv2d(middle, hidden, 1)
        # A transposed convolution of kernel 1 is a plain one: kept for the shape of the official
        # weights.
        self.deep = nn.ConvTranspose2d(deep, hidden, 1)
        self.fuse = nn.Conv2d(3 * hidden, outputs, 1)

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        maps = [self.fine(fine), self.middle(middle), self.deep(deep)]
        return self.fuse(torch.cat([resize(x, like=middle) for x in maps], dim=1))

    def to_deployed(self) -> DeployedFusedContext:
        return DeployedFusedContext(self)


class DeployedFusedContext(nn.Module):
    """With the two linear maps of each level merged, at the smaller of the two sizes: a 1x1
    convolution and a bilinear resize commute, and a bias passes through both."""

    def __init__(self, plain: FusedContext):
        super().__init__()
        layers = plain.fine, plain.middle, plain.deep
        weights = [layer.weight.detach().double().flatten(1) for layer in layers]
        weights[2] = weights[2].T  # a transposed convolution's weight is (inputs, outputs)
        fuse = plain.fuse.weight.detach().double().flatten(1)
        parts = fuse.chunk(3, dim=1)
        # In double: a product of two matrices is rounded once, when it is stored.
        merged = [part @ weight for part, weight in zip(parts, weights, strict=True)]
        bias = bias_of(plain.fuse).double()
        for part, layer in zip(parts, layers, strict=True):
            bias = bias + part @ bias_of(layer).double()
        dtype = plain.fuse.weight.dtype
        self.shallow = make_pointwise(torch.cat(merged[:2], dim=1), bias, dtype)
        self.deep = make_pointwise(merged[2], None, dtype)

    def forward(self, fine: Tensor, middle: Tensor, deep: Tensor) -> Tensor:
        shallow = torch.cat([resize(fine, like=middle), middle], dim=1)
        return self.shallow(shallow) + resize(self.deep(deep), like=middle)


class DeepContext(nn.Module):
    """The deepest map alone in place of `FusedContext`, at the middle one's size.

    Three maps as there -> (N, outputs, H/16, W/16)
    """

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
        # The first entry belongs to a class token, which this network does not have.
        self.values = nn.Parameter(torch.zeros(1, 1 + self.crop[0] * self.crop[1], width))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x + resize_positions(self.values, self.crop, *size)

    def init_untrained(self) -> None:
        """Random positions, where training starts from none."""
        nn.init.normal_(self.values, std=0.2)

    def to_deployed(self) -> FixedPositions:
        return FixedPositions(self.values.detach(), self.crop)


class FixedPositions(nn.Module):
    """A PositionEmbedding that is resized once per size."""

    def __init__(self, values: Tensor, crop: Size):
        super().__init__()
        self.resized = Constant(partial(resize_positions, values, crop))

    def forward(self, x: Tensor, size: Size) -> Tensor:
        return x + self.resized(*size, like=x)


def resize_positions(values: Tensor, crop: Size, height: int, width: int) -> Tensor:
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


class TokenAttention(nn.Module):
    """Attention of `queries` (N, Q, C) to `values` (N, V, C), each behind a norm -> (N, Q, C)."""

    def __init__(self, width: int, heads: int, levels: int):
        super().__init__()
        self.query_norm = nn.LayerNorm(width, eps=EPS)
        self.value_norm = nn.LayerNorm(width, eps=EPS)
        self.attention = DeformableAttention(width, heads, levels)

    def attend(
        self, queries: Tensor, values: Tensor, asked: Sequence[Size], read: Sequence[Size]
    ) -> Tensor:
        return self.attention(self.query_norm(queries), self.value_norm(values), asked, read)


class CICM(TokenAttention):
    """CICM: context tokens read the spatial tokens of all three maps. Silent at the start."""

    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, levels=3)
        self.gamma: nn.Parameter | None = nn.Parameter(torch.zeros(width))

    def forward(
        self, queries: Tensor, values: Tensor, asked: Sequence[Size], read: Sequence[Size]
    ) -> Tensor:
        correction = self.attend(queries, values, asked, read)
        return queries + (correction if self.gamma is None else self.gamma * correction)

    def init_untrained(self) -> None:
        """Not silent, as it is where training starts."""
        if self.gamma is not None:
            nn.init.normal_(self.gamma, std=0.2)

    def to_deployed(self) -> CICM:
        """The scale goes into the attention's last linear map."""
        if self.gamma is not None:
            last = self.attention.output
            with torch.no_grad():
                last.weight.mul_(self.gamma[:, None])
                last.bias.mul_(self.gamma)
            self.gamma = None
        return self


class SICM(TokenAttention):
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
    """The context corrected by the spatial tokens, then these by the corrected context.

    context (N, Q, C), spatial (N, V, C) -> the same
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.context = CICM(width, heads)
        self.spatial = SICM(width, heads, levels=1, hidden=width // 2)

    def forward(
        self, context: Tensor, spatial: Tensor, middle: Size, sizes: Sequence[Size]
    ) -> tuple[Tensor, Tensor]:
        context = self.context(context, spatial, [middle], sizes)
        return context, self.spatial(spatial, context, sizes, [middle])
