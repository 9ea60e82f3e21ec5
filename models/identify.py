"""Identification: the variant that a state dict belongs to, and its class-dependent entries."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from ..errors import CheckpointError
from .checkpoints import COUNTERS, State, read_checkpoint, read_metadata, rename_to_ours
from .checkpoints import unwrap_state_dict as unwrap
from .network import Network
from .registry import VARIANTS, build_on_meta

SURE = 0.9  # share of entries from which a state dict is taken for a variant's
ALIKE = 0.5  # and from which a variant is worth naming
CLASSES = 19


@dataclass(frozen=True)
class Match:
    """How well a state dict fits a variant.

    Attributes:
        share: of the entries of state dict and variant together, those that fit, 0 to 1.
        num_classes: None where the state dict does not tell.
    """

    variant: str
    share: float
    num_classes: int | None


def identify_checkpoint(path: Path) -> str:
    """The variant whose entries a checkpoint file holds.

    Raises:
        CheckpointError: if the file cannot be read or fits no variant.
    """
    named = read_metadata(path).get("variant")
    if named in VARIANTS:
        return str(named)
    found = identify_variant(unwrap(read_checkpoint(path), str(path)))
    if found.share < SURE:
        raise CheckpointError(
            f"{path} fits no variant: nearest is {found.variant}, of whose entries "
            f"{found.share:.0%} match; name the variant and give the file as weights to see the "
            "differences"
        )
    return found.variant


def identify_variant(state: State, guess: str | None = None) -> Match:
    """The variant that a state dict fits best, whatever its classes; the first of equal ones.

    Args:
        state: by our names or official ones.
        guess: a variant that is not compared with others if it fits nearly all.
    """
    # To compare with every variant takes seconds, and the guess is right as a rule.
    if guess:
        known = _match(state, guess)
        if known.share > SURE:
            return known
    shares: dict[str, float] = {}
    for name in VARIANTS:
        renamed, shapes = _rename(state, name), _shapes(name, CLASSES)
        fits = sum(renamed[k].shape == shapes[k] for k in renamed.keys() & shapes)
        shares[name] = fits / max(len(shapes), len(renamed))
        if shares[name] == 1:  # nothing fits better, and renaming for the others takes seconds
            break
    return _match(state, max(shares, key=lambda name: shares[name]))


def _match(state: State, name: str) -> Match:
    """With what another class count explains: to ask that of all variants would take long."""
    renamed, shapes = _rename(state, name), _shapes(name, CLASSES)
    free = class_entries(name)
    fits = sum(k in free or renamed[k].shape == shapes[k] for k in renamed.keys() & shapes)
    return Match(name, fits / max(len(shapes), len(renamed)), _count_classes(renamed, name))


def _rename(state: State, variant: str) -> State:
    renamed = rename_to_ours(state, _network(variant, CLASSES))
    return {k: v for k, v in renamed.items() if not k.endswith(COUNTERS)}


@cache
def class_entries(variant: str) -> frozenset[str]:
    """The entries whose shapes depend on the class count: classifiers, of auxiliary heads too."""
    more = _shapes(variant, CLASSES + 1)
    return frozenset(k for k, shape in _shapes(variant, CLASSES).items() if shape != more[k])


def _count_classes(state: State, variant: str) -> int | None:
    """The class count that the classifier's shapes mean."""
    few, more = _shapes(variant, CLASSES), _shapes(variant, CLASSES + 1)
    for key in sorted(class_entries(variant) & state.keys()):
        for found, low, high in zip(state[key].shape, few[key], more[key], strict=False):
            # A classifier has K, or K times a pixel shuffle's positions, rows: the step tells.
            if high > low and found % (high - low) == 0:
                return int(found // (high - low))
    return None


@cache
def _shapes(variant: str, num_classes: int) -> dict[str, torch.Size]:
    state = _network(variant, num_classes).state_dict()
    return {k: v.shape for k, v in state.items() if not k.endswith(COUNTERS)}


@cache
def _network(variant: str, num_classes: int) -> Network:
    return build_on_meta(variant, num_classes)
