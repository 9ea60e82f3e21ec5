"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021).

Maps of several scales are laid out in one atlas, so that all points of all scales and heads are
read by one grid sample, and convolutions run over all scales at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..layers import Constant, to_map, to_tokens

Size = tuple[int, int]  # (height, width)


def _pairs(sides: Sequence[int]) -> list[Size]:
    return list(zip(sides[::2], sides[1::2], strict=True))


def corners(sizes: Sequence[Size]) -> tuple[list[Size], Size]:
    """Where each map's first token lies in the atlas (row, column), and the atlas' size.

    The first map is on top; under it, after an empty row, the others side by side, each followed by
    an empty column.
    """
    (height, width), *others = sizes
    places, column = [(0, 0)], 0
    for _, side in others:
        # An empty row and empty columns between maps: what is read just outside of one is zero, as
        # it is at the atlas' own edge.
        places.append((height + 1, column))
        # One column more than the map.
        column += side + 1
    below = 1 + max(side for side, _ in others) if others else 0
    return places, (height + below, max(width, column - 1))


def _order(*sides: int) -> NDArray[np.int64]:
    """(atlas' tokens): the token at each place, the token count where there is none."""
    sizes = _pairs(sides)
    places, whole = corners(sizes)
    atlas = np.full(whole, sum(h * w for h, w in sizes))
    first = 0
    for (row, column), (height, width) in zip(places, sizes, strict=True):
        block = np.arange(first, first + height * width).reshape(height, width)
        atlas[row : row + height, column : column + width] = block
        first += height * width
    return atlas.reshape(-1).astype(np.int64)


def _tokens_to_atlas(*sides: int) -> Tensor:
    return torch.from_numpy(_order(*sides))


def _atlas_to_tokens(*sides: int) -> Tensor:
    """(tokens): where each token lies in the atlas."""
    # Places without a token hold the largest number: sorted last, and cut off.
    places = np.argsort(_order(*sides), kind="stable")
    return torch.from_numpy(places[: sum(h * w for h, w in _pairs(sides))].astype(np.int64))


