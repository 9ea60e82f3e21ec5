"""SenFormer's learners side by side: the work on their class embeddings as batched products.

The class embeddings of all learners have one shape, whatever the map they read, so that a linear
map of all of them is one product with a stack of matrices. Tensors are (learners * N, classes, C),
learner by learner.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import attend, split_heads
from .senformer_learner import HEADS, DecoderBlock, Learner, remove_shared


class StackedLinear(nn.Module):
    """A linear map for each learner: (learners * N, Q, inputs) -> (learners * N, Q, outputs).

    norms: layer norms before the maps, whose scale and shift are taken in; the input is then what
    `normalize` gives.
    """

    def __init__(self, maps: Sequence[nn.Linear], norms: Sequence[nn.LayerNorm] | None = None):
        super().__init__()
        weight = torch.stack([each.weight.detach().T for each in maps])
        bias = torch.stack([each.bias.detach()[None] for each in maps])
        if norms is not None:
            scale, shift = (
                torch.stack([getattr(norm, name).detach() for norm in norms])
                for name in ("weight", "bias")
            )
            # Before the scale is multiplied in: the shift comes after it in the norm.
            bias = bias + shift[:, None] @ weight
            weight = scale[:, :, None] * weight
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        stacked = x.reshape(len(self.weight), -1, x.shape[-1]) @ self.weight + self.bias
        return stacked.reshape(*x.shape[:-1], -1)

    def scale(self, outputs: int, factor: float) -> StackedLinear:
        """Multiply the first `outputs` results, by a factor that later work then leaves out."""
        with torch.no_grad():
            self.weight[..., :outputs] *= factor
            self.bias[..., :outputs] *= factor
        return self


def normalize(x: Tensor) -> Tensor:
    """Layer norm without scale and shift."""
    return F.layer_norm(x, x.shape[-1:])


class StackedBlock(nn.Module):
    """A decoder block of each learner. keys_values: of each learner's tokens, by head."""

    def __init__(self, blocks: Sequence[DecoderBlock]):
        super().__init__()
        self.heads = blocks[0].cross.heads
        width, factor = blocks[0].cross.proj.out_features, blocks[0].cross.scale
        norms = [[getattr(block, f"norm{i}") for block in blocks] for i in (1, 2, 3)]
        self.query = StackedLinear([b.cross.query for b in blocks], norms[0]).scale(width, factor)
        self.proj = StackedLinear([b.cross.proj for b in blocks])
        self.qkv = StackedLinear([b.attention.qkv for b in blocks], norms[1]).scale(width, factor)
        self.self_proj = StackedLinear([b.attention.proj for b in blocks])
        self.fc1 = StackedLinear([b.mlp.fc1 for b in blocks], norms[2])
        self.fc2 = StackedLinear([b.mlp.fc2 for b in blocks])

    def forward(self, x: Tensor, keys_values: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        x = x + self.proj(self.read(split_heads(self.query(normalize(x)), self.heads), keys_values))
        query, key, value = split_heads(self.qkv(normalize(x)), 3 * self.heads).chunk(3, dim=1)
        x = x + self.self_proj(attend(query, key, value).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(normalize(x))))

    def read(self, queries: Tensor, keys_values: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Each learner's queries, by head, read its own tokens."""
        parts = queries.chunk(len(keys_values))
        read = [attend(query, *pair) for query, pair in zip(parts, keys_values, strict=True)]
        return torch.cat(read).transpose(1, 2).flatten(2)


class StackedLearners(nn.Module):
    """Maps, one per learner -> their logits (N, classes, h, w), less the part all classes share.

    A block that is applied more than once makes its keys and values once.
    """

    def __init__(self, learners: Sequence[Learner], applied: int):
        super().__init__()
        self.applied = applied
        self.norms = nn.ModuleList(learner.norm_tokens for learner in learners)
        self.queries = nn.Parameter(
            torch.cat([learner.queries.detach() for learner in learners]), requires_grad=False
        )
        blocks = list(zip(*(learner.blocks for learner in learners), strict=True))
        self.blocks = nn.ModuleList(StackedBlock(each) for each in blocks)
        self.sources = nn.ModuleList(
            nn.ModuleList(block.cross.key_value for block in each) for each in blocks
        )
        scale = torch.stack([learner.norm_embeddings.weight.detach()[None] for learner in learners])
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """tokens of each map (N, h * w, C) -> logits (N, classes, h * w) of each."""
        tokens = [norm(x) for norm, x in zip(self.norms, tokens, strict=True)]
        n = len(tokens[0])
        x = self.queries.repeat_interleave(n, dim=0) if n > 1 else self.queries
        for block, sources in zip(self.blocks, self.sources, strict=True):
            # Outside of the loop: a shared block reads the same tokens six times.
            pairs = self.keys_values(sources, tokens)  # type: ignore[arg-type]
            for _ in range(self.applied):
                x = block(x, pairs)
        classes = remove_shared(self.apply_scale(normalize(x))).chunk(len(tokens))
        return [c @ token.transpose(1, 2) for c, token in zip(classes, tokens, strict=True)]

    def keys_values(
        self, sources: nn.ModuleList, tokens: Sequence[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        both = (
            split_heads(source(x), 2 * HEADS) for source, x in zip(sources, tokens, strict=True)
        )
        return [(key, value) for key, value in (each.chunk(2, dim=1) for each in both)]

    def apply_scale(self, x: Tensor) -> Tensor:
        """By the last norm's scale. Its shift moves all classes equally, and is dropped later."""
        return (x.reshape(len(self.scale), -1, x.shape[-1]) * self.scale).reshape(x.shape)
