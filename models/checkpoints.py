"""Checkpoint files: read without running code, converted to our key names, written."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as dump_safetensors
from torch import Tensor

from ..data.files import write_atomically
from ..data.limits import check_archive
from ..data.safetensors_header import METADATA, read_tensor_header
from ..data.signature import check_required
from ..errors import CheckpointError
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

# What trainers save beside the weights, and what cannot run code: the best mIoU as a NumPy scalar,
# the command's options. NumPy 2 moved its modules; files hold either name.
_MAKERS = {"scalar": np.float64(0), "_reconstruct": np.zeros(0)}
_NUMPY = [
    (made.__reduce__()[0], f"{module}.multiarray.{name}")
    for name, made in _MAKERS.items()
    for module in ("numpy.core", "numpy._core")
]
_DTYPES = [type(np.dtype(code)) for code in "?bhilqBHILQefd"]
SAFE: list[Any] = [argparse.Namespace, np.dtype, np.ndarray, *dict.fromkeys(_DTYPES), *_NUMPY]


def refuse_misfit(
    problem: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    misshaped: Sequence[str],
    advice: str = "",
) -> None:
    """Raise a CheckpointError that names the keys by kind, if there are any.

    Args:
        problem: what does not fit what.
        missing: keys that the network has and the checkpoint lacks.
        unexpected: keys that it has too many.
        misshaped: likewise, with the shapes found and expected.
        advice: what may be done about keys alone.
    """
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    lines = [
        f"{len(keys)} {kind}: {', '.join(keys[:4])}"
        + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        for kind, keys in kinds.items()
        if keys
    ]
    if lines:
        lines += [advice] if advice and not misshaped else []
        raise CheckpointError("; ".join([problem, *lines]), missing, unexpected, misshaped)


def refuse_broken(state: Mapping[str, Tensor], where: str, names: Mapping[str, str]) -> None:
    """Raise a CheckpointError for values that are no numbers; `names`: of keys, in the file."""
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{where} holds NaN or infinite values, first in {names.get(key, key)}: "
                "its training diverged; take an earlier checkpoint"
            )


def read_checkpoint(path: Path) -> Mapping[str, object]:
    """Read a checkpoint file: `.safetensors`, or what `torch.save` wrote, with `weights_only=True`.

    Raises:
        CheckpointError: for a file that cannot be read or holds code.
    """
    check_required(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        read_tensor_header(path, CheckpointError)
    else:
        check_archive(path, CheckpointError)
    try:
        if path.suffix == ".safetensors":
            return load_safetensors(path.read_bytes())
        # torch warns of pickles of other protocols than its own, and then reads or refuses them.
        with torch.serialization.safe_globals(SAFE), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RecursionError) as error:
        raise CheckpointError(_explain_refusal(path, str(error))) from error
    except (
        SafetensorError,
        RuntimeError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        MemoryError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        why = [*str(error).splitlines(), type(error).__name__][0]
        raise CheckpointError(
            f"{path} is damaged or not a checkpoint: {why}; fetch it again"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    return content


def _explain_refusal(path: Path, message: str) -> str:
    """Name the class that stopped the reading, and the command that takes the tensors out."""
    found = re.search(r"(?:GLOBAL|[Uu]nsupported (?:class|type))\W+([\w.]+)", message)
    if not found:
        return f"{path} holds pickled objects or damaged data, not tensors alone; fetch it again"
    new = str(path.with_name(f"{path.stem}_weights.pth"))
    return (
        f"{path} holds an object of {found.group(1)}: only tensors are read, for a pickle can run "
        "any code. If you trust the file, take its weights out with\n"
        f'python -c "import torch; '
        f"c = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
        f"c = next((c[k] for k in {WRAPPERS} if k in c), c) if isinstance(c, dict) else c; "
        f"torch.save(c.state_dict() if hasattr(c, 'state_dict') else c, {new!r})\""
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_checkpoint` wrote beside the tensors; {} for files of other kinds.

    Raises:
        CheckpointError: for a damaged `.safetensors` file.
    """
    # Only safetensors has a header that is read without reading the tensors.
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    check_required(path)
    header: dict[str, str] = read_tensor_header(path, CheckpointError)[0].get(METADATA) or {}
    facts = {}
    for key, value in header.items():
        try:
            facts[key] = json.loads(value)
        except ValueError:
            facts[key] = value  # another tool's header, in its own form
    return facts


