"""Which variant a state dict belongs to, by names and shapes, and what depends on its classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from . import VARIANTS
from .checkpoints import COUNTERS, rename_to_ours
from .network import Network
from .shadow import shadow
from .stored import State

SURE = 0.9  # share of entries from which a state dict is taken for a variant's
ALIKE = 0.5  # and from which a variant is worth naming
CLASSES = 19


@dataclass(frozen=True)
class Likeness:
    """`share`: of the entries of state dict and variant together, those that fit; `num_classes` is
    None where the state dict does not tell."""

    variant: str
    share: float
    num_classes: int | None


def likely(state: State, guess: str | None = None) -> Likeness:
    """The variant that `state`, by our names or official ones, fits best whatever its classes; of
    those that fit alike the first. A `guess` that fits nearly all is not compared with others."""
    if guess:
        known = _likeness(state, guess)
        if known.share > SURE:
            return known
    shares: dict[str, float] = {}
    for name in VARIANTS:
        renamed, shapes = _renamed(state, name), _shapes(name, CLASSES)
        fits = sum(renamed[k].shape == shapes[k] for k in renamed.keys() & shapes)
        shares[name] = fits / max(len(shapes), len(renamed))
        if shares[name] == 1:
            break
    return _likeness(state, max(shares, key=lambda name: shares[name]))


def _likeness(state: State, name: str) -> Likeness:
    """With what another class count explains: to ask that of all variants would take long."""
    renamed, shapes = _renamed(state, name), _shapes(name, CLASSES)
    free = class_entries(name)
    fits = sum(k in free or renamed[k].shape == shapes[k] for k in renamed.keys() & shapes)
    return Likeness(name, fits / max(len(shapes), len(renamed)), _classes(renamed, name))


def _renamed(state: State, variant: str) -> State:
    renamed = rename_to_ours(state, _shadow(variant, CLASSES))
    return {k: v for k, v in renamed.items() if not k.endswith(COUNTERS)}


@cache
def class_entries(variant: str) -> frozenset[str]:
    """The entries whose shapes depend on the class count: classifiers, of auxiliary heads too."""
    more = _shapes(variant, CLASSES + 1)
    return frozenset(k for k, shape in _shapes(variant, CLASSES).items() if shape != more[k])


def _classes(state: State, variant: str) -> int | None:
    """The class count that the classifier's shapes mean."""
    few, more = _shapes(variant, CLASSES), _shapes(variant, CLASSES + 1)
    for key in sorted(class_entries(variant) & state.keys()):
        sides = zip(state[key].shape, few[key], more[key], strict=False)
        for found, low, high in sides:
            if high > low and found % (high - low) == 0:
                return int(found // (high - low))
    return None


@cache
def _shapes(variant: str, num_classes: int) -> dict[str, torch.Size]:
    state = _shadow(variant, num_classes).state_dict()
    return {k: v.shape for k, v in state.items() if not k.endswith(COUNTERS)}


@cache
def _shadow(variant: str, num_classes: int) -> Network:
    """The network without values."""
    return shadow(variant, num_classes)
