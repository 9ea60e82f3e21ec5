"""SenFormer checkpoints by the names that its author used before the release."""

from __future__ import annotations

import re

from torch import Tensor

from ..backbones.swin import unfold_layout

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
    """`state` by the released names, and its Swin in the released layout."""
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
