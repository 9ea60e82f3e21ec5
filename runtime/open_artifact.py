"""Loading: an artifact's file, checked and opened through a backend, as a Segmenter."""

from __future__ import annotations

import os
from pathlib import Path

from ..data.signature import verify_signature
from .artifact import read_card, verify_artifact
from .backends.backend import choose, open_backend, refuse_network
from .segmenter import Segmenter


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    device: str | None = None,
    *,
    size: tuple[int, int] | None = None,
    require_signature: str | os.PathLike[str] | None = None,
    **options: object,
) -> Segmenter:
    """The Segmenter of an artifact; PyTorch is not needed.

    Args:
        path: of the artifact: `.engine`, `.onnx`, `.xml`, `.safetensors`, `.qnn` or `.pte`. What
            goes with it (its card's `.json`, OpenVINO's `.bin`) lies beside it.
        backend: "tensorrt", "onnxruntime", "openvino", "torch", "qnn" or "executorch"; by default
            what the file and this machine suggest.
        device: "cpu" or "cuda[:N]"; by default what the machine has.
        size: (height, width) in pixels that every frame is brought to, of an artifact that takes
            several; by default each frame of one of its sizes is run at that, and every other at
            the first that it was exported at.
        require_signature: public key, as a file or as text, that has to have signed the artifact.
        options: as the backend's class takes them, such as `threads`.

    Returns:
        What labels frames; close it, or use it as a context manager, to free the model.

    Raises:
        ArtifactError: if there is no such file, it is damaged, was changed since it was exported,
            failed its proof, does not take `size`, or cannot run here; the message says what to do.
        SignatureError: if the signature is missing, of another key or of other content.
        MissingPackage: if the backend's package is not installed.
    """
    path = Path(path)
    if require_signature is not None:
        verify_signature(path, require_signature)
    refuse_network(path)
    card = read_card(path)
    if size is not None:
        card.at(size)  # refused before anything is loaded
        options["size"] = size
    name = choose(path, backend, device)
    # The backend holds what it reads itself against this card: the file may be swapped meanwhile.
    own = {"", path.name, path.with_suffix(".bin").name}
    verify_artifact(path, card, but=own if path.suffix != ".safetensors" else ())
    segmenter = Segmenter(open_backend(name, path, device, card=card, **options))
    segmenter.picks_size = bool(card.sizes) and size is None
    return segmenter
