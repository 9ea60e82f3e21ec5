"""ECFD: a decoder in which context tokens and spatial tokens correct each other.

"Efficient Cross-information Fusion Decoder for Semantic Segmentation", with its ablations. The
decoder reads a backbone's maps F1 to F4 at strides 4, 8, 16 and 32 (C1 to C4 channels).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..backbones.convnext import KEYS as CONVNEXT_KEYS
from ..backbones.convnext import convnext_large
from ..backbones.resnet import deep_stem_keys, resnet50, stage_keys
from ..backbones.swin import ORIGINAL, swin_large
from ..backbones.swin import ORIGINAL_KEYS as SWIN_KEYS
from ..heads import AUXILIARY_KEYS, EncoderDecoder, fcn_head
from ..variant import Keys, Variant, conv_norm_keys
from .ecfd_decoders import ECFD, ContextDecoder, Decoder, PlainDecoder, SpatialDecoder


def _network(
    num_classes: int,
    backbone: Callable[[], Any],
    decoder: Callable[..., Decoder] = ECFD,
    **options: Any,
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
BACKBONES: dict[str, tuple[Callable[[], Any], Keys, int]] = {  # and the decoder's width
    "r50": (resnet50, RESNET_KEYS, 256),
    "r101": (partial(resnet50, depth=101), RESNET_KEYS, 256),
    "swin_l": (partial(swin_large, window=7, layout=ORIGINAL), SWIN_KEYS, 192),
    "convnext_l": (convnext_large, CONVNEXT_KEYS, 192),
}
DILATED = partial(resnet50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), contract_dilation=True)
TINY: dict[str, Any] = {"embed": 192, "heads": 6}
SMALL: dict[str, Any] = {"embed": 384, "heads": 6}
BASE: dict[str, Any] = {"embed": 768, "heads": 12}
LARGE: dict[str, Any] = {"embed": 1024, "heads": 16}


def _variant(name: str, *, keys: Keys = PROJECTION_KEYS, **options: Any) -> Variant:
    backbone, backbone_keys, width = BACKBONES[name]
    return Variant(
        partial(_network, **{"backbone": backbone, "width": width, **options}),
        keys=(*backbone_keys, *keys, *KEYS),
        size=(512, 1024),
        paper="Efficient Cross-information Fusion Decoder",
        multiple=4,
    )


VARIANTS = {
    **{f"ecfd_tiny_{name}": _variant(name, **TINY) for name in BACKBONES},
    **{f"ecfd_small_{name}": _variant(name, **SMALL) for name in BACKBONES},
    "ecfd_base_r50": _variant("r50", **BASE),
    "ecfd_large_r50": _variant("r50", **LARGE),
    "ecfd_tiny_r50_context": _variant("r50", add_context=True, **TINY),
    "ecfd_patch4_r50": _variant("r50", fused=False, **TINY),
    "ecfd_fpn_r50": _variant("r50", keys=PLAIN_PROJECTION_KEYS, decoder=PlainDecoder, embed=192),
    "ecfd_generalfpn_r50": _variant("r50", decoder=ContextDecoder, **TINY),
    "ecfd_general_r50": _variant(
        "r50", backbone=DILATED, decoder=ContextDecoder, fused=False, **TINY
    ),
    "ecfd_spatial_r50": _variant("r50", decoder=SpatialDecoder, **TINY),
}
