"""SenFormer: class embeddings query a feature pyramid; an ensemble of one learner per level.

Bousselham et al., "Efficient Self-Ensemble for Semantic Segmentation", BMVC 2022. Reference
implementation: github.com/WalBouss/SenFormer.

In the variants named `senformer_*` each learner applies one block six times ("weight sharing"); in
`senformer_nws_*` it has six of them. The released code has only the second form, and saves the
first as six equal blocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..attention import Block, Groups, RelativeBias, window_plan
from ..backbones.resnet import ResNet, deep_stem_keys, resnet50, stage_keys
from ..backbones.swin import (
    UNFOLDED,
    UNFOLDED_KEYS,
    Swin,
    swin_base,
    swin_large,
    swin_small,
    swin_tiny,
    toolbox_block_keys,
    unfold_layout,
)
from ..heads import AUXILIARY_KEYS, EncoderDecoder, Laterals, fcn_head
from ..layers import keep_unused, resize, to_map, to_tokens
from ..variant import ADE20K, CITYSCAPES, COCO_STUFF, PASCAL_CONTEXT, Keys, Score, Variant
from .senformer_fused import StackedLearners
from .senformer_learner import BLOCKS, HEADS, WIDTH, Learner

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
        # Contrasts, not logits: softmax takes out what all classes share, and what is left keeps
        # more of its digits.
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

    def __init__(self, backbone: ResNet | Swin, num_classes: int, shared: bool):
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
            # Only values that are equal bit for bit: a checkpoint of six trained blocks must not
            # pass.
            copy = first != name and first in state and torch.equal(value, state[first])
            if not copy:
                kept[name] = value
        return kept


_SWIN = r"^(backbone\.stages\.\d+\.blocks\.\d+|neck\.fpn_swins\.\d+\.swin_blocks\.blocks\.\d+)"
OLDER = (  # applied one after another; a released name stays as it is
    (r"^decode_head\.scale_heads\.", "decode_head.learners."),
    (r"\.norm_queriesPost\.", ".norm_embs."),
    (r"^backbone\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"^backbone\.layers\.", "backbone.stages."),
    (rf"{_SWIN}\.attn\.(?!w_msa\.)", r"\1.attn.w_msa."),
    (rf"{_SWIN}\.mlp\.fc1\.", r"\1.ffn.layers.0.0."),
    (rf"{_SWIN}\.mlp\.fc2\.", r"\1.ffn.layers.1."),
)
DROPPED = ".norm_queriesPre."
_MERGING = re.compile(r"^backbone\.layers\.\d+\.downsample\.")


def rename_older_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict by the names that the author used before the release, in the released ones, and
    its Swin in the released layout."""
    renamed = {}
    for name, value in state.items():
        if DROPPED in name:
            continue
        if _MERGING.match(name):
            value = unfold_layout(value)
        for older, released in OLDER:
            name = re.sub(older, released, name)
        renamed[name] = value
    return renamed


def _senformer(num_classes: int, backbone: Callable[[], ResNet | Swin], shared: bool) -> SenFormer:
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
# Keys, and the size that it is reported at.
BACKBONES: dict[str, tuple[Callable[[], ResNet | Swin], Keys, int]] = {
    "r50": (resnet50, RESNET_KEYS, 512),
    "r101": (partial(resnet50, depth=101), RESNET_KEYS, 512),
    "swin_t": (partial(swin_tiny, window=7, layout=UNFOLDED), UNFOLDED_KEYS, 512),
    "swin_s": (partial(swin_small, window=7, layout=UNFOLDED), UNFOLDED_KEYS, 512),
    "swin_b": (partial(swin_base, window=12, layout=UNFOLDED), UNFOLDED_KEYS, 640),
    "swin_l": (partial(swin_large, window=12, layout=UNFOLDED), UNFOLDED_KEYS, 640),
}


# mIoU in % at one scale and at several: on ADE20K, COCO-Stuff 10K, Pascal Context, Cityscapes.
SCORES: dict[str, list[tuple[float, float | None]]] = {
    "senformer_r50": [(44.38, 45.2), (40.0, 41.3), (53.2, 54.3), (78.8, 80.1)],
    "senformer_r101": [(46.93, 47.9), (41.0, 42.1), (54.6, 56.6), (79.9, 81.4)],
    "senformer_swin_t": [(46.0, None)],
    "senformer_swin_s": [(49.2, None)],
    "senformer_swin_b": [(52.2, None)],
    "senformer_swin_l": [(53.1, None), (49.8, 51.5), (63.1, 64.5), (82.8, 84.0)],
    "senformer_nws_r50": [(44.6, 45.6), (39.0, 39.7), (53.2, 54.3), (78.8, 80.1)],
    "senformer_nws_r101": [(46.5, 47.0), (39.6, 40.6), (55.1, 56.6), (80.3, 81.4)],
    "senformer_nws_swin_t": [(46.0, 46.4)],
    "senformer_nws_swin_s": [(49.2, 50.4)],
    "senformer_nws_swin_b": [(51.8, 53.2)],
    "senformer_nws_swin_l": [(53.1, 54.2), (49.1, 50.1), (62.4, 64.0), (82.2, 83.3)],
}


def _variant(name: str) -> Variant:
    backbone, keys, side = BACKBONES[name.removeprefix("senformer_").removeprefix("nws_")]
    data = (ADE20K, COCO_STUFF, PASCAL_CONTEXT, CITYSCAPES)
    return Variant(
        partial(_senformer, backbone=backbone, shared="nws" not in name),
        keys=(*keys, *KEYS),
        size=(side, side),
        paper="Bousselham et al., BMVC 2022",
        reference="github.com/WalBouss/SenFormer",
        license="MIT",
        scores=tuple(Score(on, *pair) for on, pair in zip(data, SCORES[name], strict=False)),
        classes=150,
        multiple=4,
    )


# The shared form first: six equal blocks fit both, and mean that one.
VARIANTS = {name: _variant(name) for name in SCORES}
