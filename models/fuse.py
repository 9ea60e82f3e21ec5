"""Fusing: a network's cheaper equivalent form, which is what gets exported."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .layers import Constant
from .network import AnyModule, copy_to_meta, dtype_of


def deploy(model: AnyModule, size: tuple[int, int] | None = None) -> AnyModule:
    """Copy a network in eval mode, with its modules in their cheaper equivalent forms.

    A module that has one says so by a method `to_deployed()` that returns it: norms folded into
    convolutions, branches and linear chains merged.

    Args:
        model: left as it is.
        size: (height, width) for which the constants that depend on it (pooling matrices, sampling
            grids) are made, once, here.
    """
    model = _deploy_modules(copy.deepcopy(model).eval()).requires_grad_(False)
    if size is not None:
        _make_constants(model, size)
    return model


def _make_constants(model: nn.Module, size: tuple[int, int]) -> None:
    """Run a copy without data, and keep the constants that it requested."""
    shadow = copy_to_meta(model)
    with torch.no_grad():
        shadow(torch.empty(1, 3, *size, device="meta", dtype=dtype_of(shadow)))
    for ours, theirs in zip(model.modules(), shadow.modules(), strict=True):
        # `made` holds CPU tensors even here: only what is placed beside `like` is on meta.
        if isinstance(ours, Constant) and isinstance(theirs, Constant):
            ours.made.update(theirs.made)


def _deploy_modules(module: AnyModule) -> AnyModule:
    # Children first: SFC's deployed form needs the bias that folding a norm gives its convolution.
    for name, child in list(module.named_children()):
        setattr(module, name, _deploy_modules(child))
    make = getattr(module, "to_deployed", None)
    return make() if make else module
