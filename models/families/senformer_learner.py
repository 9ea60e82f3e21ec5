"""SenFormer's learners: class embeddings that read a map's tokens and become its classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Mlp, attend, split_heads
from ..layers import to_tokens

WIDTH, HEADS, BLOCKS = 512, 8, 6


class ClassLinear(nn.Linear):
    """A linear map of class embeddings (N, classes, C), of their mean and of the rest apart.

    The mean is ten times as large as what tells classes apart, and so would be its rounding errors,
    other ones for each class. A deployed network has plain maps.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=1, keepdim=True)
        return F.linear(x - mean, self.weight) + F.linear(mean, self.weight, self.bias)


class EmbeddingAttention(nn.Module):
    """Multi-head attention of class embeddings: (N, Q, C) -> (N, Q, C)."""

    heads: int = HEADS
    scale: float = (WIDTH // HEADS) ** -0.5

    def __init__(self) -> None:
        super().__init__()
        self.proj = ClassLinear(WIDTH, WIDTH)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """All by head."""
        return self.proj(attend(query * self.scale, key, value).transpose(1, 2).flatten(2))


class SelfAttention(EmbeddingAttention):
    """Of the class embeddings to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = ClassLinear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(*split_heads(self.qkv(x), 3 * HEADS).chunk(3, dim=1))


class CrossAttention(EmbeddingAttention):
    """Of the class embeddings to a map's tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query = ClassLinear(WIDTH, WIDTH)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        return self.attend(split_heads(self.query(x), HEADS), *keys_values)

    def keys_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        key, value = split_heads(self.key_value(tokens), 2 * HEADS).chunk(2, dim=1)
        return key, value


class DecoderBlock(nn.Module):
    """Class embeddings (N, classes, C) read the tokens, then each other, then pass an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.cross = nn.LayerNorm(WIDTH), CrossAttention()
        self.norm2, self.attention = nn.LayerNorm(WIDTH), SelfAttention()
        self.norm3, self.mlp = nn.LayerNorm(WIDTH), Mlp(WIDTH, 4 * WIDTH, ClassLinear)

    def forward(self, x: Tensor, keys_values: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.cross(self.norm1(x), keys_values)
        x = x + self.attention(self.norm2(x))
        return x + self.mlp(self.norm3(x))


class Learner(nn.Module):
    """A segmentation head of its own: a map (N, C, h, w) -> logits (N, classes, h, w).

    shared: one block, applied six times, in place of six.
    """

    def __init__(self, num_classes: int, shared: bool):
        super().__init__()
        self.queries = nn.Parameter(torch.zeros(1, num_classes, WIDTH))
        self.norm_tokens = nn.LayerNorm(WIDTH)
        self.blocks = nn.ModuleList(DecoderBlock() for _ in range(1 if shared else BLOCKS))
        self.norm_embeddings = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm_tokens(to_tokens(x))
        # Tokens and embeddings meet without a map between: the classes are the classifier.
        logits = self.classes(tokens) @ tokens.transpose(1, 2)
        return logits.unflatten(2, x.shape[-2:])

    def contrasts(self, x: Tensor) -> Tensor:
        """The logits less what all classes share, which is nothing to their softmax."""
        tokens = self.norm_tokens(to_tokens(x))
        logits = remove_shared(self.classes(tokens)) @ tokens.transpose(1, 2)
        return logits.unflatten(2, x.shape[-2:])

    def classes(self, tokens: Tensor) -> Tensor:
        """Class embeddings (N, classes, C) after all blocks; a shared one reads the tokens anew."""
        x = self.queries.expand(len(tokens), -1, -1)
        for i in range(BLOCKS):
            block = self.blocks[i % len(self.blocks)]
            x = block(x, block.cross.keys_values(tokens))  # type: ignore[union-attr, operator]
        return self.norm_embeddings(x)

    def init_untrained(self) -> None:
        """Random classes that differ: where training starts, all are the same. Tokens and classes
        are both normed, so that their products would be far larger than trained logits."""
        nn.init.normal_(self.queries)
        nn.init.constant_(self.norm_embeddings.weight, WIDTH**-0.5)


def remove_shared(embeddings: Tensor) -> Tensor:
    """Class embeddings (N, classes, C) less their mean over the classes.

    What all classes share, softmax takes out again; in the logits it is most of their size, and
    would leave fewer digits for what tells the classes apart.
    """
    return embeddings - embeddings.mean(dim=1, keepdim=True)
