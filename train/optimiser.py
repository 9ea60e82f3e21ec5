"""The optimiser, its learning rates, and the averaged copy of the weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..models import Network
from .recipe import Optimiser, Schedule


def make_optimiser(model: nn.Module, options: Optimiser) -> torch.optim.Optimizer:
    """Groups by weight decay (none for parameters of one dimension) and by backbone or not.

    Each group's `multiplier` scales the learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = options.weight_decay if parameter.ndim > 1 else 0.0
            multiplier = options.backbone if name.startswith("backbone.") else 1.0
            groups.setdefault((decay, multiplier), []).append(parameter)
    rows = [
        {"params": parameters, "weight_decay": decay, "multiplier": multiplier}
        for (decay, multiplier), parameters in groups.items()
    ]
    if options.kind == "adamw":
        return torch.optim.AdamW(rows, lr=options.learning_rate)
    return torch.optim.SGD(rows, lr=options.learning_rate, momentum=options.momentum)


def state_by_name(optimiser: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """{parameter's name: its moments}; unlike PyTorch's numbers, names outlive a new order."""
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: dict(state) for parameter, state in optimiser.state.items()}


def load_state_by_name(
    optimiser: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]
) -> None:
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[p] for group in optimiser.param_groups for p in group["params"]]
    numbered = {number: saved[name] for number, name in enumerate(order) if name in saved}
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": numbered, "param_groups": groups})


def factor(schedule: Schedule, iteration: int, total: int) -> float:
    """What the learning rate is multiplied with in `iteration` of 0 .. total - 1."""
    if iteration < schedule.warmup:
        progress = iteration / schedule.warmup
        return schedule.warmup_from + (1 - schedule.warmup_from) * progress
    span = max(1, total - schedule.warmup)
    return float((1 - (iteration - schedule.warmup) / span) ** schedule.power)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate * group["multiplier"]


class Average:
    """Exponential moving average of a model's weights and norm statistics.

    The decay grows from 0.1 towards `decay` in the first updates, so that the random start is
    forgotten.
    """

    def __init__(self, model: Network, decay: float):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = list(values(self.model)), list(values(model))
        floating = [a.is_floating_point() for a in ours]
        torch._foreach_lerp_(
            [a for a, f in zip(ours, floating, strict=True) if f],
            [b for b, f in zip(theirs, floating, strict=True) if f],
            1 - decay,
        )
        for mine, new, is_float in zip(ours, theirs, floating, strict=True):
            if not is_float:
                mine.copy_(new)


def values(model: nn.Module) -> Iterable[torch.Tensor]:
    return model.state_dict().values()
