"""Registry: every variant by name, and `build`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches

import torch
from torch.overrides import TorchFunctionMode

from ..errors import UsageError
from .families import (
    bisenet,
    crossformer,
    csfcn,
    ddrnet,
    ecfd,
    efficientvit,
    fddwnet,
    ffnet,
    icnet,
    mgseg,
    pidnet,
    sctnet,
    segformer,
    senformer,
    sfanet,
    sfnet,
    swiftnet,
)
from .network import Network, NetworkInfo
from .variant import Variant

FAMILIES = (  # a new one: its import above, its name here; the order is that of `rtseg models`
    *(
        csfcn,
        sfnet,
        swiftnet,
        bisenet,
        pidnet,
        ddrnet,
        sctnet,
        sfanet,
        mgseg,
        icnet,
        ffnet,
        fddwnet,
        efficientvit,
    ),
    *(crossformer, ecfd, senformer, segformer),
)
VARIANTS: dict[str, Variant] = {k: v for family in FAMILIES for k, v in family.VARIANTS.items()}


def find_variant(name: str) -> Variant:
    """The variant `name`.

    Raises:
        UsageError: if there is none; the message suggests the closest name.
    """
    if name not in VARIANTS:
        near = get_close_matches(name, VARIANTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`rtseg models` lists them"
        raise UsageError(f"no model is called {name!r}: {hint}")
    return VARIANTS[name]


def build(variant: str, num_classes: int = 19, **options: object) -> Network:
    """Build a network in eval mode, with random weights from torch's generator.

    Args:
        variant: a name in VARIANTS.
        num_classes: 2 to 255.
        **options: of the family, such as `head="rep"` of csfcn.

    Raises:
        UsageError: for an unknown name or a class count that labels cannot hold.
    """
    entry = find_variant(variant)
    if not 2 <= num_classes <= 255:
        raise UsageError(f"num_classes must be in 2..255 (labels are uint8), not {num_classes}")
    network: Network = entry.make(num_classes, **options)
    network.info = NetworkInfo(
        variant, num_classes, entry.mean, entry.std, entry.multiple, entry.align_corners
    )
    network.keys = entry.keys
    return network.eval()


def build_on_meta(variant: str, num_classes: int = 19, **options: object) -> Network:
    """`build` without values, on PyTorch's meta device: names, shapes and costs in a moment."""
    with torch.device("meta"), _SkipRandomValues():
        return build(variant, num_classes, **options)


class _SkipRandomValues(TorchFunctionMode):
    """Leaves random initialization out: on the meta device there is nothing to fill."""

    # There these two import PyTorch's compiler, which takes seconds.
    SKIPPED = (torch.Tensor.normal_, torch.Tensor.uniform_)

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return args[0] if func in self.SKIPPED else func(*args, **(kwargs or {}))
