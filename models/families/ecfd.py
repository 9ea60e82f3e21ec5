"""ECFD: a decoder in which context tokens and spatial tokens refine each other.

"Efficient Cross-information Fusion Decoder for Semantic Segmentation", with its ablations. The
decoder reads a backbone's maps F1 to F4 at strides 4, 8, 16 and 32 (C1 to C4 channels).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypedDict

from ..backbones.convnext import KEYS as CONVNEXT_KEYS
from ..backbones.convnext import ConvNeXt, convnext_large
from ..backbones.resnet import ResNet, deep_stem_keys, resnet50, stage_keys
from ..backbones.swin import ORIGINAL, Swin, swin_large
from ..backbones.swin import ORIGINAL_KEYS as SWIN_KEYS
from ..heads import AUXILIARY_KEYS, EncoderDecoder, fcn_head
from ..variant import (
    BDD100K,
    CITYSCAPES,
    LOG,
    PASCAL_CONTEXT,
    PUBLISHED,
    Keys,
    Score,
    Variant,
    conv_norm_keys,
)
from .ecfd_decoders import ECFD, ContextDecoder, Decoder, PlainDecoder, SpatialDecoder


def _network(
    num_classes: int,
    backbone: Callable[[], ResNet | Swin | ConvNeXt],
    decoder: Callable[..., Decoder] = ECFD,
    **options: object,
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
    *conv_norm_keys("decode_head.clgd.conv_low", "head.gated.details", ("0", "1")),
    ("decode_head.clgd.conv_att.0", "head.gated.gate"),
    *conv_norm_keys("decode_head.clgd.conv_cat", "head.gated.join", ("0", "1")),
    *conv_norm_keys("decode_head.clgd.conv_out", "head.gated.smooth", ("0", "1")),
    *conv_norm_keys("decode_head.fpn.c4conv", "head.pyramid.deepest", ("0", "1")),
    *conv_norm_keys("decode_head.fpn.fpn_lateral.{i}", "head.pyramid.laterals.{i}", ("0", "1")),
    *conv_norm_keys("decode_head.fpn.fpn_out.{i}", "head.pyramid.outputs.{i}", ("0", "1")),
    *conv_norm_keys("decode_head.fpn.conv5", "head.pyramid.fuse", ("0", "1")),
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
Backbone = ResNet | Swin | ConvNeXt
BACKBONES: dict[str, tuple[Callable[[], Backbone], Keys, int]] = {  # and the decoder's width
    "r50": (resnet50, RESNET_KEYS, 256),
    "r101": (partial(resnet50, depth=101), RESNET_KEYS, 256),
    "swin_l": (partial(swin_large, window=7, layout=ORIGINAL), SWIN_KEYS, 192),
    "convnext_l": (convnext_large, CONVNEXT_KEYS, 192),
}
DILATED = partial(resnet50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)


class Tokens(TypedDict):
    """Width of the tokens, and the heads of attention among them."""

    embed: int
    heads: int


TINY: Tokens = {"embed": 192, "heads": 6}
SMALL: Tokens = {"embed": 384, "heads": 6}
BASE: Tokens = {"embed": 768, "heads": 12}
LARGE: Tokens = {"embed": 1024, "heads": 16}


# mIoU in % at one scale and at several: on Cityscapes, Pascal Context and BDD100K.
SCORES: dict[str, list[tuple[float, float]]] = {
    "ecfd_tiny_r50": [(79.91, 81.18), (52.13, 54.10), (62.84, 64.58)],
    "ecfd_small_r50": [(80.14, 81.32), (52.66, 54.27), (62.69, 64.87)],
    "ecfd_tiny_r101": [(80.50, 81.48), (53.80, 55.75), (64.96, 66.57)],
    "ecfd_small_r101": [(80.74, 82.00), (54.3, 56.09), (65.48, 67.32)],
    "ecfd_tiny_swin_l": [(82.67, 83.41), (63.73, 64.94), (67.80, 68.91)],
    "ecfd_small_swin_l": [(83.10, 83.61), (63.36, 64.81), (67.82, 69.13)],
    "ecfd_tiny_convnext_l": [(83.70, 84.44), (62.65, 63.93), (67.23, 67.77)],
    "ecfd_small_convnext_l": [(83.55, 84.42), (63.62, 64.48), (67.62, 67.95)],
}


def _scores(size: str, backbone: str) -> tuple[Score, ...]:
    # The published BDD100K rows of R50 repeat R101's; these are of the logs.
    sources = (PUBLISHED, PUBLISHED, LOG if backbone == "r50" else PUBLISHED)
    pairs = SCORES[f"ecfd_{size}_{backbone}"]
    return tuple(
        Score(data, *pair, source)
        for data, pair, source in zip(
            (CITYSCAPES, PASCAL_CONTEXT, BDD100K), pairs, sources, strict=True
        )
    )


def _logged(miou: float) -> tuple[Score, ...]:
    return (Score(CITYSCAPES, miou, source=LOG),)


def _variant(
    name: str, *, keys: Keys = PROJECTION_KEYS, scores: tuple[Score, ...] = (), **options: Any
) -> Variant:
    backbone, backbone_keys, width = BACKBONES[name]
    return Variant(
        partial(_network, **{"backbone": backbone, "width": width, **options}),
        keys=(*backbone_keys, *keys, *KEYS),
        size=(512, 1024),
        paper="Efficient Cross-information Fusion Decoder",
        reference="the authors'",
        scores=scores,
        multiple=4,
    )


VARIANTS = {
    **{f"ecfd_tiny_{b}": _variant(b, scores=_scores("tiny", b), **TINY) for b in BACKBONES},
    **{f"ecfd_small_{b}": _variant(b, scores=_scores("small", b), **SMALL) for b in BACKBONES},
    "ecfd_base_r50": _variant("r50", scores=_logged(79.68), **BASE),
    "ecfd_large_r50": _variant("r50", scores=_logged(80.25), **LARGE),
    "ecfd_tiny_r50_context": _variant("r50", add_context=True, **TINY),
    "ecfd_patch4_r50": _variant("r50", fused=False, **TINY),
    "ecfd_fpn_r50": _variant(
        "r50", keys=PLAIN_PROJECTION_KEYS, scores=_logged(64.41), decoder=PlainDecoder, embed=192
    ),
    "ecfd_generalfpn_r50": _variant("r50", scores=_logged(77.79), decoder=ContextDecoder, **TINY),
    "ecfd_general_r50": _variant(
        "r50", backbone=DILATED, decoder=ContextDecoder, fused=False, **TINY
    ),
    "ecfd_spatial_r50": _variant("r50", scores=_logged(78.74), decoder=SpatialDecoder, **TINY),
}
