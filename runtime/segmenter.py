"""Any frame in, labels of its size out."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.letterbox import fit_frame, restore_labels
from ..data.signature import verify_signature
from ..errors import BackendError, UsageError
from .artifact import Card, read_card, verify_artifact
from .backends.backend import Backend, Info, choose, open_backend


class Segmenter:
    """Frames to labels through one loaded artifact.

    Safe to call from several threads: calls wait for each other, since a backend has one set of
    buffers. Use one Segmenter per thread to run several at once. Close it, or use it as a context
    manager, to free the model.
    """

    def __init__(self, backend: Backend):
        self._backend: Backend | None = backend
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.card: Card = backend.card
        self.info: Info = backend.info

    def __call__(self, frame: NDArray[np.generic]) -> NDArray[np.uint8]:
        """frame (H, W, 3) uint8 BGR, any size -> labels (H, W) uint8 class ids, the caller's own.

        A frame of another size than the artifact's is resized (bilinear), and letterboxed or
        cropped where its card says so and the aspects differ; its labels are brought back
        (nearest), 255 beside a crop. Gray, BGRA and other number types are converted where that
        loses nothing; ValueError says what to do where it would.
        """
        self._check_process()  # before the lock, which another thread may have held at the fork
        image = as_bgr(frame)
        card, size = self.card, (image.shape[0], image.shape[1])
        fitted = fit_frame(image, card.size, card.fit)
        with self._lock:
            labels: NDArray[np.uint8] = self.backend(fitted[None])[0]
            # The backend writes its next labels over these, which the caller may still hold; a
            # resize has made an array of its own.
            restored = restore_labels(labels, size, card.fit)
            return restored.copy() if np.shares_memory(restored, labels) else restored

    @property
    def backend(self) -> Backend:
        self._check_process()
        if self._backend is None:
            raise RuntimeError("this Segmenter is closed: load the artifact again")
        return self._backend

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            # A backend's threads do not survive a fork: a call would wait for them for ever.
            raise BackendError("this Segmenter was loaded before a fork: load it in each process")

    def close(self) -> None:
        with self._lock:
            backend, self._backend = self._backend, None
            if backend is not None:
                backend.close()

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(
    path: str | os.PathLike[str],
    backend: str | None = None,
    device: str | None = None,
    *,
    require_signature: str | os.PathLike[str] | None = None,
    **options: object,
) -> Segmenter:
    """The Segmenter of an artifact: `.engine`, `.onnx`, `.xml` (OpenVINO) or `.safetensors`.

    backend: "tensorrt", "onnxruntime", "openvino" or "torch"; by default what the file and this
    machine suggest. device: "cpu" or "cuda[:N]". options: as the backend's class takes them, such
    as `threads`.

    Raises ArtifactError if the file is damaged, was changed since it was exported, or cannot run
    here; its message says what to do.
    """
    path = Path(path)
    if require_signature is not None:
        verify_signature(path, require_signature)
    card = read_card(path)
    name = choose(path, backend, device)
    verify_artifact(path, card)
    return Segmenter(open_backend(name, path, device, **options))


def as_bgr(frame: NDArray[np.generic]) -> NDArray[np.uint8]:
    """`frame` as contiguous, writable (H, W, 3) uint8 BGR, since OpenVINO takes nothing that it
    could not write to; ValueError where that would lose something."""
    frame = np.asarray(frame)
    if frame.size == 0:
        raise UsageError(f"the frame is empty, of shape {frame.shape}: was the image read at all?")
    if frame.ndim not in (2, 3) or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4)):
        raise UsageError(
            f"a frame has shape (H, W, 3), not {frame.shape}: pass one image, channels last"
        )
    frame = _as_uint8(frame)
    if frame.ndim == 2 or frame.shape[2] == 1:
        frame = np.repeat(frame.reshape(*frame.shape[:2], 1), 3, axis=2)
    return np.require(frame[:, :, :3], requirements=["C", "W"])


def _as_uint8(frame: NDArray[Any]) -> NDArray[np.uint8]:
    if frame.dtype == np.uint8:
        return frame
    if frame.dtype.kind in "iuf" and _whole_bytes(frame):
        return frame.astype(np.uint8)
    raise UsageError(
        f"a frame holds uint8 values 0..255, not {frame.dtype} that does not convert exactly: "
        "scale it to 0..255, round it and convert it with .astype(np.uint8)"
    )


def _whole_bytes(frame: NDArray[np.generic]) -> bool:
    """Whether all values are whole numbers in 0..255, and not a black and white image in 0..1."""
    if not np.isfinite(frame).all() or frame.min() < 0 or frame.max() > 255:
        return False
    of_unit_range = frame.dtype.kind == "f" and 0 < frame.max() <= 1
    # 0 and 1 alone may be an image scaled to 0..1: taken as bytes, it would be black.
    return not of_unit_range and bool((frame == np.floor(frame)).all())
