"""How a network starts: its backbone from ImageNet weights, or all of it from a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError
from ..models import Network, load_checkpoint
from ..models.attention import resize_bias_table
from ..models.checkpoints import COMPUTED, read_checkpoint, rename_keys, unwrap_state_dict
from ..models.identify import class_entries
from .sections import Recipe

MMSEG_STEM = (  # its deep stem -> the official one
    (r"^stem\.7\.", "bn1."),
    (r"^stem\.(\d)\.", r"conv1.\1."),
)
PREFIXES = ("", "resnet.", "backbone.", "backbone.stem.")


@dataclass(frozen=True)
class Started:
    """From `file`, `loaded` of the `entries` were filled; `left` names those that were not."""

    file: str
    loaded: int
    entries: int
    left: tuple[str, ...]


def start(network: Network, recipe: Recipe) -> Started | None:
    """Fill `network` from the file that `recipe` names; None where it names none."""
    if recipe.pretrained is not None:
        return start_backbone(network, recipe.pretrained)
    if recipe.weights is None:
        return None
    load_checkpoint(network, recipe.weights, recipe.classifier)
    own = network.state_dict().keys()
    new = class_entries(recipe.model) & own if recipe.classifier == "new" else ()
    return Started(str(recipe.weights), len(own) - len(new), len(own), tuple(sorted(new)))


def start_backbone(network: Network, path: Path) -> Started:
    """Fill `network`'s backbone from a classification or segmentation checkpoint.

    What does not fit (a classifier, a head, another stem) is left out; what a network computes, and
    norms' counters, do not matter. Swin's bias tables of another window are resized. Raises
    CheckpointError if less than half of the backbone would be filled.
    """
    state = _plain_names(unwrap_state_dict(read_checkpoint(path), str(path)))
    own = {k: v for k, v in network.state_dict().items() if k.startswith("backbone.")}
    own = {k: v for k, v in own.items() if not k.endswith(COMPUTED)}
    fits = max((_fitting(state, own, network, p) for p in PREFIXES), key=len)
    left = tuple(key for key in own if key not in fits)
    if 2 * len(fits) < len(own):
        raise CheckpointError(
            f"{path} holds {len(fits)} of the {len(own)} entries of {network.info.name}'s backbone "
            f"(missing {', '.join(left[:3])}, ...): it is of another network"
        )
    network.load_state_dict(fits, strict=False)
    return Started(str(path), len(fits), len(own), left)


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of whole segmentation networks, the stem by its official names."""
    named = {}
    for key, value in state.items():
        key = key.removeprefix("backbone.").removeprefix("resnet.")
        for pattern, official in MMSEG_STEM:
            key = re.sub(pattern, official, key)
        named[key] = value
    return named


def _fitting(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], network: Network, prefix: str
) -> dict[str, Tensor]:
    modern = network.upgrade_state_dict({prefix + key: value for key, value in state.items()})
    names = rename_keys(modern, network.keys)
    renamed = {names[key]: value for key, value in modern.items() if key in names}
    for key, value in renamed.items():
        if key.endswith("attention.bias.table") and key in own and value.dim() == 2:
            renamed[key] = resize_bias_table(value, len(own[key]))  # of another window
    return {k: v for k, v in renamed.items() if k in own and v.shape == own[k].shape}
