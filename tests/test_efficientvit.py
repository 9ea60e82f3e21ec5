"""EfficientViT: published costs, the reference's entries, and its attention in the other order."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rtseg.models import build, count, deploy
from rtseg.models.checkpoints import official_names
from rtseg.models.families.efficientvit import LinearAttention
from rtseg.models.registry import build_on_meta
from test_segformer import randomize

# Parameters and multiply-adds at 1024x2048, in the README of the reference.
PUBLISHED = {"b0": (0.7e6, 4.4e9), "b1": (4.8e6, 25e9), "b2": (15e6, 74e9), "b3": (40e6, 179e9)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_it_costs_what_is_published(size: str) -> None:
    cost = count(build_on_meta(f"efficientvit_{size}"), (1024, 2048))
    params, macs = PUBLISHED[size]
    assert cost.params == pytest.approx(params, rel=0.025)
    assert cost.macs == pytest.approx(macs, rel=0.01)


@torch.inference_mode()
def test_attention_is_that_of_every_pixel_to_every_pixel() -> None:
    """The same function with the map of all pairs of pixels, which the module never makes."""
    layer = LinearAttention(32, 16).eval()
    randomize(layer)
    x = torch.randn(2, 32, 6, 10, generator=torch.Generator().manual_seed(1))
    qkv = layer.qkv(x)
    heads = torch.cat([qkv, layer.mix(layer.gather(qkv))], 1).reshape(2, -1, 48, 60)
    query, key, value = heads[:, :, :16], heads[:, :, 16:32], heads[:, :, 32:]
    pairs = F.relu(key).transpose(2, 3) @ F.relu(query)  # (key, query)
    expected = value @ (pairs / (pairs.sum(2, keepdim=True) + 1e-15))
    expected = x + layer.proj(expected.reshape(2, 64, 6, 10))
    assert (layer(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.inference_mode()
def test_negative_queries_give_no_nan() -> None:
    layer = LinearAttention(16, 16).eval()
    layer.qkv.weight.fill_(-1.0)
    assert layer(torch.ones(1, 16, 4, 4)).isfinite().all()
    assert layer.half()(torch.ones(1, 16, 4, 4).half()).isfinite().all()


@torch.inference_mode()
def test_the_deployed_form_is_the_same_and_cheaper() -> None:
    network = build("efficientvit_b0", 19)
    randomize(network)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    cheaper, expected = deploy(network, (64, 96)), network(image)
    assert expected.shape == (1, 19, 8, 12)
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert count(cheaper, (512, 1024)).layers < count(network, (512, 1024)).layers


def test_every_entry_has_its_released_name() -> None:
    names = official_names(build_on_meta("efficientvit_b1", 19))
    assert len(set(names.values())) == len(names)
    assert names["stages.2.1.0.mix.weight"] == (
        "backbone.stages.2.op_list.1.context_module.main.aggreg.0.1.weight"
    )
    assert names["inlets.2.conv.weight"] == "head.input_ops.2.conv.weight"
    assert names["middle.2.widen.norm.bias"] == (
        "head.middle.op_list.2.main.inverted_conv.norm.bias"
    )
