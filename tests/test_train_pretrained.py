"""A backbone starts from ImageNet weights, whichever tool named them."""

from __future__ import annotations

import pytest
import torch
from rtseg.models import CheckpointError, build
from rtseg.models.weights import official_names
from rtseg.train.pretrained import start_backbone

STEM = {"conv1.0": "stem.0", "conv1.1": "stem.1", "conv1.3": "stem.3", "conv1.4": "stem.4",
        "conv1.6": "stem.6", "bn1": "stem.7"}  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    return build("csfcn_tiny")


def official(network):
    """The backbone's weights by the names of the released ImageNet file, and a classifier."""
    names = official_names(network)
    state = {
        names[k].removeprefix("resnet."): v
        for k, v in network.state_dict().items()
        if k.startswith("backbone.")
    }
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def mmseg(network):
    """As mmsegmentation's ResNetV1c is stored inside a whole segmentation network."""
    state = {}
    for key, value in official(network).items():
        start = next((s for s in STEM if key.startswith(f"{s}.")), None)
        state[f"backbone.{key.replace(start, STEM[start], 1) if start else key}"] = value
    return {"state_dict": state | {"decode_head.conv_seg.weight": torch.zeros(19, 4, 1, 1)}}


@pytest.mark.parametrize("naming", [official, mmseg])
def test_every_entry_arrives(trained, naming, tmp_path):
    path = tmp_path / "imagenet.pth"
    torch.save(naming(trained), path)
    network = build("csfcn_tiny")
    head = network.head.conv.weight.clone()
    started = start_backbone(network, path)
    assert (started.loaded, started.left) == (started.entries, ())
    for key, value in trained.state_dict().items():
        if key.startswith("backbone."):
            assert torch.equal(network.state_dict()[key], value), key
    assert torch.equal(network.head.conv.weight, head)


def test_torchvision_has_another_stem_which_is_left_out(trained, tmp_path):
    state = {k: v for k, v in official(trained).items() if not k.startswith(("conv1.", "bn1."))}
    state |= {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}
    torch.save(state, tmp_path / "resnet18.pth")
    started = start_backbone(build("csfcn_tiny"), tmp_path / "resnet18.pth")
    assert 0 < started.loaded < started.entries
    assert all(key.startswith("backbone.stem.") for key in started.left)


def test_another_network_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    network = build("csfcn_tiny")
    before = network.backbone.layer1[0].conv1.conv.weight.clone()
    with pytest.raises(CheckpointError, match=r"holds 0 of the \d+ entries"):
        start_backbone(network, tmp_path / "vgg.pth")
    assert torch.equal(network.backbone.layer1[0].conv1.conv.weight, before)
