"""SegFormer: the paper's costs, and the implementation in transformers, as far as it is there."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from rtseg.models import build, count, deploy, load_checkpoint
from rtseg.models.checkpoints import official_names
from torch import Tensor, nn

DEPTHS = {"b0": [2, 2, 2, 2], "b1": [2, 2, 2, 2], "b2": [3, 4, 6, 3]}
# Parameters and multiply-adds with 150 classes at 512x512, in the paper's table 1 (a).
PUBLISHED = {"b0": (3.8e6, 8.4e9), "b1": (13.7e6, 15.9e9), "b2": (27.5e6, 62.4e9)}


def randomize(network: nn.Module) -> None:
    """Move every value, norms' statistics too, so that none is 0 or 1 by chance."""
    draw = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=draw)
            value.copy_(0.5 + noise.abs() if name.endswith("running_var") else value + 0.1 * noise)


def as_released(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' entries by the names of the authors' checkpoints."""
    parts = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.q_proj": "attn.q",
        "attention.o_proj": "attn.proj",
        "attention.sequence_reduction.sequence_reduction": "attn.sr",
        "attention.sequence_reduction.layer_norm": "attn.norm",
    }
    found = {}
    for name, value in state.items():
        if stage := re.match(r"segformer\.stages\.(\d)\.(.+)", name):
            number, rest = int(stage[1]) + 1, stage[2]
            for theirs, released in parts.items():
                rest = rest.replace(theirs, released)
            rest = re.sub(r"^patch_embeddings\.", f"patch_embed{number}.", rest)
            rest = re.sub(r"^(patch_embed\d\.)layer_norm", r"\1norm", rest)
            rest = re.sub(r"^layer_norm", f"norm{number}", rest)
            rest = re.sub(r"^blocks\.", f"block{number}.", rest)
            if ".k_proj" in rest:  # keys and values are one map there
                values = state[name.replace("k_proj", "v_proj")]
                rest, value = (
                    rest.replace("attention.k_proj", "attn.kv"),
                    torch.cat([value, values]),
                )
            if ".v_proj" not in rest:
                found[f"backbone.{rest}"] = value
        else:
            name = re.sub(r"linear_projections\.(\d)", lambda m: f"linear_c{int(m[1]) + 1}", name)
            name = name.replace("linear_fuse", "linear_fuse.conv")
            name = name.replace("batch_norm", "linear_fuse.bn").replace("classifier", "linear_pred")
            found[name] = value
    return found


@pytest.mark.parametrize("size", PUBLISHED)
def test_it_costs_what_the_paper_says(size: str) -> None:
    cost = count(build(f"segformer_{size}", 150), (512, 512))
    params, macs = PUBLISHED[size]
    assert cost.params == pytest.approx(params, rel=0.02)
    # The paper counts convolutions and linear maps; attention's products come on top here.
    assert macs * 0.98 <= cost.macs <= macs * 1.35


@torch.inference_mode()
@pytest.mark.parametrize("size", ["b0", "b2"])
def test_the_deployed_form_is_the_same_and_cheaper(size: str) -> None:
    network = build(f"segformer_{size}", 19)
    randomize(network)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    cheaper, expected = deploy(network, (64, 96)), network(image)
    assert (cheaper(image) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert count(cheaper, (512, 1024)).macs < 0.75 * count(network, (512, 1024)).macs


def test_every_entry_has_its_released_name() -> None:
    names = official_names(build("segformer_b0", 19))
    assert len(set(names.values())) == len(names)
    assert names["backbone.stages.0.1.attention.kv.weight"] == "backbone.block1.1.attn.kv.weight"
    assert names["head.fuse.norm.running_var"] == "decode_head.linear_fuse.bn.running_var"
    assert names["head.maps.3.weight"] == "decode_head.linear_c4.proj.weight"


@torch.inference_mode()
@pytest.mark.parametrize("size", DEPTHS)
def test_logits_are_those_of_transformers(size: str) -> None:
    library: Any = pytest.importorskip("transformers", reason="pip install transformers")
    wide = size != "b0"
    config = library.SegformerConfig(
        num_labels=19,
        depths=DEPTHS[size],
        hidden_sizes=[64, 128, 320, 512] if wide else [32, 64, 160, 256],
        decoder_hidden_size=768 if size == "b2" else 256,
    )
    reference = library.SegformerForSemanticSegmentation(config).eval()
    for name, module in reference.named_modules():
        # Where the authors' code has 1e-6; transformers keeps PyTorch's 1e-5.
        if re.search(r"layernorm_(before|after)$|stages\.\d\.layer_norm$", name):
            module.eps = 1e-6
    randomize(reference)
    network = load_checkpoint(build(f"segformer_{size}", 19), as_released(reference.state_dict()))
    image = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    found, expected = network(image), reference(image).logits
    assert found.shape == expected.shape == (2, 19, 24, 32)
    assert (found - expected).abs().max() <= 1e-5 * expected.std()
