"""SenFormer: class embeddings that query a pyramid, an ensemble of one learner per level.

Bousselham et al., "Efficient Self-Ensemble for Semantic Segmentation", BMVC 2022. Reference
implementation: github.com/WalBouss/SenFormer.

In the variants named `senformer_*` each learner applies one block six times ("weight sharing"); in
`senformer_nws_*` it has six of them. The released code knows the second form alone, and writes the
first as six equal blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Block, Groups, Mlp, RelativeBias, attend, split_heads, window_plan
from ..backbones.resnet import deep_stem_keys, resnet50, stage_keys
from ..backbones.swin import (
    UNFOLDED,
    UNFOLDED_KEYS,
    swin_base,
    swin_large,
    swin_small,
    swin_tiny,
    toolbox_block_keys,
)
from ..heads import AUXILIARY_KEYS, EncoderDecoder, Laterals, fcn_head
from ..layers import keep_unused, resize, to_map, to_tokens
from ..variant import Keys, Variant
from .senformer_fused import StackedLearners, remove_shared
from .senformer_older import rename_older_keys

WIDTH, HEADS, BLOCKS = 512, 8, 6
STRIDES = (4, 8, 16, 32)  # of the levels, a learner for each


class FPNT(nn.Module):
    """FPNT: a feature pyramid whose output layers are Swin blocks without a shift.

    The backbone's four maps -> four maps of 512 channels, at the same sizes.
    """

    def __init__(self, inputs: Sequence[int], window: int = 7):
        super().__init__()
        self.laterals = Laterals(inputs, WIDTH)
        groups = Groups(partial(window_plan, window=window))
        self.outputs = nn.ModuleList(
            Block(WIDTH, HEADS, groups, RelativeBias(window, HEADS)) for _ in inputs
        )
        for name, values in self.outputs.named_parameters():
            if name.endswith(("table", "attention.qkv.bias")):
                nn.init.zeros_(values)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        maps = []
        for output, x in zip(self.outputs, self.laterals(features), strict=True):
            size = (x.shape[-2], x.shape[-1])
            maps.append(to_map(output(to_tokens(x), size), size))
        return maps


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


class SelfEnsemble(nn.Module):
    """The pyramid, its learners, and the sum of their class probabilities.

    The backbone's four maps -> (N, classes, H/4, W/4), which adds up to 4 over the classes.
    """

    def __init__(self, inputs: Sequence[int], num_classes: int, shared: bool):
        super().__init__()
        self.neck = FPNT(inputs)
        self.learners = nn.ModuleList(Learner(num_classes, shared) for _ in inputs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = zip(self.learners, self.neck(features), strict=True)
        return ensemble(at_finest([learner.contrasts(x) for learner, x in maps]))  # type: ignore[operator]

    def votes(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Each learner's logits, all at the finest map's size."""
        maps = zip(self.learners, self.neck(features), strict=True)
        return at_finest([learner(x) for learner, x in maps])

    def to_deployed(self) -> DeployedEnsemble:
        return DeployedEnsemble(self)


