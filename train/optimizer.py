"""The optimizer, its learning rates, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import nn

from ..errors import UsageError
from ..models import Network
from ..models.checkpoints import official_names
from .recipe import Group, Optimizer, Schedule

UNCHANGED = Group(names=("",))


def make_optimizer(model: Network, options: Optimizer) -> torch.optim.Optimizer:
    """Groups of parameters by weight decay and by what their learning rate is multiplied with, in
    each group's `multiplier`.

    Raises:
        UsageError: if a group of the recipe fits no parameter.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    official, unseen = official_names(model), set(options.groups)
    for name, parameter in model.named_parameters():
        group = _group(official.get(name, name), options)
        unseen.discard(group)
        decay = options.weight_decay * group.decay
        if parameter.ndim == 1 and not options.decay_all:
            decay = 0.0
        # By our own names here: every family calls it `backbone`, references do not.
        rate = group.rate * (options.backbone if name.startswith("backbone.") else 1.0)
        if parameter.requires_grad:
            groups.setdefault((decay, rate), []).append(parameter)
    for group in unseen:
        raise UsageError(
            f"optimizer.groups: no parameter of {model.info.name} that an earlier group leaves has "
            f"{' or '.join(map(repr, group.names))} in its reference's name"
        )
    rows = [
        {"params": parameters, "weight_decay": decay, "multiplier": rate}
        for (decay, rate), parameters in groups.items()
    ]
    if options.kind == "sgd":
        return torch.optim.SGD(rows, lr=options.learning_rate, momentum=options.momentum)
    kind = torch.optim.AdamW if options.kind == "adamw" else torch.optim.Adam
    return kind(rows, lr=options.learning_rate, betas=options.betas)


def _group(name: str, options: Optimizer) -> Group:
    """The first of the recipe's groups that fits, or one that changes nothing."""
    fits = (g for g in options.groups if any(word in name for word in g.names))
    return next(fits, UNCHANGED)


def state_by_name(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, object]:
    """{parameter's name: its moments}; unlike PyTorch's numbers, names outlive a new order."""
    names: dict[object, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: dict(state) for parameter, state in optimizer.state.items()}


def load_state_by_name(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, object]
) -> None:
    """Fill the optimizer from `state_by_name`, whatever the order of its parameters now."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    numbered = {number: saved[name] for number, name in enumerate(order) if name in saved}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": numbered, "param_groups": groups})


def factor(schedule: Schedule, iteration: int, total: int, epoch: int = 1) -> float:
    """What the learning rate is multiplied with in `iteration` of 0 .. total - 1; `epoch` is the
    number of iterations in one."""
    warmup = schedule.warmup
    begin = 0 if schedule.warmup_within else warmup
    at = iteration // epoch * epoch if schedule.per_epoch else iteration
    progress = max(0, at - begin) / max(1, total - begin)
    if schedule.shape == "cosine":
        left = (1 + math.cos(math.pi * progress)) / 2
    else:
        left = float((1 - progress) ** schedule.power)
    rate = schedule.last + (1 - schedule.last) * left
    return rate * _warm_up(schedule, iteration / warmup) if iteration < warmup else rate


def _warm_up(schedule: Schedule, progress: float) -> float:
    if schedule.warmup_shape == "exponential":
        return float(schedule.warmup_from ** (1 - progress))
    return schedule.warmup_from + (1 - schedule.warmup_from) * progress


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Each group of weights has its own multiple of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


class Average:
    """Exponential moving average of a model's weights and norm statistics.

    The decay grows to `decay` from 2/11 in the first updates.
    """

    def __init__(self, model: Network, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        # Small at first, so that the random start is forgotten.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = list(values(self.model)), list(values(model))
        floating = [a.is_floating_point() for a in ours]
        # All tensors in one call, not one small operation each.
        torch._foreach_lerp_(
            [a for a, f in zip(ours, floating, strict=True) if f],
            [b for b, f in zip(theirs, floating, strict=True) if f],
            1 - decay,
        )
        for mine, new, is_float in zip(ours, theirs, floating, strict=True):
            if not is_float:
                mine.copy_(new)


def values(model: nn.Module) -> Iterable[torch.Tensor]:
    """Weights and norm statistics, in an order that depends on the architecture only."""
    return model.state_dict().values()
