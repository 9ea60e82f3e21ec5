"""Checkpoints: renamed, loaded whole or not at all, saved."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save as dump_safetensors

from ..data.files import write_atomically
from ..errors import CheckpointError
from .layers import RepConv
from .network import Network
from .stored import State, read, unwrap
from .variant import Keys

COUNTERS = "num_batches_tracked"  # of no use in inference; some tools drop them
INDICES = ("relative_position_index", "attn_mask", "attn.biases")  # a network makes its own
COMPUTED = (COUNTERS, *INDICES)


def load_checkpoint(
    model: Network,
    source: str | os.PathLike[str] | Mapping[str, Any],
    classifier: Literal["keep", "new"] = "keep",
) -> Network:
    """Fill `model` from a checkpoint file or a state dict, and return it.

    Takes our names and the official ones, state dicts inside `state_dict`, `model` and the like,
    and prefixes such as `module.`. Files: `.safetensors`, or what `torch.save` wrote, read with
    `weights_only=True` so that no pickled code runs. `classifier="new"` leaves the entries whose
    shape depends on the class count as they are in `model` (`likeness.class_entries` names them):
    for training on other classes.

    Raises CheckpointError, and leaves `model` as it was, if the file cannot be read, holds code, or
    if any entry is missing, unexpected, of another shape or not finite.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    stored = unwrap(source if isinstance(source, Mapping) else read(Path(source)), where)
    state = add_silent_branches(rename_to_ours(stored, model), model)
    own = model.state_dict()
    if classifier == "new":
        from .identify import class_entries

        state |= {k: own[k].clone() for k in class_entries(model.info.name) if k in own}
    _check(state, model, where, stored)
    computed = {k: v for k, v in own.items() if k.endswith(COMPUTED)}
    model.load_state_dict(computed | state, strict=True)
    return model


def _patterns(keys: Keys) -> list[tuple[re.Pattern[str], str | None]]:
    """Each row as a pattern for whole keys; `{x}` in the template takes what `{x}` matched."""
    rows = []
    for source, target in keys:
        named = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+?)", re.escape(source))
        pattern = re.compile(named + r"(?P<rest_>(?:\.[^.]+)?)$")
        rows.append((pattern, None if target is None else target + "{rest_}"))
    return rows


def rename(names: Iterable[str], keys: Keys) -> dict[str, str]:
    """{name: new name} by the first row of `keys` that matches; other names stay, and those that
    a row gives no new name are left out."""
    patterns = _patterns(keys)
    renamed = {}
    for name in names:
        hits = ((p.match(name), target) for p, target in patterns)
        match, target = next(((m, t) for m, t in hits if m), (None, name))
        if target is not None:
            renamed[name] = target.format(**match.groupdict()) if match else name
    return renamed


def _keys(model: Network) -> Keys:
    from . import VARIANTS  # the table is made of modules that this one serves

    return VARIANTS[model.info.name].keys


def rename_to_ours(state: State, model: Network) -> State:
    """`state` by our names, if it is in official ones; what a network computes is dropped."""
    own, state = model.state_dict().keys(), model.upgrade_state_dict(state)
    names = rename(state, _keys(model))
    if len(own & set(names.values())) > len(own & state.keys()):
        state = {names[k]: v for k, v in state.items() if k in names}
    state = model.convert_state_dict({k: v for k, v in state.items() if not k.endswith(INDICES)})
    return {k: v for k, v in state.items() if k in own or not k.endswith(COUNTERS)}


def official_names(model: Network) -> dict[str, str]:
    """{our name: official name} for every entry of the model's state dict."""
    return rename(model.state_dict(), [(ours, official) for official, ours in _keys(model) if ours])


def add_silent_branches(state: State, model: Network) -> State:
    """`state` of a plain head, made fit for a reparameterized one of the same function: the
    branches that it lacks are added, with norms that give zeros."""
    added: State = {}
    for name, module in model.named_modules():
        if not isinstance(module, RepConv):
            continue
        norms = dict(module.branch_norms())
        own = {
            f"{name}.{key}": value.detach().clone()
            for key, value in module.state_dict().items()
            if key.startswith(("point.", "identity."))
        }
        if own.keys() & state.keys():
            continue
        for norm in norms:
            own[f"{name}.{norm}.weight"].zero_()
            own[f"{name}.{norm}.bias"].zero_()
        added |= own
    return added | state


def _check(state: State, model: Network, where: str, stored: State) -> None:
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith(COMPUTED)]
    unexpected = [k for k in state if k not in own]
    misshaped = [
        f"{k}: found {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or misshaped:
        name = f"{model.info.name} with {model.info.num_classes} classes"
        lines = [f"{where} does not fit {name}{_likely(stored, model)}"]
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshaped),
        ):
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                lines.append(f"{len(names)} {what}: {', '.join(names[:4])}{more}")
        raise CheckpointError("; ".join(lines), missing, unexpected, misshaped)
    broken = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise CheckpointError(
            f"{where} holds NaN or infinite values, first in {broken[0]}: "
            "its training diverged; take an earlier checkpoint"
        )


def _likely(stored: State, model: Network) -> str:
    """What a checkpoint that does not fit seems to be, for the message."""
    from .identify import ALIKE, likely  # builds every variant, which only an error is worth

    found = likely(stored, guess=model.info.name)
    if found.variant != model.info.name:
        if found.share < ALIKE:
            return f": it fits no variant, {found.variant} the most ({found.share:.0%} of entries)"
        classes = f" with {found.num_classes} classes" if found.num_classes else ""
        return f": it looks like {found.variant}{classes} ({found.share:.0%} of its entries fit)"
    if found.num_classes and found.num_classes != model.info.num_classes:
        return (
            f": it has {found.num_classes} classes; build the model with "
            f"num_classes={found.num_classes}, or take all but its classifier with "
            "classifier='new'"
        )
    return ""


def save_checkpoint(
    model: Network,
    path: str | os.PathLike[str],
    naming: Literal["ours", "official"] = "ours",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write the weights as safetensors, with variant and class count in the header.

    `naming="official"` gives the reference implementation's keys back; `dtype` converts floating
    values; `metadata` is kept as JSON strings. The file appears whole or not at all.
    """
    path = Path(path)
    names = official_names(model) if naming == "official" else {k: k for k in model.state_dict()}
    state = {
        names[k]: (v.to(dtype) if dtype and v.is_floating_point() else v)
        .detach()
        .cpu()
        .contiguous()
        for k, v in model.state_dict().items()
    }
    facts = {"variant": model.info.name, "num_classes": model.info.num_classes}
    header = {k: json.dumps(v) for k, v in {**facts, **(metadata or {})}.items()}
    write_atomically(path, dump_safetensors(state, header))
    return path


def digest(model: Network) -> str:
    """SHA-256 over names, dtypes, shapes and values of the weights, whatever file held them."""
    summary = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not name.endswith(COMPUTED):
            array = value.detach().cpu().contiguous().numpy()
            summary.update(f"{name} {array.dtype} {array.shape}\n".encode())
            summary.update(array.tobytes())
    return summary.hexdigest()
