"""Networks of `transformers`, with random weights, exported and proven as any module is.

The package is in the extra `zoo-tests`; without it these tests skip themselves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rtseg import load_model
from rtseg.errors import UsageError
from rtseg.export import export
from torch import Tensor, nn

transformers = pytest.importorskip(
    "transformers", reason='needs transformers: pip install "rtseg[zoo-tests]"'
)

SIZE = (64, 128)


def segformer() -> nn.Module:
    """SegFormer-B0, the defaults of its configuration."""
    config = transformers.SegformerConfig(num_labels=19)
    model: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    return model


def mobilevit() -> nn.Module:
    """MobileViT-XXS with DeepLabV3's head, whose pyramid pools adaptively."""
    config = transformers.MobileViTConfig(
        num_labels=19,
        hidden_sizes=[64, 80, 96],
        neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
        expand_ratio=2.0,
    )
    model: nn.Module = transformers.MobileViTForSemanticSegmentation(config)
    for layer in model.modules():  # its own initialization lets the signal die: logits of 1e-45
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return model


def upernet() -> nn.Module:
    """UPerNet over a small ConvNeXt: a pyramid of poolings to 1, 2, 3 and 6 cells."""
    backbone = transformers.ConvNextConfig(
        hidden_sizes=[16, 32, 64, 96],
        depths=[1, 1, 2, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        backbone_config=backbone, num_labels=19, hidden_size=64, use_auxiliary_head=False
    )
    model: nn.Module = transformers.UperNetForSemanticSegmentation(config)
    return model


def maskformer() -> nn.Module:
    """Mask2Former over a small Swin."""
    pytest.importorskip("scipy", reason="transformers builds Mask2Former with SciPy only")
    backbone = transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 2, 4],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=19,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=12,
    )
    model: nn.Module = transformers.Mask2FormerForUniversalSegmentation(config)
    return model


def eomt() -> nn.Module:
    """EoMT, a small one, as it is after training: none of its attention is masked any more."""
    pytest.importorskip("scipy", reason="transformers builds EoMT with SciPy only")
    config = transformers.EomtConfig(
        num_labels=19,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=64,
        patch_size=8,
        num_blocks=2,
        num_queries=12,
        num_upscale_blocks=1,
        num_register_tokens=2,
    )
    model: nn.Module = transformers.EomtForUniversalSegmentation(config)
    # A branch of its forward asks this buffer's values, which no exporter can follow; training
    # ends with zeros in it, and as plain numbers they are known before the export.
    del model.attn_mask_probs
    vars(model)["attn_mask_probs"] = [0.0] * config.num_blocks
    return model


class SemanticLogits(nn.Module):
    """Masks and their classes as logits of every pixel, as the paper's semantic inference does."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        found = self.network(pixel_values=image)
        classes = found.class_queries_logits.softmax(dim=-1)[..., :-1]
        masks = found.masks_queries_logits.sigmoid()
        return torch.einsum("nqc,nqhw->nchw", classes, masks)


@pytest.mark.parametrize("make", [segformer, mobilevit, upernet])
def test_semantic_networks_are_exported_as_they_come(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model(make(), classes="cityscapes", size=SIZE, normalize="imagenet")
    (artifact,) = export(model, out=tmp_path)
    assert artifact.status == "proven"
    assert artifact.results[0].logits_error is not None
    assert artifact.results[0].logits_error < 1e-4


def test_segformer_is_the_published_size() -> None:
    count = sum(parameter.numel() for parameter in segformer().parameters())
    assert round(count / 1e6, 1) == 3.7  # Table 1 of the paper has 3.7 M for B0 on Cityscapes


def test_masks_are_asked_for_their_semantic_logits() -> None:
    torch.manual_seed(0)
    with pytest.raises(UsageError, match="say which holds the logits"):
        load_model(maskformer(), classes="cityscapes", size=SIZE, normalize="imagenet")


@pytest.mark.parametrize(("make", "size"), [(maskformer, SIZE), (eomt, (64, 64))])
def test_masks_as_semantic_logits(make: Any, size: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = load_model(
        SemanticLogits(make()), classes="cityscapes", size=size, normalize="imagenet"
    )
    (artifact,) = export(model, out=tmp_path)
    assert artifact.status == "proven"
