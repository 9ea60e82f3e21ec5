"""Peers by name: which baseline each is, where it runs, and what it needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from ..errors import ArtifactError, MissingPackage, UsageError
from .baselines import Compiled, Eager
from .plain_engines import PlainTensorRT, Torch2Trt, TorchTensorRT
from .plain_exports import PlainOnnxRuntime, PlainOpenVino, PlainOpenVinoBf16

PEERS: dict[str, type[Eager]] = {
    "eager": Eager,
    "compile": Compiled,
    "onnxruntime": PlainOnnxRuntime,
    "openvino": PlainOpenVino,
    "openvino_bf16": PlainOpenVinoBf16,
    "tensorrt": PlainTensorRT,
    "torch_tensorrt": TorchTensorRT,
    "torch2trt": Torch2Trt,
}


def check_peers(names: Iterable[str]) -> None:
    """Raises UsageError for a name that is no peer, MissingPackage for one that is absent."""
    for name in names:
        if name == "all":
            continue
        if name not in PEERS:
            raise UsageError(f"no peer is called {name!r}: choose from {', '.join(PEERS)}")
        if name != "eager":
            _check_installed(PEERS[name])


def _check_installed(peer: type[Eager]) -> None:
    if not any(map(importlib.util.find_spec, peer.packages or (peer.package,))):
        raise MissingPackage(f"the peer {peer.title} is not installed: {peer.install}")


def choose_peers(asked: Iterable[str], kind: str) -> list[str]:
    """Those asked for by name, and for "all" each that runs on this kind of device ("cpu" or
    "cuda"): one that is not installed becomes a row that says so."""
    names: dict[str, None] = {}
    for name in asked:
        usual = (each for each, peer in PEERS.items() if kind in peer.kinds)
        names.update(dict.fromkeys(usual if name == "all" else [name]))
    return list(names)


def peer_class(name: str, kind: str, asked_for: bool = True) -> type[Eager]:
    """The class that runs a peer.

    Args:
        name: one of PEERS.
        kind: "cpu" or "cuda".
        asked_for: by its name, not as one of all.

    Raises:
        ArtifactError: it does not run on such devices, or only where it is asked for.
        MissingPackage: it is not installed.
    """
    peer = PEERS[name]
    if kind not in peer.kinds:
        where = "an NVIDIA GPU" if peer.kinds == ("cuda",) else "a CPU"
        raise ArtifactError(f"the peer {peer.title} runs on {where} only")
    if name != "eager":
        _check_installed(peer)
    if peer.by_name_only and not asked_for:
        raise ArtifactError(f"it is measured where it is named: --peer {name}")
    return peer
