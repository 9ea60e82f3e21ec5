"""Signing of artifacts: only a sound file is signed, with everything that belongs to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..data.signature import companions, write_signature
from ..errors import UsageError
from .artifact import read_card, verify_artifact
from .backends.backend import BACKENDS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

CHECKPOINTS = (".pth", ".pt", ".safetensors")


def sign_artifact(path: Path, key: ed25519.Ed25519PrivateKey) -> Path:
    """Sign an artifact, its card and every file that the card names; or a checkpoint.

    Args:
        path: of the artifact.
        key: the private key.

    Returns:
        The path of the signature.

    Raises:
        ArtifactError: it is damaged or failed its proof, so it is not signed.
        UsageError: it is neither.
    """
    if not path.is_file():
        raise UsageError(f"no file at {path}")
    suffixes = [suffix for spec in BACKENDS.values() for suffix in spec.suffixes]
    if path.suffix not in (*suffixes, *CHECKPOINTS):
        raise UsageError(f"{path} is neither an artifact nor a checkpoint")
    files = {path.name: path}
    if (path.suffix in suffixes and path.suffix != ".safetensors") or _has_card(path):
        card = read_card(path)
        verify_artifact(path, card)
        files |= {name: path.with_name(name) for name in card.files if name}
    files |= {each.name: each for each in companions(path)}
    return write_signature(path, files.values(), key)


def _has_card(path: Path) -> bool:
    """Whether weights are an artifact, not a bare checkpoint."""
    from .description import describe

    return path.suffix == ".safetensors" and describe(path).get("kind") != "checkpoint"
