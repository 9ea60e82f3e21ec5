"""From what a user names to a network: a variant, a checkpoint, or a variant and its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from torch import nn

from ..data.classes import CITYSCAPES, CLASS_SETS, ClassSet, load_class_set
from ..data.scenes import scenes
from ..errors import CheckpointError, UsageError
from . import VARIANTS, build
from .checkpoints import load_checkpoint
from .identify import SURE, likely
from .network import Network
from .stored import read, read_header, unwrap

PRETRAINED = Path(__file__).with_name("pretrained")
SEED = 0


@dataclass(frozen=True)
class Model:
    """A network with its weights and its classes: what `export`, `bench` and `evaluate` take whole.

    Attributes:
        network: in eval mode, on the CPU.
        classes: what its labels mean.
        weights_from: the file of the weights, or how they were drawn.
        trained: False for random weights.
    """

    network: Network
    classes: ClassSet
    weights_from: str
    trained: bool


def load_model(
    what: str | os.PathLike[str] | Network | Model,
    weights: str | os.PathLike[str] | None = None,
    classes: str | os.PathLike[str] | ClassSet | None = None,
) -> Model:
    """A network with its weights and its classes.

    Args:
        what: a variant's name, "NAME:WEIGHTS", a checkpoint (its variant is recognized), or a
            `Network` with the weights that it has.
        weights: checkpoint to load into the named variant; by default the weights that ship with
            it, if they are for `classes`, else seeded random ones.
        classes: a class set, its name or its YAML file; by default that of the weights.

    Raises:
        UsageError: no variant is called so, or `what` has its weights already.
        CheckpointError: the weights cannot be read or do not fit; nothing was loaded.
    """
    if isinstance(classes, (str, os.PathLike)):
        classes = load_class_set(classes)
    if isinstance(what, (Network, Model)):
        if weights is not None:
            raise UsageError("a network has its weights already: name a variant to load some into")
        return _with_classes(what, classes)
    name, colon, file = os.fspath(what).partition(":")
    if colon and name in VARIANTS:
        if weights is not None:
            raise UsageError(f"{what} names its weights already: leave the others out")
        return _open(name, Path(file), classes)
    return _open(os.fspath(what), None if weights is None else Path(weights), classes)


def _with_classes(what: Network | Model, classes: ClassSet | None) -> Model:
    network = what.network if isinstance(what, Model) else what
    count = network.info.num_classes
    if classes is not None and len(classes) != count:
        raise UsageError(f"{classes.name!r} has {len(classes)} classes, the network {count}")
    if isinstance(what, Model):
        return what if classes is None else replace(what, classes=classes)
    if classes is None and count == len(CITYSCAPES):
        classes = CITYSCAPES
    if classes is None:
        names = tuple(f"class {i}" for i in range(count))
        classes = ClassSet("unnamed", names, tuple((i, i, i) for i in range(count)))
    return Model(network, classes, "memory", True)


def _open(model: str, weights: Path | None, classes: ClassSet | None) -> Model:
    if model not in VARIANTS and (weights is not None or not Path(model).exists()):
        build(model)  # says what the name might have been
    if model not in VARIANTS:
        model, weights = identify_checkpoint(Path(model)), Path(model)
    shipped = shipped_weights(model)
    if weights is None and shipped and (classes is None or classes == read_classes(shipped)):
        weights = shipped
    if weights is None:
        classes = classes or CITYSCAPES
        return Model(build_untrained(model, len(classes)), classes, f"random, seed {SEED}", False)
    classes = classes or read_classes(weights) or CITYSCAPES
    network = load_checkpoint(build(model, len(classes)), weights)
    trained = read_metadata(weights).get("trained", True)
    return Model(network, classes, weights.name, bool(trained))


Source: TypeAlias = Model  # until the last caller has the new names
open_source = load_model


def shipped_weights(variant: str) -> Path | None:
    """The weights of `variant` inside the package, if there are any."""
    found = sorted(PRETRAINED.glob(f"{variant}_*.safetensors"))
    return next((path for path in found if read_metadata(path).get("variant") == variant), None)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the tensors; {} for other files."""
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    facts = {}
    for key, value in read_header(path).items():
        try:
            facts[key] = json.loads(value)
        except ValueError:
            facts[key] = value  # another tool's header, in its own form
    return facts


def read_classes(path: Path) -> ClassSet | None:
    """The class set that a checkpoint names, by name or in full."""
    facts = read_metadata(path)
    named = facts.get("classes")
    if isinstance(named, str):
        return CLASS_SETS.get(named)
    if isinstance(named, dict):
        palette = tuple((int(r), int(g), int(b)) for r, g, b in named["palette"])
        return ClassSet(named["name"], tuple(named["names"]), palette)
    card = facts.get("card")
    if isinstance(card, dict):
        palette = tuple((int(r), int(g), int(b)) for r, g, b in card["palette"])
        ids = tuple(card["label_ids"]) if card.get("label_ids") else None
        return ClassSet(card["class_set"], tuple(card["classes"]), palette, ids)
    return None


def identify_checkpoint(path: Path) -> str:
    """The variant whose entries a checkpoint holds."""
    named = read_metadata(path).get("variant")
    if named in VARIANTS:
        return str(named)
    found = likely(unwrap(read(path), str(path)))
    if found.share < SURE:
        raise CheckpointError(
            f"{path} fits no variant: nearest is {found.variant}, of whose entries "
            f"{found.share:.0%} match; name the variant and give the file as weights to see the "
            "differences"
        )
    return found.variant


def build_untrained(variant: str, num_classes: int, seed: int = SEED) -> Network:
    """Seeded random weights that behave: no layer is silent, none multiplies the scale of what it
    gets, and the norms fit drawn street scenes.

    Otherwise activations grow or vanish and attention saturates, and half precision has nothing
    real to be compared on. torch's own random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(variant, num_classes)
        for module in network.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
                fan_in = module.weight[0].numel()
                nn.init.normal_(module.weight, std=fan_in**-0.5)
            if init_untrained := getattr(module, "init_untrained", None):
                init_untrained()
    _fit_norms(network, scenes(2, (256, 512), seed))
    return network


def _fit_norms(network: Network, frames: Iterable[np.ndarray[Any, Any]]) -> None:
    """In float64: float32's sums depend on threads and memory, and the weights would with them."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    if not norms:
        network.eval()
        return
    network.double()
    momentum = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(_fit_if_enough) for norm in norms]
    for norm in norms:
        norm.momentum = None  # average over all frames seen
    with torch.no_grad():
        for frame in frames:
            network.forward_logits(normalize_frame(frame, network).double())
    for norm, before, hook in zip(norms, momentum, hooks, strict=True):
        norm.momentum = before
        hook.remove()
    network.float().eval()


def _fit_if_enough(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """A norm behind a global mean has no spread to measure in a frame; it stays as it was built."""
    norm.train(inputs[0][:, 0].numel() > 64)


def normalize_frame(frame: np.ndarray[Any, Any], network: Network) -> torch.Tensor:
    """frame (H, W, 3) uint8 BGR -> the network's input (1, 3, H, W) float32, as papers write it."""
    rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB).astype(np.float32) / 255
    rgb = (rgb - np.float32(network.info.mean)) / np.float32(network.info.std)
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None]
