"""Self-attention within groups of a map's tokens: windows, shifted windows, strided groups.

Which token goes to which group is a permutation that depends on the map's size alone. It is
computed once, as an index; padding, rolling, partitioning and reversing are then one gather each
way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .layers import Constant, DropPath

Index = NDArray[np.int64]


@dataclass(frozen=True)
class GroupPlan:
    """How a map's tokens, numbered row by row, are grouped.

    tokens (groups, rows * columns): the token at each place; the map's token count stands for a
    padded zero. shape: (rows, columns) of a group. hidden: which keys a query must not see, of a
    shape that broadcasts to (groups, heads, queries, keys); their scores get `penalty`.
    """

    tokens: Index
    shape: tuple[int, int]
    hidden: NDArray[np.bool_] | None = None
    penalty: float = 0.0

    @property
    def trivial(self) -> bool:
        """One group of all tokens in their order."""
        return len(self.tokens) == 1 and bool((self.tokens[0] == np.arange(self.tokens.size)).all())


def group(
    height: int, width: int, rows: int, columns: int, interval: int = 1, shift: int = 0
) -> Index:
    """Groups of rows x columns tokens that are `interval` apart: (groups, rows * columns).

    The map is padded at the bottom and right to whole groups, then rolled by `shift` up and left.
    """
    down = -(-height // (rows * interval))
    across = -(-width // (columns * interval))
    places = np.full((down * rows * interval, across * columns * interval), height * width)
    places[:height, :width] = np.arange(height * width).reshape(height, width)
    places = np.roll(places, (-shift, -shift), (0, 1))
    cells = places.reshape(down, rows, interval, across, columns, interval)
    # The two `interval` axes number groups, not tokens: tokens that far apart share a group.
    return cells.transpose(0, 3, 2, 5, 1, 4).reshape(-1, rows * columns).astype(np.int64)


Planner = Callable[[int, int], GroupPlan]  # (height, width) of a map -> its plan


def _order(planner: Planner, height: int, width: int) -> Tensor:
    return torch.from_numpy(planner(height, width).tokens.reshape(-1))


def _places(planner: Planner, height: int, width: int) -> Tensor:
    """Where each token of the map is found in the groups."""
    tokens = planner(height, width).tokens.reshape(-1)
    # Padded places hold the token count, the largest number: sorting puts them last, to be cut off.
    places = np.argsort(tokens, kind="stable")[: height * width]
    return torch.from_numpy(places.astype(np.int64))


def _penalty(planner: Planner, height: int, width: int) -> Tensor:
    plan = planner(height, width)
    assert plan.hidden is not None
    return torch.from_numpy(np.where(plan.hidden, np.float32(plan.penalty), np.float32(0)))


class Groups(nn.Module):
    """Cuts a map's tokens into groups by `planner`, and puts them back. One serves all blocks of a
    stage that group alike, so that its constants exist once."""

    def __init__(self, planner: Planner):
        super().__init__()
        self.planner = planner
        self.order = Constant(partial(_order, planner))
        self.places = Constant(partial(_places, planner))
        self.penalty = Constant(partial(_penalty, planner))

    def shape(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of a group in a map of `size` (height, width)."""
        return self.planner(*size).shape

    def split(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Tokens (N, height * width, C) -> (N * groups, tokens of a group, C)."""
        plan = self.planner(*size)
        if plan.trivial:  # a gather that moves nothing would still be one in the graph
            return x
        # Padding is one zero token at the end, which every padded place points to.
        if plan.tokens.max() == x.shape[1]:
            x = torch.cat([x, x.new_zeros(x.shape[0], 1, x.shape[2])], dim=1)
        x = x.index_select(1, self.order(*size, like=x))
        return x.reshape(-1, plan.tokens.shape[1], x.shape[2])

    def join(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(N * groups, tokens of a group, C) -> (N, height * width, C), padding dropped."""
        plan = self.planner(*size)
        # As in `split`, which left the tokens where they were.
        if plan.trivial:
            return x
        x = x.reshape(-1, plan.tokens.size, x.shape[2])
        return x.index_select(1, self.places(*size, like=x))

    def penalize(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Adds the plan's penalty to scores (N * groups, heads, queries, keys)."""
        plan = self.planner(*size)
        if plan.hidden is None:
            return scores
        penalty = self.penalty(*size, like=scores)
        if len(scores) == len(plan.tokens):  # batch 1: no axis has to be split off and put back
            return scores + penalty
        return (scores.unflatten(0, (-1, len(plan.tokens))) + penalty).flatten(0, 1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(N, tokens, heads * C) -> (N, heads, tokens, C)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def weigh(scores: Tensor, value: Tensor) -> Tensor:
    """Values added up by the softmax of scores (N, heads, queries, keys), taken in float32."""
    # Half precision would flatten the largest scores.
    return scores.float().softmax(dim=-1).to(value.dtype) @ value


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled queries to keys and values, all (N, heads, tokens, C)."""
    return weigh(query @ key.transpose(-2, -1), value)


class GroupAttention(nn.Module):
    """Multi-head attention inside groups: tokens (N, height * width, C) -> the same.

    bias: a module that gives (heads, queries, keys) for a group of (rows, columns) tokens.
    """

    def __init__(self, width: int, heads: int, groups: Groups, bias: nn.Module):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.groups, self.bias = groups, bias

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.groups.split(x, size)
        # qkv's rows are all queries, then all keys, then all values: heads of a kind are neighbors.
        query, key, value = split_heads(self.qkv(x), 3 * self.heads).chunk(3, dim=1)
        # 1 in the deployed form, which would else carry a multiplication that does nothing.
        if self.scale != 1:
            query = query * self.scale
        scores = query @ key.transpose(-2, -1)
        scores = self.groups.penalize(scores + self.bias(*self.groups.shape(size)), size)
        attended = weigh(scores, value)
        return self.output(attended.transpose(1, 2).flatten(2), size)

    def output(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Heads' results (N * groups, tokens of a group, C) -> (N, height * width, C)."""
        return self.groups.join(self.proj(x), size)

    def to_deployed(self) -> DeployedGroupAttention:
        return DeployedGroupAttention(self)


class DeployedGroupAttention(GroupAttention):
    """With the scale in the queries' weights, and without the output map of padded tokens."""

    def __init__(self, plain: GroupAttention):
        nn.Module.__init__(self)
        self.heads, self.scale = plain.heads, 1.0
        self.qkv, self.proj = plain.qkv, plain.proj
        self.groups, self.bias = plain.groups, plain.bias
        width = plain.proj.in_features
        # Queries come first in qkv's rows: their scale costs nothing inside the weights.
        with torch.no_grad():
            self.qkv.weight[:width] *= plain.scale
            self.qkv.bias[:width] *= plain.scale

    def output(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        # Per token, so that it may follow the joining, which has dropped the padded tokens by then.
        return self.proj(self.groups.join(x, size))


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between: (..., C) -> (..., C)."""

    def __init__(self, width: int, hidden: int, linear: type[nn.Linear] = nn.Linear):
        super().__init__()
        self.fc1 = linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention, then an MLP of ratio 4, each behind its norm and beside a shortcut.

    Tokens (N, height * width, C) -> the same.
    """

    def __init__(
        self, width: int, heads: int, groups: Groups, bias: nn.Module, drop_path: float = 0.0
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = GroupAttention(width, heads, groups, bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))


# Asked for by split, join, shape and penalize of every block, always with the same few sizes.
@lru_cache(maxsize=64)
def window_plan(height: int, width: int, window: int, shift: int = 0) -> GroupPlan:
    """Windows of window x window tokens, shifted up and left on the padded map.

    Padded tokens take part. The shift brings the map's opposite edges together: scores between such
    regions get a penalty.
    """
    shape = (window, window)
    tokens = group(height, width, window, window, shift=shift)
    if not shift:
        return GroupPlan(tokens, shape)
    padded = -(-height // window) * window, -(-width // window) * window
    # After the roll each axis has three stretches: untouched, the last window's own, and what came
    # around the edge. Tokens of different stretches were no neighbors.
    down, across = (
        np.searchsorted([side - window, side - shift], np.arange(side), "right") for side in padded
    )
    regions = down[:, None] * 3 + across
    by_window = regions.reshape(-1)[group(padded[0], padded[1], window, window)]
    # By broadcasting over heads, None in the middle: a shift hides the same keys from all of them.
    hidden = by_window[:, None, :, None] != by_window[:, None, None, :]
    # Not minus infinity: the reference adds -100, and weights are held against its outputs.
    return GroupPlan(tokens, shape, hidden, penalty=-100)


def relative_index(rows: int, columns: int) -> Index:
    """(tokens, tokens): for each query and key of a group, the number of their offset, counted row
    by row over the (2 rows - 1) x (2 columns - 1) offsets query - key."""
    y, x = (axis.reshape(-1) for axis in np.mgrid[:rows, :columns])
    # Offsets run from 1 - rows to rows - 1: moved to begin at 0, to be rows of the table.
    down = y[:, None] - y[None] + rows - 1
    across = x[:, None] - x[None] + columns - 1
    return (down * (2 * columns - 1) + across).astype(np.int64)


def spread_bias(table: Tensor, index: Tensor) -> Tensor:
    """table (offsets, heads), index (tokens, tokens) -> (heads, tokens, tokens)."""
    return table.index_select(0, index.flatten()).unflatten(0, index.shape).permute(2, 0, 1)


class RelativeBias(nn.Module):
    """A learned bias per head and offset inside a window: (window, window) -> (heads, n, n)."""

    relative_position_index: Tensor

    def __init__(self, window: int, heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        index = torch.from_numpy(relative_index(window, window))
        self.register_buffer("relative_position_index", index)
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, rows: int, columns: int) -> Tensor:
        return spread_bias(self.table, self.relative_position_index)

    def to_deployed(self) -> FixedBias:
        return FixedBias(spread_bias(self.table.detach(), self.relative_position_index))


def resize_bias_table(table: Tensor, offsets: int) -> Tensor:
    """A bias table (offsets, heads) of another window, bicubically brought to this one's."""
    if len(table) == offsets:
        return table
    old, new = (round(count**0.5) for count in (len(table), offsets))
    image = table.T.unflatten(1, (old, old))[None]
    resized = F.interpolate(image, (new, new), mode="bicubic", align_corners=False)
    return resized[0].flatten(1).T


class FixedBias(nn.Module):
    """A bias (heads, n, n) that is the same for every map."""

    bias: Tensor

    def __init__(self, bias: Tensor):
        super().__init__()
        self.register_buffer("bias", bias.contiguous())

    def forward(self, rows: int, columns: int) -> Tensor:
        return self.bias
