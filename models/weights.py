"""Checkpoints: read without running code, renamed, loaded whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from ..data.files import write_atomically
from .layers import RepConv
from .network import Network
from .variant import Keys

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
LOSSES = ("loss.", "sem_loss.", "bd_loss.", "criterion.")  # buffers that trainers save along
COUNTERS = "num_batches_tracked"  # of no use in inference; some tools drop them
INDICES = ("relative_position_index", "attn_mask", "attn.biases")  # a network makes its own
COMPUTED = (COUNTERS, *INDICES)


class CheckpointError(ValueError):
    """A checkpoint that does not fit; nothing was loaded.

    `missing`, `unexpected`: keys, `misshaped`: "key: found, expected", all of them, by our names.
    """

    def __init__(
        self,
        message: str,
        missing: Iterable[str] = (),
        unexpected: Iterable[str] = (),
        misshaped: Iterable[str] = (),
    ):
        super().__init__(message)
        self.missing, self.unexpected = list(missing), list(unexpected)
        self.misshaped = list(misshaped)


def load_checkpoint(model: Network, source: str | os.PathLike[str] | Mapping[str, Any]) -> Network:
    """Fill `model` from a checkpoint file or a state dict, and return it.

    Takes our names and the official ones, state dicts inside `state_dict`, `model` and the like,
    and prefixes such as `module.`. Files: `.safetensors`, or what `torch.save` wrote, read with
    `weights_only=True` so that no pickled code runs.

    Raises CheckpointError, and leaves `model` as it was, if the file cannot be read, holds code, or
    if any entry is missing, unexpected, of another shape or not finite.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = unwrap(source if isinstance(source, Mapping) else read(Path(source)), where)
    state = with_silent_branches(rename_to_ours(state, model), model)
    _check(state, model, where)
    own = model.state_dict()
    computed = {k: v for k, v in own.items() if k.endswith(COMPUTED)}
    model.load_state_dict(computed | state, strict=True)
    return model


def read(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint file; see `load_checkpoint`."""
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes())
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = _refused(str(error))
        raise CheckpointError(
            f"{path} holds {what}: only tensors are read, for a pickle can run any code; "
            "save its state_dict() alone, best as .safetensors"
        ) from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint: {str(error).splitlines()[0]}; fetch it again"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; {} where there is none."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
    except (OSError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from error
    return header.get("__metadata__") or {}


def _refused(message: str) -> str:
    found = re.search(
        r"(?:GLOBAL|Unsupported (?:global|class|type)[^\w]*)\s*:?\s*([\w.]+)", message
    )
    return f"pickled objects ({found.group(1)})" if found else "pickled objects or damaged data"


def unwrap(content: Mapping[str, Any], where: str = "the checkpoint") -> State:
    """The state dict inside `content`, without the prefixes that wrappers leave behind."""
    for _ in range(3):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    state = {k: v for k, v in state.items() if not k.startswith(LOSSES)}
    if not state:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{where} holds no tensors, but {keys}")
    while prefix := next((p for p in PREFIXES if all(k.startswith(p) for k in state)), None):
        state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


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
    own = model.state_dict().keys()
    names = rename(state, _keys(model))
    if len(own & set(names.values())) > len(own & state.keys()):
        state = {names[k]: v for k, v in state.items() if k in names}
    state = model.adapted({k: v for k, v in state.items() if not k.endswith(INDICES)})
    return {k: v for k, v in state.items() if k in own or not k.endswith(COUNTERS)}


def official_names(model: Network) -> dict[str, str]:
    """{our name: official name} for every entry of the model's state dict."""
    return rename(model.state_dict(), [(ours, official) for official, ours in _keys(model) if ours])


def with_silent_branches(state: State, model: Network) -> State:
    """`state` of a plain head, made fit for a reparameterised one of the same function: the
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


def _check(state: State, model: Network, where: str) -> None:
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith(COMPUTED)]
    unexpected = [k for k in state if k not in own]
    misshaped = [
        f"{k}: found {tuple(state[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    if missing or unexpected or misshaped:
        found = _found_classes(state, model)
        name = f"{model.info.name} with {model.info.num_classes} classes"
        lines = [f"{where} does not fit {name}"]
        if found and found != model.info.num_classes:
            lines[0] += f": it has {found} classes; build the model with num_classes={found}"
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


def _found_classes(state: State, model: Network) -> int | None:
    """The class count of a checkpoint whose classifier alone differs."""
    for name, value in model.state_dict().items():
        other = state.get(name)
        if other is None or other.shape == value.shape or not value.ndim:
            continue
        if value.shape[0] % model.info.num_classes == 0:
            per_class = value.shape[0] // model.info.num_classes
            if other.shape[1:] == value.shape[1:] and other.shape[0] % per_class == 0:
                return int(other.shape[0] // per_class)
    return None


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