class Atlas(nn.Module):
    """Tokens of several maps, one map after another, <-> one map that holds all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.places = Constant(_tokens_to_atlas), Constant(_atlas_to_tokens)

    def lay(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(N, tokens, C) -> (N, C, height, width), zeros between the maps."""
        _, whole = corners(sizes)
        if len(sizes) > 1:
            # The zero that every place without a token points to.
            x = torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], dim=1)
            x = x.index_select(1, self.order(*sum(sizes, ()), like=x))
        return to_map(x, whole)

    def take(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        """(N, C, height, width) -> (N, tokens, C)."""
        tokens = to_tokens(x)
        if len(sizes) > 1:
            tokens = tokens.index_select(1, self.places(*sum(sizes, ()), like=tokens))
        return tokens


def _unit(sizes: Sequence[Size]) -> NDArray[np.float64]:
    """What a pixel is in the atlas' coordinates of -1..1: (x, y)."""
    _, (height, width) = corners(sizes)
    return np.array([2 / width, 2 / height])


def _step(*sides: int) -> Tensor:
    return torch.from_numpy(_unit(_pairs(sides)).astype(np.float32))


def _base(levels: int, *sides: int) -> Tensor:
    """The center of each query in each of the `levels` maps: (queries, levels, 1, 2), x first.

    sides: height and width of the maps that are read, then of those that the queries come from.
    """
    read, asked = _pairs(sides)[:levels], _pairs(sides)[levels:]
    centers = []
    for height, width in asked:
        y, x = np.meshgrid(
            (np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij"
        )
        centers.append(np.stack([x, y], axis=-1).reshape(-1, 1, 2))
    scale = np.array([(width, height) for height, width in read])
    first = np.array([(column, row) for row, column in corners(read)[0]])
    places = (np.concatenate(centers) * scale + first) * _unit(read) - 1
    return torch.from_numpy(places[:, :, None].astype(np.float32))


def _bounds(*sides: int) -> Tensor:
    """One pixel outside of each map, where only zeros are read: (2, levels, 1, 2), lowest first."""
    sizes = _pairs(sides)
    first = np.array([(column, row) for row, column in corners(sizes)[0]])
    last = first + np.array([(width, height) for height, width in sizes])
    # A place p is read at pixel p - 0.5: the first zero is at -0.5, the last at the side + 0.5.
    places = np.stack([first - 0.5, last + 0.5]) * _unit(sizes) - 1
    return torch.from_numpy(places[:, :, None].astype(np.float32))


class DeformableAttention(nn.Module):
    """Each query reads a few points of each map, near its own place, and adds them up by weight.

    queries (N, Q, C), values (N, V, C): tokens of the maps of `asked` and `read` sizes, one map
    after another -> (N, Q, C). Offsets are in pixels of the map that is read.
    """

    def __init__(self, width: int, heads: int, levels: int, points: int = 4):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        count = heads * levels * points
        self.offsets = nn.Linear(width, 2 * count)
        self.weights = nn.Linear(width, count)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.atlas = Atlas()
        self.step, self.bounds = Constant(_step), Constant(_bounds)
        self.base = Constant(partial(_base, levels))
        self._initialize()

    def forward(
        self, queries: Tensor, values: Tensor, asked: Sequence[Size], read: Sequence[Size]
    ) -> Tensor:
        n, count, width = queries.shape
        offsets, weights = self.offsets_weights(queries)
        maps = self.atlas.lay(self.value(values), read)
        # Places and weights in float32: half precision cannot tell neighboring pixels apart.
        shape = (n, count, self.heads, self.levels, self.points)
        moves = offsets.float().reshape(*shape, 2).transpose(1, 2).flatten(0, 1)
        sides: tuple[int, ...] = sum(read, ())
        places = moves * self.step(*sides, like=moves)
        places = places + self.base(*sides, *sum(asked, ()), like=moves)
        if self.levels > 1:
            low, high = self.bounds(*sides, like=moves)
            # Beyond that a point would read another map of the atlas; one map alone ends at zeros
            # anyway.
            places = torch.minimum(torch.maximum(places, low), high)
        by_head = maps.float().reshape(n * self.heads, width // self.heads, *maps.shape[-2:])
        # Heads as a batch, points of all maps as one row of the grid: one sample for all of them.
        found = F.grid_sample(by_head, places.flatten(2, 3), align_corners=False)
        weights = weights.float().reshape(n, count, self.heads, -1).transpose(1, 2)
        weights = weights.softmax(dim=-1).flatten(0, 1)
        total = (found * weights[:, None]).sum(dim=-1).to(queries.dtype)
        return self.output(total.reshape(n, width, count).transpose(1, 2))

    def offsets_weights(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Q, C) -> offsets (N, Q, heads * levels * points * 2), weights before softmax."""
        return self.offsets(queries), self.weights(queries)

    def to_deployed(self) -> DeployedDeformableAttention:
        return DeployedDeformableAttention(self)

    def _initialize(self) -> None:
        """Points at 1, 2, 3 and 4 pixels, a direction per head; even weights."""
        angles = [2 * math.pi * head / self.heads for head in range(self.heads)]
        directions = torch.tensor([(math.cos(a), math.sin(a)) for a in angles])
        # On a square about the query, not a circle, as Deformable DETR starts.
        directions = directions / directions.abs().amax(dim=1, keepdim=True)
        reach = torch.arange(1.0, self.points + 1)[None, None, :, None]
        start = (directions[:, None, None] * reach).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.offsets.bias.copy_(start.flatten())
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.weights.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class DeployedDeformableAttention(DeformableAttention):
    """With offsets and weights from one linear map."""

    def __init__(self, plain: DeformableAttention):
        nn.Module.__init__(self)
        self.heads, self.levels, self.points = plain.heads, plain.levels, plain.points
        self.value, self.output, self.atlas = plain.value, plain.output, plain.atlas
        self.step, self.bounds, self.base = plain.step, plain.bounds, plain.base
        self.parts = [plain.offsets.out_features, plain.weights.out_features]
        self.both = nn.Linear(plain.value.in_features, sum(self.parts))
        both = plain.offsets, plain.weights
        self.both.weight = nn.Parameter(torch.cat([layer.weight.detach() for layer in both]))
        self.both.bias = nn.Parameter(torch.cat([layer.bias.detach() for layer in both]))

    def offsets_weights(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        offsets, weights = self.both(queries).split(self.parts, dim=-1)
        return offsets, weights
