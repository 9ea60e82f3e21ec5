"""SCTNet: the published parameters, the reference's entries, and its attention step by step."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rtseg.models import build, count, deploy, load_checkpoint
from rtseg.models.checkpoints import official_names
from rtseg.models.families.sctnet import ConvolutionalAttention
from rtseg.models.registry import build_on_meta
from test_segformer import randomize
from torch import nn

PUBLISHED = {"s": 4.6e6, "b": 17.4e6}  # the paper's table 1, without what only training has


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str) -> None:
    named = build_on_meta(f"sctnet_{size}").named_parameters()
    params = sum(p.numel() for name, p in named if not name.startswith("extra."))
    assert params == pytest.approx(PUBLISHED[size], rel=0.015)


# GFLOPs of the paper's five networks as the README of GCNet (CVPR 2025, github.com/gyyang23/GCNet)
# has them beside its own, to one decimal.
PUBLISHED_GFLOPS = [
    ("s", (512, 1024), 7.1),
    ("s", (768, 1536), 16.0),
    ("b", (512, 1024), 28.1),
    ("b", (768, 1536), 63.2),
    ("b", (1024, 2048), 112.3),
]


@torch.no_grad()
@pytest.mark.parametrize(("kind", "size", "published"), PUBLISHED_GFLOPS)
def test_macs_are_the_published_ones(kind: str, size: tuple[int, int], published: float) -> None:
    """A counter of that table's kind sees modules: a convolution's multiply-adds, and two
    operations a value of a norm. Attention's convolutions are calls, which it does not see."""
    network, seen = build_on_meta(f"sctnet_{kind}").eval(), {"convolutions": 0, "norms": 0}
    ours = count(network, size).macs

    def watch(layer: nn.Module, given: object, result: torch.Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            seen["convolutions"] += result.numel() * layer.weight[0].numel()
        else:
            seen["norms"] += 2 * result.numel()

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
            layer.register_forward_hook(watch)
    network(torch.empty(1, 3, *size, device="meta"))
    assert round((seen["convolutions"] + seen["norms"]) / 1e9, 1) == published
    width, pixels = {"s": 128, "b": 256}[kind], size[0] * size[1] // 16**2
    # Down and across, 64 kernels of 7 there and back; twice the width at a quarter of the pixels,
    # in two blocks.
    attention = 4 * 64 * 7 * width * pixels + 2 * (4 * 64 * 7 * 2 * width * pixels // 4)
    assert ours == seen["convolutions"] + attention


@torch.inference_mode()
def test_attention_is_softmax_over_pixels_then_shares_of_kernels() -> None:
    layer = ConvolutionalAttention(16).eval()
    randomize(layer)
    x = torch.randn(1, 16, 5, 8, generator=torch.Generator().manual_seed(1))
    total = torch.zeros_like(x)
    for kernels, padding in ((layer.down, (3, 0)), (layer.across, (0, 3))):
        fits = F.conv2d(layer.norm(x), kernels, padding=padding)
        shares = (fits - fits.amax((2, 3), keepdim=True)).exp()
        shares = shares / shares.sum((2, 3), keepdim=True)
        for first in range(0, 64, 8):  # heads of 8 kernels
            group = shares[:, first : first + 8]
            shares[:, first : first + 8] = group / (group.sum(1, keepdim=True) + 1e-6)
        total += F.conv2d(shares, kernels.transpose(0, 1), padding=padding)
    assert (layer(x) - total).abs().max() <= 1e-5 * total.abs().max()


@torch.inference_mode()
def test_a_checkpoint_of_training_loads_and_the_deployed_form_is_the_same() -> None:
    network = build("sctnet_s", 19)
    randomize(network)
    own = network.state_dict()
    released = {theirs: own[ours] for ours, theirs in official_names(network).items()}
    assert "backbone.layer3_2.attn_l.kv3" in released
    assert "backbone.layer2.0.downsample.0.bias" in released
    assert "auxiliary_head.0.conv_seg.bias" in released
    # A checkpoint of training holds the transformer that taught the network too.
    released["auxiliary_head.1.teacher_backbone.patch_embed1.proj.weight"] = torch.ones(3)
    again = load_checkpoint(build("sctnet_s", 19), released)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = network(image)
    assert torch.equal(again(image), expected)
    assert expected.shape == (1, 19, 8, 12)
    cheaper = deploy(network, (64, 96))
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert count(cheaper, (512, 1024)).layers < count(network, (512, 1024)).layers
