"""Losses, learning rates and averages against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rtseg.models import build
from rtseg.train.loss import (
    Criterion,
    balance_classes,
    border_cross_entropy,
    border_weights,
    cross_entropy,
    dice,
    edge_loss,
    find_edges,
    ohem,
)
from rtseg.train.optimizer import Average, factor, make_optimizer, set_learning_rate
from rtseg.train.recipe import Group, Loss, Optimizer, Schedule, Term
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
    weights = balance_classes(np.array([800, 100, 0, 100]), 1.0)
    assert weights[2] == 0
    assert weights[1] / weights[0] == pytest.approx(8)
    assert weights[weights > 0].mean().item() == pytest.approx(1)
    assert balance_classes(np.array([800, 100]), 0.0).tolist() == [1, 1]


def test_norms_and_biases_do_not_decay_and_the_backbone_is_slower():
    network = build("csfcn_nano")
    options = Optimizer(kind="sgd", learning_rate=0.1, weight_decay=0.3, backbone=0.5)
    optimizer = make_optimizer(network, options)
    set_learning_rate(optimizer, 0.1)
    names = {id(p): name for name, p in network.named_parameters()}
    seen = set()
    for group in optimizer.param_groups:
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


def test_the_three_means_of_a_weighted_cross_entropy():
    logits, target = pixels(0.5, 0.25, 0.9, 0.2), label(0, 0, 255, 1)
    weights = torch.tensor([2.0, 1.0])
    total = 2 * math.log(2) + 2 * math.log(4) + math.log(1 / 0.8)
    for mean, count in (("weights", 2 + 2 + 1), ("pixels", 3), ("all", 4)):
        loss = cross_entropy(logits, target, weights, mean)
        assert loss.item() == pytest.approx(total / count, rel=1e-5), mean


def test_ohem_over_all_pixels_falls_as_fewer_are_kept():
    loss = ohem(pixels(0.2, 0.8, 0.9), label(0, 0, 255), threshold=0.7, kept=1, mean="all")
    assert loss.item() == pytest.approx(-math.log(0.2) / 3, rel=1e-5)


@pytest.mark.parametrize(("per", "kept", "hardest"), [
    ("batch", 1, 1), ("image", 1, 2), ("pixel", 0.5, 3),
])  # fmt: skip
def test_how_many_ohem_keeps(per, kept, hardest):
    """Two images of four pixels, six of which count."""
    probabilities = [0.8, 0.82, 0.84, 0.86, 0.88, 0.9, 0.1, 0.1]
    logits = pixels(*probabilities).reshape(2, 2, 4).transpose(0, 1)[:, :, None]
    target = torch.tensor([[[0, 0, 0, 0]], [[0, 0, 255, 255]]])
    criterion = Criterion(Loss(kind="ohem", threshold=0.5, kept=kept, kept_per=per))
    expected = -sum(map(math.log, probabilities[:hardest])) / hardest
    assert criterion({"logits": logits}, target).item() == pytest.approx(expected, rel=1e-4)


def test_each_output_has_its_own_term():
    logits, target = torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 8, 8))
    deep, plain = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    loss = Loss(
        kind="ohem",
        threshold=0.3,
        kept=5,
        weight=0,
        auxiliary=0.5,
        outputs={"deep": Term(weight=0.25, mean="all")},
    )
    value = Criterion(loss)({"logits": logits, "deep": deep, "plain": plain}, target)
    expected = 0.25 * cross_entropy(deep, target) + 0.5 * ohem(plain, target, 0.3, 5)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_term_for_an_output_that_is_not_there_is_refused():
    criterion = Criterion(Loss(outputs={"stride_4": Term()}))
    outputs = {"logits": torch.zeros(1, 3, 4, 4), "stride4": torch.zeros(1, 3, 4, 4)}
    with pytest.raises(ValueError, match="no output 'stride_4': did you mean 'stride4'"):
        criterion(outputs, torch.zeros(1, 4, 4, dtype=torch.long))


def test_class_weights_of_another_class_count_are_refused():
    criterion = Criterion(Loss(class_weights=(1.0, 2.0)))
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        criterion({"logits": torch.zeros(1, 3, 4, 4)}, torch.zeros(1, 4, 4, dtype=torch.long))


def test_probabilities_up_to_a_factor():
    """Twice the probabilities 0.5 and 0.25 of the true class."""
    output = torch.tensor([[1.0, 0.5], [1.0, 1.5]])[None, :, None]
    loss = Criterion(Loss(kind="probabilities"))({"logits": output}, label(0, 0))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-5)
    none = torch.zeros(1, 2, 1, 1)
    assert Criterion(Loss(kind="probabilities"))({"logits": none}, label(0)).isfinite()


def test_probabilities_are_enlarged_as_logarithms():
    """Half way between log 1/2 and log 1/8 lies log 1/4, as it does for 1/2 and 7/8."""
    output = torch.tensor([[0.5, 0.125], [0.5, 0.875]])[None, :, None]
    criterion = Criterion(Loss(kind="probabilities"), align_corners=True)
    value = criterion({"logits": output}, label(255, 0, 255))
    other = math.sqrt(0.5 * 0.875)
    assert value.item() == pytest.approx(-math.log(0.25 / (0.25 + other)), rel=1e-5)


def test_outputs_are_enlarged_as_the_network_does_it():
    output, target = torch.tensor([[0.0, 4.0], [0.0, 0.0]])[None, :, None], label(0, 0, 0, 0)
    for align, row in ((True, [0, 4 / 3, 8 / 3, 4]), (False, [0, 1, 3, 4])):
        expected = sum(math.log(1 + math.exp(-value)) for value in row) / 4
        loss = Criterion(Loss(), align_corners=align)({"logits": output}, target)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_compared_at_the_output_s_size_with_the_nearest_labels():
    target = torch.tensor([[0, 1, 0, 0, 255, 255]])[None].expand(1, 3, 6)
    logits = pixels(0.5, 0.25)  # each stands for three pixels, of which the middle one counts
    loss = Criterion(Loss(at="output"))({"logits": logits}, target)
    assert loss.item() == pytest.approx(math.log(1 / 0.5), rel=1e-5)


def test_edges_between_classes():
    plane = np.zeros((20, 20), np.uint8)
    plane[:, 10:] = 1
    found = find_edges(plane)
    columns = np.flatnonzero(found[10])
    assert len(columns) == 4  # a line, widened to four pixels
    assert {9, 10} & set(columns)
    assert set(columns) <= set(range(7, 13))
    assert (found == found[10]).all()
    assert find_edges(np.full((20, 20), 7, np.uint8)).sum() == 0
    kept = np.flatnonzero(find_edges(plane, margin=6).any(axis=1))
    assert (kept.min(), kept.max()) == (6 - 1, 13 + 2)  # what begins inside still grows out


def test_border_weights_by_distance():
    row = np.zeros((1, 400), np.uint8)
    row[0, 200:] = 1
    row[0, 390:] = 255
    weights = border_weights(row)[0]
    distance = 200 - np.arange(200)  # to the first pixel of the other class
    expected = np.select([distance < 16, distance < 64, distance < 128], [8, 4, 2], 1)
    assert weights[:200].tolist() == expected.tolist()
    assert (weights[200:215] == 8).all()
    assert (weights[375:390] == 8).all()
    assert (weights[390:] == 0).all()


def test_bordered_loss_by_hand():
    logits, target = pixels(0.5, 0.25, 0.9), label(0, 0, 255)
    weights = torch.tensor([8, 1, 0]).byte()[None, None]
    expected = 8 * math.exp(0.25) * math.log(2) + math.exp(0.375) * math.log(4)
    assert border_cross_entropy(logits, target, weights).item() == pytest.approx(
        expected / 2, rel=1e-5
    )


def test_edge_loss_by_hand():
    """One edge pixel of four, each with probability 0.25: it weighs 3/4, the others 1/4."""
    logits = torch.full((1, 1, 1, 4), math.log(0.25 / 0.75))
    edge = torch.tensor([[[1, 0, 0, 0]]]).byte()
    expected = (0.75 * -math.log(0.25) + 3 * 0.25 * -math.log(0.75)) / 4
    assert edge_loss(logits, edge).item() == pytest.approx(expected, rel=1e-5)


def boundary_outputs(*seen):
    edge = torch.tensor(seen).logit()[None, None, None].requires_grad_()
    return {"logits": pixels(0.2, 0.5, 0.8), "edge": edge}


def test_the_main_loss_counts_again_where_a_border_is_seen():
    outputs = boundary_outputs(0.9, 0.7, 0.85)
    maps = {"edges": torch.tensor([[[1, 0, 0]]]).byte()}
    loss = Loss(boundary=2.0, outputs={"edge": Term(kind="edges", weight=0)})
    value = Criterion(loss)(outputs, label(0, 0, 0), maps)
    once = -(math.log(0.2) + math.log(0.5) + math.log(0.8)) / 3
    again = -(math.log(0.2) + math.log(0.8)) / 2
    assert value.item() == pytest.approx(once + 2 * again, rel=1e-5)
    assert not value.requires_grad  # nothing of it reaches the edge output
    nowhere = Criterion(loss)(boundary_outputs(0.5, 0.5, 0.5), label(0, 0, 0), maps)
    assert nowhere.item() == pytest.approx(once, rel=1e-5)


def test_pidnet_s_sum():
    outputs = boundary_outputs(0.9, 0.7, 0.85) | {"detail": pixels(0.5, 0.5, 0.5)}
    maps = {"edges": torch.tensor([[[1, 0, 0]]]).byte()}
    loss = Loss(
        boundary=1.0,
        outputs={"detail": Term(weight=0.4, mean="all"), "edge": Term(kind="edges", weight=20)},
    )
    assert loss.maps == ("edges",)
    target = label(0, 0, 255)
    value = Criterion(loss)(outputs, target, maps)
    expected = (
        cross_entropy(outputs["logits"], target)
        + 0.4 * cross_entropy(outputs["detail"], target, mean="all")
        + 20 * edge_loss(outputs["edge"], maps["edges"])
        + cross_entropy(outputs["logits"], label(0, 255, 255))
    )
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def settings(network, options):
    """{name: (rate multiplier, weight decay)}"""
    names = {id(p): name for name, p in network.named_parameters()}
    return {
        names[id(p)]: (group["multiplier"], group["weight_decay"])
        for group in make_optimizer(network, options).param_groups
        for p in group["params"]
    }


def test_groups_go_by_the_reference_s_names_and_the_first_counts():
    network = build("bisenetv1")
    options = Optimizer(
        weight_decay=0.5,
        decay_all=True,
        groups=(Group(names=("ffm.",), rate=10), Group(names=("ffm", "bn"), decay=0)),
    )
    found = settings(network, options)
    assert found["fusion.conv.conv.weight"] == (10, 0.5)  # ffm.convblk.conv
    assert found["fusion.conv.norm.weight"] == (10, 0.5)  # ffm.convblk.bn: the first group's
    assert found["smooth16.norm.bias"] == (1, 0)  # cp.conv_head16.bn
    assert found["smooth16.conv.weight"] == (1, 0.5)
    assert found["head.classifier.bias"] == (1, 0.5)  # decay_all


def test_a_group_that_fits_nothing_is_refused():
    with pytest.raises(ValueError, match=r"no parameter of bisenetv1 .* has 'fmm'"):
        make_optimizer(build("bisenetv1"), Optimizer(groups=(Group(names=("fmm",)),)))


def test_adam_and_its_betas():
    options = Optimizer(kind="adam", betas=(0.8, 0.99), weight_decay=0.1)
    optimizer = make_optimizer(build("csfcn_nano"), options)
    assert type(optimizer) is torch.optim.Adam
    assert all(group["betas"] == (0.8, 0.99) for group in optimizer.param_groups)


def test_a_warm_up_within_the_decay_scales_it():
    schedule = Schedule(iterations=100, warmup=10, warmup_from=0.5, warmup_within=True, power=1.0)
    assert factor(schedule, 0, 100) == pytest.approx(0.5)
    assert factor(schedule, 5, 100) == pytest.approx(0.75 * 0.95)
    assert factor(schedule, 50, 100) == pytest.approx(0.5)


def test_an_exponential_warm_up():
    schedule = Schedule(iterations=100, warmup=10, warmup_from=0.1, warmup_shape="exponential")
    assert factor(schedule, 5, 100) == pytest.approx(0.1**0.5)
    assert factor(schedule, 10, 100) == 1


def test_a_decay_from_epoch_to_epoch_down_to_its_last():
    schedule = Schedule(epochs=3, power=1.0, last=0.01, per_epoch=True)
    rates = [factor(schedule, i, 30, 10) for i in range(30)]
    steps = [1 - 0.99 * epoch / 3 for epoch in range(3)]
    assert rates == pytest.approx([step for step in steps for _ in range(10)])


def test_a_cosine():
    schedule = Schedule(iterations=100, shape="cosine", last=0.2)
    assert factor(schedule, 0, 100) == 1
    assert factor(schedule, 50, 100) == pytest.approx(0.6)
    assert factor(schedule, 100, 100) == pytest.approx(0.2)