def unwrap_state_dict(content: Mapping[str, Any], where: str = "the checkpoint") -> State:
    """The state dict inside `content`, without losses and the prefixes that wrappers leave behind.

    Args:
        content: of a checkpoint file, or a state dict.
        where: what the error calls it.

    Raises:
        CheckpointError: if it holds no tensors.
    """
    # Wrappers inside wrappers: {"model": {"state_dict": ...}}.
    for _ in range(3):
        inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            break
        content = inner
    # Trainers keep the epoch, the optimizer's state and the like beside the tensors.
    state = {k: v for k, v in content.items() if isinstance(v, Tensor) and isinstance(k, str)}
    for key, value in state.items():
        # Copying would drop the imaginary part with a warning, and ask meta tensors for values.
        if value.is_complex() or value.is_meta or value.is_sparse or value.is_quantized:
            raise CheckpointError(f"{where}: {key} is no plain tensor of real numbers")
    prefix: str | None = ""
    while prefix is not None:  # a loss may hide behind a prefix, and a prefix behind a loss
        state = {k.removeprefix(prefix): v for k, v in state.items()}
        state = {k: v for k, v in state.items() if not k.startswith(LOSSES)}
        prefix = next((p for p in PREFIXES if state and all(k.startswith(p) for k in state)), None)
    if not state:
        keys = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise CheckpointError(f"{where} holds no tensors, but {keys}")
    return state


def rename_keys(names: Iterable[str], keys: Keys) -> dict[str, str]:
    """Rename by a table.

    Args:
        names: such as those of a state dict.
        keys: rows of (pattern, name); `{x}` in the name takes what `{x}` matched, and what follows
            the pattern, such as ".weight", stays.

    Returns:
        {name: new name} by the first row that matches; other names stay, and those that a row gives
        no new name are left out.
    """
    patterns = []
    for source, target in keys:
        # {x} matches lazily, within one dotted part: "layer{i}.{j}" must not swallow "layer1.0".
        named = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^.]+?)", re.escape(source))
        pattern = re.compile(named + r"(?P<rest_>(?:\.[^.]+)?)$")
        patterns.append((pattern, None if target is None else target + "{rest_}"))
    renamed = {}
    for name in names:
        hits = ((p.match(name), target) for p, target in patterns)
        match, target = next(((m, t) for m, t in hits if m), (None, name))
        if target is not None:
            renamed[name] = target.format(**match.groupdict()) if match else name
    return renamed


def rename_to_ours(state: State, model: Network) -> State:
    """`state` by our names, if it is in official ones; what a network computes is dropped."""
    own, state = model.state_dict().keys(), model.upgrade_state_dict(state)
    names = rename_keys(state, model.keys)
    # By count, for a few names may be alike in both; the better fit is the file's naming.
    if len(own & set(names.values())) > len(own & state.keys()):
        state = {names[k]: v for k, v in state.items() if k in names}
    state = model.convert_state_dict({k: v for k, v in state.items() if not k.endswith(INDICES)})
    return {k: v for k, v in state.items() if k in own or not k.endswith(COUNTERS)}


def official_names(model: Network) -> dict[str, str]:
    """{our name: official name} for every entry of the model's state dict."""
    # The same table read from right to left; rows without a name of ours have no way back.
    rows = [(ours, official) for official, ours in model.keys if ours]
    return rename_keys(model.state_dict(), rows)


def add_silent_branches(state: State, model: Network) -> State:
    """`state` of a plain head, made fit for a reparameterized one of the same function: the
    branches that it lacks are added, with norms that give zeros."""
    added: State = {}
    for name, module in model.named_modules():
        if not isinstance(module, RepConv):
            continue
        own = {
            f"{name}.{key}": value.detach().clone()
            for key, value in module.state_dict().items()
            if key.startswith(("point.", "identity."))
        }
        if own.keys() & state.keys():
            continue
        for norm, _ in module.branch_norms():
            own[f"{name}.{norm}.weight"].zero_()
            own[f"{name}.{norm}.bias"].zero_()
        added |= own
    return added | state


def save_checkpoint(
    model: Network,
    path: str | os.PathLike[str],
    naming: Literal["ours", "official"] = "ours",
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write the weights as safetensors, with variant and class count in the header.

    Args:
        model: a built network.
        path: of the file, which appears whole or not at all.
        naming: "official" gives the reference implementation's keys back.
        dtype: what floating values are converted to.
        metadata: kept in the header, each value as JSON.

    Returns:
        `path`.
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
            # With names and shapes, since the same bytes under another name are another network.
            summary.update(f"{name} {array.dtype} {array.shape}\n".encode())
            summary.update(array.tobytes())
    return summary.hexdigest()
