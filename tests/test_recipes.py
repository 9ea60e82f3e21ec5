"""Every shipped recipe: its network has the outputs, names and classes that it speaks of."""

from __future__ import annotations

import pytest
import torch
from rtseg.data.classes import load_class_set
from rtseg.data.datasets import DATASETS
from rtseg.models import VARIANTS
from rtseg.models.registry import build_on_meta
from rtseg.train.loss import Criterion
from rtseg.train.optimizer import factor, make_optimizer
from rtseg.train.recipe import RECIPES, load_recipe, recipes_by_variant

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def classes_of(recipe):
    if recipe.data.classes:
        return len(load_class_set(recipe.data.classes))
    return len(DATASETS[recipe.data.name].classes)


@pytest.fixture(scope="module", params=SHIPPED)
def recipe(request):
    return load_recipe(request.param)


@pytest.fixture(scope="module")
def network(recipe):
    return build_on_meta(recipe.model, classes_of(recipe), **recipe.options).train()


def test_its_losses_fit_the_network_s_outputs(recipe, network):
    """On random values in the shapes that the network gives for a small crop."""
    torch.manual_seed(0)
    outputs = {
        name: torch.rand(output.shape, requires_grad=True)
        for name, output in network(torch.empty(2, 3, 64, 64, device="meta")).items()
    }
    label = torch.randint(0, classes_of(recipe), (2, 64, 64))
    label[:, :8] = 255
    maps = {name: torch.randint(0, 2, (2, 64, 64)).byte() for name in recipe.loss.maps}
    criterion = Criterion(recipe.loss, align_corners=network.info.align_corners)
    loss = criterion(outputs, label, maps)
    assert loss.isfinite()
    assert loss > 0
    loss.backward()
    for name, output in outputs.items():
        term = criterion.term(name)
        assert (output.grad is not None) == (term.weight > 0), name
        assert not term.weight or output.grad.abs().max() > 0, name


def test_its_optimizer_reaches_every_parameter_once(recipe, network):
    optimizer = make_optimizer(network, recipe.optimizer)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert len({id(p) for p in grouped}) == len(grouped)
    assert {id(p) for p in grouped} == {id(p) for p in network.parameters() if p.requires_grad}


def test_its_rate_begins_low_or_full_and_ends_at_its_last(recipe):
    total = recipe.schedule.iterations or 10_000
    rates = [factor(recipe.schedule, i, total, 100) for i in range(0, total, 50)]
    assert max(rates) <= 1
    assert max(rates) > 0.95
    if recipe.schedule.warmup:
        assert rates[0] == pytest.approx(recipe.schedule.warmup_from)
    end = factor(recipe.schedule, total, total, 1)
    assert end == pytest.approx(recipe.schedule.last)


def test_its_crop_fits_the_network(recipe, network):
    network.info.check_size(*recipe.augment.crop)


def test_every_variant_has_a_recipe():
    assert recipes_by_variant().keys() == VARIANTS.keys()
    assert recipes_by_variant()["csfcn_rep"] == ["csfcn_camvid", "csfcn_cityscapes"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_variants_in_also_take_its_options_and_groups(name):
    recipe = load_recipe(name)
    for variant in recipe.also:
        other = build_on_meta(variant, classes_of(recipe), **recipe.options)
        make_optimizer(other, recipe.optimizer)
        other.info.check_size(*recipe.augment.crop)