class DeployedEnsemble(nn.Module):
    """With the learners side by side."""

    def __init__(self, plain: SelfEnsemble):
        super().__init__()
        self.neck = plain.neck
        learners: list[Learner] = list(plain.learners)  # type: ignore[arg-type]
        self.learners = StackedLearners(learners, BLOCKS // len(learners[0].blocks))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        maps = self.neck(features)
        logits = self.learners([to_tokens(x) for x in maps])
        sizes = [x.shape[-2:] for x in maps]
        each = [y.unflatten(2, size) for y, size in zip(logits, sizes, strict=True)]
        return ensemble(at_finest(each))


def at_finest(maps: Sequence[Tensor]) -> list[Tensor]:
    """All enlarged to the first one's size."""
    return [maps[0], *(resize(x, like=maps[0]) for x in maps[1:])]


def ensemble(votes: Sequence[Tensor]) -> Tensor:
    """The sum of the class probabilities, from logits."""
    first, *others = (vote.float().softmax(dim=1) for vote in votes)
    return sum(others, first).to(votes[0].dtype)


class SenFormer(EncoderDecoder):
    """image (N, 3, H, W) -> (N, classes, H/4, W/4): probabilities, summed over the four learners.

    In train mode also each learner's logits as "stride4" ... "stride32", at the same size.
    """

    head: SelfEnsemble

    def __init__(self, backbone: Any, num_classes: int, shared: bool):
        head = SelfEnsemble(backbone.outputs, num_classes, shared)
        super().__init__(backbone, head, fcn_head(backbone.outputs[2], WIDTH, num_classes))
        self.shared = shared
        self.unused = keep_unused(conv_seg=nn.Conv2d(128, num_classes, 1))

    def forward_auxiliary(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.backbone(image)
        votes = self.head.votes(features)
        extra = {f"stride{stride}": vote for stride, vote in zip(STRIDES, votes, strict=True)}
        extra |= {name: head(features[2]) for name, head in self.extra.items()}
        return ensemble(votes), extra

    def upgrade_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return rename_older_keys(state)

    def convert_state_dict(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Six equal blocks are one shared one."""
        if not self.shared:
            return state
        kept = {}
        for name, value in state.items():
            first = re.sub(r"^(head\.learners\.\d\.blocks)\.[1-5]\.", r"\1.0.", name)
            copy = first != name and first in state and torch.equal(value, state[first])
            if not copy:
                kept[name] = value
        return kept


def _senformer(num_classes: int, backbone: Callable[[], Any], shared: bool) -> SenFormer:
    return SenFormer(backbone(), num_classes, shared)


_LEARNER = ("decode_head.learners.{i}", "head.learners.{i}")
_BLOCK = (f"{_LEARNER[0]}.layers.{{k}}", f"{_LEARNER[1]}.blocks.{{k}}")
KEYS: Keys = (
    ("neck.lateral_convs.{i}.conv", "head.neck.laterals.convs.{i}"),
    *toolbox_block_keys("neck.fpn_swins.{i}.swin_blocks.blocks.0", "head.neck.outputs.{i}"),
    (f"{_LEARNER[0]}.queries", f"{_LEARNER[1]}.queries"),
    (f"{_LEARNER[0]}.norm_features", f"{_LEARNER[1]}.norm_tokens"),
    (f"{_LEARNER[0]}.norm_embs", f"{_LEARNER[1]}.norm_embeddings"),
    (f"{_BLOCK[0]}.cross_attn.to_q", f"{_BLOCK[1]}.cross.query"),
    (f"{_BLOCK[0]}.cross_attn.kv", f"{_BLOCK[1]}.cross.key_value"),
    (f"{_BLOCK[0]}.cross_attn.proj", f"{_BLOCK[1]}.cross.proj"),
    (f"{_BLOCK[0]}.attn.{{part}}", f"{_BLOCK[1]}.attention.{{part}}"),
    (f"{_BLOCK[0]}.mlp.{{part}}", f"{_BLOCK[1]}.mlp.{{part}}"),
    (f"{_BLOCK[0]}.norm{{j}}", f"{_BLOCK[1]}.norm{{j}}"),
    ("decode_head.conv_seg", "unused.conv_seg"),
    *AUXILIARY_KEYS,
)
RESNET_KEYS: Keys = (*deep_stem_keys("backbone.stem"), *stage_keys("backbone."))
BACKBONES: dict[str, tuple[Callable[[], Any], Keys, int]] = {  # and the size it is reported at
    "r50": (resnet50, RESNET_KEYS, 512),
    "r101": (partial(resnet50, depth=101), RESNET_KEYS, 512),
    "swin_t": (partial(swin_tiny, window=7, layout=UNFOLDED), UNFOLDED_KEYS, 512),
    "swin_s": (partial(swin_small, window=7, layout=UNFOLDED), UNFOLDED_KEYS, 512),
    "swin_b": (partial(swin_base, window=12, layout=UNFOLDED), UNFOLDED_KEYS, 640),
    "swin_l": (partial(swin_large, window=12, layout=UNFOLDED), UNFOLDED_KEYS, 640),
}


def _variant(name: str, shared: bool) -> Variant:
    backbone, keys, side = BACKBONES[name]
    return Variant(
        partial(_senformer, backbone=backbone, shared=shared),
        keys=(*keys, *KEYS),
        size=(side, side),
        paper="Bousselham et al., BMVC 2022",
        multiple=4,
    )


# The shared form first: six equal blocks fit both, and mean that one.
VARIANTS = {
    **{f"senformer_{name}": _variant(name, shared=True) for name in BACKBONES},
    **{f"senformer_nws_{name}": _variant(name, shared=False) for name in BACKBONES},
}
