"""Losses, learning rates and averages against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rtseg.models import build
from rtseg.train.loss import Criterion, balance, cross_entropy, dice, ohem
from rtseg.train.optimiser import Average, factor, make_optimiser, set_learning_rate
from rtseg.train.sections import Loss, Optimiser, Schedule
from torch import nn


def pixels(*probabilities):
    """Logits (1, 2, 1, W) of two classes; class 0 has the given probability at each pixel."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()])[None, :, None]


def label(*values):
    return torch.tensor(values)[None, None]


def test_cross_entropy_is_the_mean_over_pixels_that_count():
    loss = cross_entropy(pixels(0.5, 0.25, 0.9), label(0, 0, 255))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_cross_entropy_of_nothing_is_zero_and_differentiable():
    logits = pixels(0.5).requires_grad_()
    loss = cross_entropy(logits, label(255))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0


def test_class_weights_weigh_as_in_pytorch():
    logits, weights = torch.randn(2, 3, 4, 4), torch.tensor([1.0, 2.0, 0.5])
    target = torch.randint(0, 3, (2, 4, 4))
    target[0, 0] = 255
    expected = nn.functional.cross_entropy(logits, target, weights, ignore_index=255)
    assert cross_entropy(logits, target, weights).item() == pytest.approx(expected.item(), rel=1e-5)


def test_ohem_keeps_pixels_below_the_threshold():
    loss = ohem(pixels(0.2, 0.5, 0.8, 0.95), label(0, 0, 0, 0), threshold=0.7, kept=1)
    assert loss.item() == pytest.approx(-(math.log(0.2) + math.log(0.5)) / 2, rel=1e-5)


def test_ohem_keeps_the_hardest_where_few_are_below():
    loss = ohem(pixels(0.8, 0.9, 0.95, 0.99), label(0, 0, 0, 0), threshold=0.1, kept=2)
    assert loss.item() == pytest.approx(-(math.log(0.8) + math.log(0.9)) / 2, rel=1e-5)


def test_ohem_keeps_all_where_fewer_count():
    loss = ohem(pixels(0.99, 0.98, 0.1), label(0, 0, 255), threshold=0.1, kept=3)
    assert loss.item() == pytest.approx(-(math.log(0.99) + math.log(0.98)) / 2, rel=1e-5)


def test_dice_of_a_perfect_and_a_wrong_prediction():
    target = label(*[0, 1] * 500)
    right = torch.where(nn.functional.one_hot(target, 2).permute(0, 3, 1, 2) == 1, 30.0, -30.0)
    assert dice(right, target).item() == pytest.approx(0, abs=1e-4)
    assert dice(-right, target).item() == pytest.approx(1, abs=2e-3)


def test_dice_by_hand():
    value = dice(pixels(0.5, 0.5, 0.5), label(0, 0, 255), smooth=0)
    assert value.item() == pytest.approx(1 - 2 * 1.0 / (1.0 + 2), rel=1e-5)  # class 1 is absent


def test_auxiliary_outputs_count_by_weight():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    small = torch.randn(1, 3, 2, 2)
    criterion = Criterion(Loss(auxiliary=0.4))
    main = criterion({"logits": logits}, target)
    other = criterion({"logits": nn.functional.interpolate(small, (8, 8), mode="bilinear")}, target)
    both = criterion({"logits": logits, "deep": small}, target)
    assert both.item() == pytest.approx(main.item() + 0.4 * other.item(), rel=1e-5)


def test_auxiliary_outputs_that_are_no_classes_are_refused():
    outputs = {"logits": torch.zeros(1, 3, 4, 4), "edge": torch.zeros(1, 1, 4, 4)}
    target = torch.zeros(1, 4, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="'edge' has 1 channels"):
        Criterion(Loss())(outputs, target)
    assert Criterion(Loss(auxiliary=0))(outputs, target).item() == pytest.approx(math.log(3))


def test_ohem_and_dice_are_chosen_by_the_recipe():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    loss = Criterion(Loss(kind="ohem", threshold=0.3, kept=5, dice=2.0))({"logits": logits}, target)
    expected = ohem(logits, target, 0.3, 5) + 2 * dice(logits, target)
    assert loss.item() == pytest.approx(expected.item())


def test_balance_evens_out_frequencies():
    weights = balance(np.array([800, 100, 0, 100]), 1.0)
    assert weights[2] == 0
    assert weights[1] / weights[0] == pytest.approx(8)
    assert weights[weights > 0].mean().item() == pytest.approx(1)
    assert balance(np.array([800, 100]), 0.0).tolist() == [1, 1]


def test_norms_and_biases_do_not_decay_and_the_backbone_is_slower():
    network = build("csfcn_nano")
    options = Optimiser(kind="sgd", learning_rate=0.1, weight_decay=0.3, backbone=0.5)
    optimiser = make_optimiser(network, options)
    set_learning_rate(optimiser, 0.1)
    names = {id(p): name for name, p in network.named_parameters()}
    seen = set()
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.add(name)
            assert group["weight_decay"] == (0.3 if parameter.ndim > 1 else 0), name
            assert group["lr"] == (0.05 if name.startswith("backbone.") else 0.1), name
    assert seen == set(names.values())


def test_warm_up_then_poly():
    schedule = Schedule(iterations=110, warmup=10, warmup_from=0.2, power=0.9)
    rates = [factor(schedule, i, 110) for i in range(110)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[5] == pytest.approx(0.6)
    assert rates[10] == 1
    assert rates[60] == pytest.approx(0.5**0.9)
    assert rates[109] == pytest.approx(0.01**0.9)


def test_average_follows_weights_and_statistics():
    network = build("csfcn_nano")
    average = Average(network, decay=0.15)
    before = [value.clone() for value in network.state_dict().values()]
    with torch.no_grad():
        for value in network.state_dict().values():
            value.add_(1)
    average.update(network)
    decay = 0.15  # the first update's 2 / 11 is above it
    for old, new in zip(before, average.model.state_dict().values(), strict=True):
        if old.is_floating_point():
            assert torch.allclose(new, old + 1 - decay, atol=1e-5)
        else:
            assert torch.equal(new, old + 1)
