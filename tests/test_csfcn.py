"""CSFCN against the reference's own numbers, and its deployed form against itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import read_golden
from rtseg.models import build, count, deploy, load_checkpoint
from rtseg.models.checkpoints import official_names
from rtseg.models.families.csfcn import pyramid_pooling

REFERENCE = ("csfcn", "csfcn_tiny")
ALL = (*REFERENCE, "csfcn_nano")


@pytest.mark.parametrize("name", REFERENCE)
def test_logits_match_the_reference(name: str) -> None:
    golden = read_golden(name)
    model = load_checkpoint(build(name), golden.state)
    with torch.inference_mode():
        assert golden.error(model(golden.image)) < 1e-4
        assert golden.error(deploy(model)(golden.image)) < 1e-4


@pytest.mark.parametrize("name", REFERENCE)
def test_official_names_parameters_and_macs(name: str) -> None:
    meta = read_golden(name).meta
    model = build(name)
    computed = {n for n, _ in meta["entries"]}
    assert set(official_names(model).values()) == computed
    cost = count(model, (512, 1024))
    assert cost.params == meta["params"]
    # The pyramid pooling is a matrix product here, which the reference's count leaves out.
    assert cost.macs == pytest.approx(meta["macs_512x1024"], rel=1e-3)


def test_nano_stays_below_three_gmacs() -> None:
    assert count(build("csfcn_nano"), (512, 1024)).macs <= 3e9


@pytest.mark.parametrize("name", ALL)
def test_deployed_is_the_same_function_and_cheaper(name: str) -> None:
    torch.manual_seed(2)
    model = build(name, 11).double()
    for parameter in model.parameters():
        parameter.data.normal_(std=max(1, parameter[0].numel()) ** -0.5)
    size = 96, 160
    deployed = deploy(model, size)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.inference_mode():
        plain, cheap = model(image), deployed(image)
    assert (plain - cheap).abs().max() / plain.abs().max() < 1e-4
    before, after = count(model, (512, 1024)), count(deployed, (512, 1024))
    print(
        f"\n{name}: {before.macs / 1e9:.3f} -> {after.macs / 1e9:.3f} GMACs, "
        f"{before.layers} -> {after.layers} layers"
    )
    assert after.macs < before.macs
    assert after.layers < before.layers


@pytest.mark.parametrize("size", [(4, 8), (6, 6), (3, 5), (32, 64), (2, 5)])
def test_pyramid_pooling_is_adaptive_average_pooling(size: tuple[int, int]) -> None:
    height, width = size
    x = torch.randn(1, 4, height, width)
    levels = [
        F.adaptive_avg_pool2d(x, (rows, max(1, round(rows * width / height)))).flatten(2)
        for rows in (6, 3, 2, 1)
    ]
    pooled = x.flatten(2) @ pyramid_pooling(height, width)
    torch.testing.assert_close(pooled, torch.cat(levels, dim=2), rtol=1e-5, atol=1e-6)


def test_a_size_that_does_not_fit_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="multiples of 8, not 500x1001: use 496x1000 or 504x1008"):
        build("csfcn_nano")(torch.zeros(1, 3, 500, 1001))


def test_train_mode_gives_a_dict() -> None:
    model = build("csfcn_nano", 11).train()
    logits = model(torch.randn(2, 3, 64, 128))["logits"]
    assert logits.shape == (2, 11, 64, 128)
    logits.mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


def test_an_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'csfcn_tiny'"):
        build("csfcn_tinny")


@pytest.mark.parametrize("classes", [1, 256])
def test_class_counts_that_labels_cannot_hold_are_refused(classes: int) -> None:
    with pytest.raises(ValueError, match=r"2\.\.255"):
        build("csfcn", classes)
