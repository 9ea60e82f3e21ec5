"""Networks without values: their names, shapes and costs in a moment, whatever their size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from . import build
from .network import Network


class _NoRandomValues(TorchFunctionMode):
    """Random initialization left out: there is nothing to fill, and on the meta device it imports
    PyTorch's compiler, which takes seconds."""

    SKIPPED = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in self.SKIPPED:
            return args[0]
        return func(*args, **(kwargs or {}))


def shadow(variant: str, num_classes: int = 19, **options: Any) -> Network:
    """`build` on the meta device."""
    with torch.device("meta"), _NoRandomValues():
        return build(variant, num_classes, **options)
