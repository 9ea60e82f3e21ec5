"""Checkpoint files: what is in them, read without running code."""

from __future__ import annotations

import json
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ..errors import CheckpointError

State = dict[str, Tensor]
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
LOSSES = ("loss.", "sem_loss.", "bd_loss.", "criterion.")  # buffers that trainers save along


def read(path: Path) -> Mapping[str, Any]:
    """The content of a checkpoint file: `.safetensors`, or what `torch.save` wrote, read with
    `weights_only=True`. Raises CheckpointError for a file that cannot be read or holds code."""
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
