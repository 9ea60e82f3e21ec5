"""States of a run: the weights that it starts from, and the files that it resumes from.

Files are written whole or not at all, and read without running code.
"""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.classes import IGNORE
from ..data.files import write_atomically
from ..data.soft_labels import load_class_map
from ..errors import CheckpointError, UsageError
from ..models import Network, load_checkpoint
from ..models.attention import resize_bias_table
from ..models.checkpoints import (
    COMPUTED,
    read_checkpoint,
    rename_keys,
    rename_to_ours,
    unwrap_state_dict,
)
from ..models.identify import class_entries
from ..models.loading import find_weights, read_classes
from .recipe import Recipe

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


def start_network(network: Network, recipe: Recipe) -> Started | None:
    """Fill `network` from the file that `recipe` names; None where it names none."""
    if recipe.pretrained is not None:
        return start_backbone(network, recipe.pretrained)
    if recipe.weights is None:
        return None
    path = find_weights(recipe.weights)
    load_checkpoint(network, path, recipe.classifier)
    own = network.state_dict().keys()
    new = class_entries(recipe.model) & own if recipe.classifier == "new" else ()
    if recipe.classifier_map is not None:
        start_classifier(network, path, recipe.classifier_map)
        new = ()
    return Started(str(path), len(own) - len(new), len(own), tuple(sorted(new)))


def start_classifier(network: Network, path: Path, class_map: str | tuple[int, ...]) -> None:
    """Let each of `network`'s classes start as the one of the checkpoint that the map names.

    Args:
        network: its other entries are left as they are.
        path: a checkpoint of the same variant with other classes, which it names.
        class_map: as `load_class_map` takes it; a class that is mapped to null stays new.

    Raises:
        CheckpointError: if the file does not name its classes, or has a classifier that does not
            hold its classes one after another.
        UsageError: if the map does not fit.
    """
    classes, count = read_classes(path), network.info.num_classes
    if classes is None:
        raise CheckpointError(f"{path} does not name its classes: leave classifier_map out")
    ids = load_class_map(class_map, classes)
    if len(ids) != count:
        raise UsageError(f"classifier_map has {len(ids)} entries for {count} classes")
    stored = rename_to_ours(unwrap_state_dict(read_checkpoint(path), str(path)), network)
    state = network.state_dict()
    for key in class_entries(network.info.name) & state.keys():
        own, theirs = state[key], stored[key]
        if (
            own.shape[0] * len(classes) != theirs.shape[0] * count
            or own[0].shape != theirs[0].shape
        ):
            raise CheckpointError(f"{path}: {key} holds no class after another to start from")
        rows = theirs.chunk(len(classes))
        for new, old in zip(own.chunk(count), ids, strict=True):
            if old != IGNORE:
                new.copy_(rows[old])


def start_backbone(network: Network, path: Path) -> Started:
    """Fill `network`'s backbone from a classification or segmentation checkpoint.

    What does not fit (a classifier, a head, another stem) is left out; what a network computes, and
    norms' counters, do not matter. Swin's bias tables of another window are resized. Raises
    CheckpointError if less than half of the backbone would be filled.
    """
    state = _plain_names(unwrap_state_dict(read_checkpoint(path), str(path)))
    own = {k: v for k, v in network.state_dict().items() if k.startswith("backbone.")}
    own = {k: v for k, v in own.items() if not k.endswith(COMPUTED)}
    # Whatever prefix fits the most: classification checkpoints have none, others one of these.
    fits = max((_fitting(state, own, network, p) for p in PREFIXES), key=len)
    left = tuple(key for key in own if key not in fits)
    # A stem and norms of equal shape fit by chance.
    if 2 * len(fits) < len(own):
        raise CheckpointError(
            f"{path} holds {len(fits)} of the {len(own)} entries of {network.info.name}'s backbone "
            f"(missing {', '.join(left[:3])}, ...): it belongs to another network"
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


class SaveError(OSError):
    """A file of the run that could not be written; what was saved before is still there."""


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Raises SaveError, such as for a full disk, and leaves an older file at `path` as it was."""
    # In memory first: a full disk then leaves the older state whole.
    content = io.BytesIO()
    torch.save(state, content)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise SaveError(
            f"cannot write {path}: {error.strerror or error}; the last saved state is unharmed, "
            "make room and continue with --resume"
        ) from error


def read_state(path: Path) -> dict[str, Any]:
    """Raises CheckpointError for a file that is missing, damaged or no state of a run."""
    if not path.is_file():
        raise CheckpointError(f"nothing to resume: no {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling damaged bytes can raise anything
        raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "iteration" not in state:
        raise CheckpointError(f"{path} is not the state of a training run")
    if "optimiser" in state:  # as 0.1 wrote it
        state["optimizer"] = state.pop("optimiser")
    return state


def git_revision() -> str:
    """The revision of this code, `-dirty` if changed since; "unknown" outside a checkout."""
    folder = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
