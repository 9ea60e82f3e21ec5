"""Mix Transformer: attention whose keys and values come from a smaller map.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..attention import attend, split_heads
from ..layers import DropPath, init_narrow, to_map, to_tokens
from ..variant import Keys

# The reference gives this epsilon to the norms of blocks and outputs alone; those of embeddings and
# of reduced maps keep PyTorch's.
BlockNorm = partial(nn.LayerNorm, eps=1e-6)


class OverlappedEmbedding(nn.Module):
    """A strided convolution and a norm: map (N, inputs, H, W) -> tokens (N, h * w, width)."""

    def __init__(self, inputs: int, width: int, kernel: int, stride: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """The tokens, and (height, width) of the map that they are."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), (x.shape[-2], x.shape[-1])


class ReducedAttention(nn.Module):
    """Attention of all tokens to a map that is `ratio` times as small in height and width.

    Tokens (N, height * width, C) -> the same.
    """

    def __init__(self, width: int, heads: int, ratio: int):
        super().__init__()
        self.heads = heads
        self.scale = (width // heads) ** -0.5
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.reduce = nn.Conv2d(width, width, ratio, ratio) if ratio > 1 else None
        self.norm = nn.LayerNorm(width) if ratio > 1 else None

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        query = split_heads(self.q(x), self.heads)
        if self.scale != 1:  # in the deployed form it is in the weights
            query = query * self.scale
        if self.reduce is not None and self.norm is not None:
            x = self.norm(to_tokens(self.reduce(to_map(x, size))))
        # Keys' rows come before values': all heads of a kind are neighbors.
        key, value = split_heads(self.kv(x), 2 * self.heads).chunk(2, dim=1)
        return self.proj(attend(query, key, value).transpose(1, 2).flatten(2))

    def to_deployed(self) -> ReducedAttention:
        """With the scale in the queries' weights."""
        with torch.no_grad():
            for values in self.q.parameters():
                values.mul_(self.scale)
        self.scale = 1.0
        return self


class MixMlp(nn.Module):
    """An MLP with a depthwise 3x3 convolution in its middle, which tells tokens where they are:
    tokens (N, height * width, C) -> the same."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = self.depthwise(to_map(self.fc1(x), size))
        return self.fc2(to_tokens(self.act(x)))


class MixBlock(nn.Module):
    """Attention, then the MLP, each behind its norm and beside a shortcut: tokens -> tokens."""

    def __init__(self, width: int, heads: int, ratio: int, drop_path: float):
        super().__init__()
        self.norm1 = BlockNorm(width)
        self.attention = ReducedAttention(width, heads, ratio)
        self.norm2 = BlockNorm(width)
        self.mlp = MixMlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = x + self.drop_path(self.attention(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x), size))


class MixTransformer(nn.Module):
    """image (N, 3, H, W), sides in multiples of 32 -> four maps of the `widths` at strides 4 to 32.

    Args:
        widths, depths: of the four stages.
        drop_path: rate of the last block; the others' rise to it.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int], drop_path: float = 0.1):
        super().__init__()
        self.outputs = list(widths)
        self.embeds = nn.ModuleList(
            OverlappedEmbedding(inputs, width, 3 if i else 7, 2 if i else 4)
            for i, (inputs, width) in enumerate(zip((3, *widths), widths, strict=False))
        )
        # On the CPU even where the network is built on meta, whose values nobody can read.
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        self.stages = nn.ModuleList(
            nn.ModuleList(MixBlock(width, heads, ratio, rates.pop(0)) for _ in range(depth))
            for width, depth, heads, ratio in zip(
                widths, depths, (1, 2, 5, 8), (8, 4, 2, 1), strict=True
            )
        )
        self.norms = nn.ModuleList(BlockNorm(width) for width in widths)
        init_narrow(self, nn.Linear)

    def forward(self, image: Tensor) -> list[Tensor]:
        x, features = image, []
        for embed, stage, norm in zip(self.embeds, self.stages, self.norms, strict=True):
            tokens, size = embed(x)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                tokens = block(tokens, size)
            # Normalized for the next stage too, unlike Swin's outputs.
            x = to_map(norm(tokens), size)
            features.append(x)
        return features


KEYS: Keys = tuple(
    row
    for i in range(4)
    for row in (
        (f"backbone.patch_embed{i + 1}.{{part}}", f"backbone.embeds.{i}.{{part}}"),
        (f"backbone.block{i + 1}.{{j}}.attn.sr", f"backbone.stages.{i}.{{j}}.attention.reduce"),
        (
            f"backbone.block{i + 1}.{{j}}.attn.{{part}}",
            f"backbone.stages.{i}.{{j}}.attention.{{part}}",
        ),
        (
            f"backbone.block{i + 1}.{{j}}.mlp.dwconv.dwconv",
            f"backbone.stages.{i}.{{j}}.mlp.depthwise",
        ),
        (f"backbone.block{i + 1}.{{j}}.mlp.{{part}}", f"backbone.stages.{i}.{{j}}.mlp.{{part}}"),
        (f"backbone.block{i + 1}.{{j}}.{{part}}", f"backbone.stages.{i}.{{j}}.{{part}}"),
        (f"backbone.norm{i + 1}", f"backbone.norms.{i}"),
    )
)
