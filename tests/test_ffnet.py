"""FFNet: the reference's entries, and its pyramid said once more in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from rtseg.models import build, count, deploy
from rtseg.models.checkpoints import official_names
from rtseg.models.registry import build_on_meta
from test_segformer import randomize
from torch import Tensor

# Millions of parameters on the model cards of Qualcomm AI Hub, which distributes these networks.
PUBLISHED = {"40s": 13.9, "54s": 18.0, "78s": 27.5}


@pytest.mark.parametrize("size", PUBLISHED)
def test_parameters_are_the_published_ones(size: str) -> None:
    params = sum(p.numel() for p in build_on_meta(f"ffnet_{size}").parameters())
    assert round(params / 1e6, 1) == PUBLISHED[size]


def plain_forward(state: dict[str, Tensor], image: Tensor, depths: tuple[int, ...]) -> Tensor:
    """The network from a checkpoint's own names, layer by layer."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        x = F.conv2d(x, weight, state.get(f"{conv}.bias"), stride, weight.shape[-1] // 2)
        parts = (state[f"{norm}.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def pair(x: Tensor, name: str) -> Tensor:
        return F.relu(conv_norm(x, f"{name}.0", f"{name}.1"))

    x = image
    for number in (0, 1):
        name = "backbone_model."
        x = F.relu(conv_norm(x, f"{name}conv{number}", f"{name}bn{number}", 2))
    features = []
    for stage, depth in enumerate(depths, 1):
        for block in range(depth):
            name, stride = f"backbone_model.layer{stage}.{block}.", 1 if block else 2
            y = F.relu(conv_norm(x, f"{name}conv1", f"{name}bn1", stride))
            y = conv_norm(y, f"{name}conv2", f"{name}bn2")
            if stride == 2:
                x = conv_norm(x, f"{name}downsample.0", f"{name}downsample.1", 2)
            x = F.relu(x + y)
        features.append(pair(x, f"head.layers.0.adapter_conv.{stage - 1}.layers"))

    def fam(x: Tensor, name: str) -> Tensor:
        return pair(x, f"head.layers.1.fam_{name}.layers")

    x, smooth = features[3], [fam(features[3], "32_sm")]
    for level, (up, name) in enumerate((("32_up", "16_sm"), ("16_up", "8_sm"), ("8_up", "4"))):
        finer = features[2 - level]
        x = finer + F.interpolate(fam(x, up), finer.shape[2:], mode="nearest")
        smooth.insert(0, fam(x, name))
    size = smooth[0].shape[2:]
    x = torch.cat([smooth[0], *(F.interpolate(y, size, mode="nearest") for y in smooth[1:])], 1)
    x = pair(x, "head.layers.3.last_layer")
    last = "head.layers.3.last_layer.3"
    return F.conv2d(x, state[f"{last}.weight"], state[f"{last}.bias"], padding=1)


@torch.inference_mode()
def test_it_computes_what_its_checkpoints_names_say() -> None:
    network = build("ffnet_40s", 19)
    randomize(network)
    own = network.state_dict()
    state = {theirs: own[ours] for ours, theirs in official_names(network).items()}
    image = torch.randn(1, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    found, expected = network(image), plain_forward(state, image, (4, 5, 6, 4))
    assert found.shape == expected.shape == (1, 19, 16, 24)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    cheaper = deploy(network, (128, 192))
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert count(cheaper, (512, 1024)).layers < count(network, (512, 1024)).layers
