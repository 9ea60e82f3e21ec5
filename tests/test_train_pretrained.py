"""A backbone starts from ImageNet weights, whichever tool named them."""

from __future__ import annotations

import pytest
import torch
from rtseg.errors import CheckpointError
from rtseg.models import VARIANTS, NetworkInfo, build
from rtseg.models.backbones.swin import ORIGINAL, ORIGINAL_KEYS, UNFOLDED, Swin
from rtseg.models.checkpoints import official_names, rename_keys
from rtseg.models.families.senformer import SenFormer
from rtseg.train.state import start_backbone

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


def swin(window, layout):
    torch.manual_seed(window)
    network = Swin(32, (2, 1, 1, 1), (1, 2, 4, 8), window=window, layout=layout)
    senformer = SenFormer(network, 5, shared=True)
    senformer.info = NetworkInfo("senformer_swin_t", 5, multiple=4)
    senformer.keys = VARIANTS["senformer_swin_t"].keys
    return senformer


def test_swin_s_own_release_fills_another_layout_and_window(tmp_path):
    """Its names, its order of merged channels, and bias tables of window 4 for window 6."""
    released, network = swin(4, ORIGINAL), swin(6, UNFOLDED)
    names = rename_keys(released.state_dict(), [(ours, theirs) for theirs, ours in ORIGINAL_KEYS])
    state = {
        names[key].removeprefix("backbone."): value
        for key, value in released.state_dict().items()
        if key.startswith("backbone.")
    }
    torch.save({"model": state | {"head.weight": torch.zeros(9, 9)}}, tmp_path / "swin.pth")
    started = start_backbone(network, tmp_path / "swin.pth")
    assert (started.loaded, started.left) == (started.entries, ())
    image = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(network.backbone.merges, released.backbone.merges, strict=True):
        tokens = torch.randn(1, 64, theirs.norm.weight.numel() // 4)
        assert torch.allclose(ours(tokens, (8, 8)), theirs(tokens, (8, 8)), atol=1e-5)
    table = network.backbone.stages[0][0].attention.bias.table.detach()
    small = released.backbone.stages[0][0].attention.bias.table.detach()
    assert table.shape == (121, 1)
    assert table.view(11, 11)[5, 5] == pytest.approx(float(small.view(7, 7)[3, 3]), abs=1e-6)
    assert network.backbone(image)[0].isfinite().all()


def test_another_network_is_refused(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "vgg.pth")
    network = build("csfcn_tiny")
    before = network.backbone.layer1[0].conv1.conv.weight.clone()
    with pytest.raises(CheckpointError, match=r"holds 0 of the \d+ entries"):
        start_backbone(network, tmp_path / "vgg.pth")
    assert torch.equal(network.backbone.layer1[0].conv1.conv.weight, before)
