"""Any frame in, labels of its size out; several at once where the artifact takes a batch."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.classes import IGNORE
from ..data.letterbox import Fit, fit_frame, restore_labels
from ..data.signature import verify_signature
from ..errors import BackendError, UsageError
from .argmax import Certificate
from .artifact import Card, read_card, verify_artifact
from .backends.backend import Backend, Image, Info, choose, open_backend
from .bounds import Details, ErrorBound


class Segmenter:
    """Frames to labels through one loaded artifact.

    Safe to call from several threads: calls wait for each other, since a backend has one set of
    buffers. Use one Segmenter per thread to run several at once. Close it, or use it as a context
    manager, to free the model.

    Attributes:
        certifies: a drive asks it for `details` of each frame.
    """

    certifies = False

    def __init__(self, backend: Backend):
        self._backend: Backend | None = backend
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.card: Card = backend.card
        self.info: Info = backend.info
        self._slots: Image | None = None  # of a batch

    def __call__(
        self, frame: NDArray[np.generic] | Sequence[NDArray[np.generic]]
    ) -> NDArray[np.uint8]:
        """frame (H, W, 3) uint8 BGR, any size -> labels (H, W) uint8 class ids, the caller's own.

        Several frames of one size, a list of them or one array (n, H, W, 3) -> labels (n, H, W), in
        one call of the network: at most as many as the artifact was exported for, `card.batch`.
        Fewer, or one frame alone, take as long as a whole batch: its last frame fills the others'
        places, and only the labels of those given come back.

        A frame of another size than the artifact's is resized (bilinear), and letterboxed or
        cropped where its card says so and the aspects differ; its labels are brought back
        (nearest), 255 beside a crop. Gray, BGRA and other number types are converted where that
        loses nothing; ValueError says what to do where it would.

        An artifact of a camera's format (`rtseg export --input nv12`) takes that format's bytes,
        uint8 of the shape `card.frame_shape`, and nothing else; its labels are of the camera's
        size.
        """
        if not _are_several(frame, self.card):
            return self.label_each([np.asarray(frame)])[0]
        if self.card.takes_camera:
            return np.stack(self.label_each(list(frame)))
        images = [as_bgr(each) for each in frame]
        shapes = list(dict.fromkeys(f"{each.shape[0]}x{each.shape[1]}" for each in images))
        if len(shapes) > 1:
            raise UsageError(
                f"the frames of a batch have one size, not {' and '.join(shapes)}: resize them to "
                "one, or call `label_each`, which gives a label map of each one's own size"
            )
        return np.stack(self.label_each(images))

    def label_each(self, frames: Sequence[NDArray[np.generic]]) -> list[NDArray[np.uint8]]:
        """Frames (H, W, 3), each of its own size -> the labels (H, W) of each, in one call of the
        network; otherwise as `segmenter(frames)`."""
        self._check_process()  # before the lock, which another thread may have held at the fork
        card = self.card
        if not 1 <= len(frames) <= card.batch:
            raise UsageError(
                f"this artifact takes {card.batch} frame{'s' if card.batch > 1 else ''} at a time, "
                f"not {len(frames)}: call it for each, or export with batch={len(frames)}"
                if frames
                else "there is no frame in the batch: give one at least"
            )
        taken = [self._fit(frame) for frame in frames]
        with self._lock:
            maps = self.backend(self._fill([fitted for fitted, _ in taken]))
            return [
                _restore(labels, size, card.fit)
                for labels, (_, size) in zip(maps, taken, strict=False)
            ]

    def _fit(self, frame: NDArray[np.generic]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(a frame as the network takes it, the size that its labels go back to)."""
        card = self.card
        if card.takes_camera:
            return check_camera_frame(frame, card), card.camera_size or card.size
        image = as_bgr(frame)
        return fit_frame(image, card.size, card.fit), (image.shape[0], image.shape[1])

    def _fill(self, fitted: Sequence[NDArray[np.uint8]]) -> Image:
        """The network's input, (N, H, W, 3)."""
        if self.card.batch == 1:
            return fitted[0][None]
        if self._slots is None:
            self._slots = np.empty(self.card.input_shape, np.uint8)
        for place in range(self.card.batch):
            self._slots[place] = fitted[min(place, len(fitted) - 1)]
        return self._slots

    def details(self, frame: NDArray[np.generic]) -> Details:
        """The labels of a frame as a call gives them, and which of them are certified.

        Args:
            frame: as a call takes it.

        Returns:
            Labels, and per pixel whether they are certified and how often such labels were right;
            where this file, backend or device cannot say that, `why` does.
        """
        self._check_process()
        card = self.card
        fitted, size = self._fit(frame)
        with self._lock:
            bound = self.bound
            maker = self.backend.maker
            if bound is None or maker is None:
                labels = self.backend(self._fill([fitted]))[0]
                return Details(restore_labels(labels, size, card.fit).copy(), why=self._why())
            known = bound.confidence
            maker.certify(
                Certificate(bound.lead, known.table, known.step)
                if known
                else Certificate(bound.lead)
            )
            try:
                self.backend(self._fill([fitted]))
            finally:
                maker.certify(None)
            labels, certified, confidence = (
                restore_labels(each[0], size, card.fit).copy()
                for each in (maker.labels, maker.certified, maker.confidence)
            )
        # Beside a crop, where there is no label, nothing is certified.
        confidence[labels == IGNORE] = 0
        return Details(labels, certified == 1, confidence if known else None, bound)

    @property
    def bound(self) -> ErrorBound | None:
        """Of the logits' error in this backend's arithmetic, if the card has one."""
        bounds = self.card.proof.bounds if self.card.proof else ()
        arithmetic = self.backend.arithmetic
        return next((each for each in bounds if each.arithmetic == arithmetic), None)

    def _why(self) -> str:
        """Why nothing is certified, and what to do about it."""
        proof, backend = self.card.proof, self.backend
        if proof is None or not proof.bounds:
            return "its card bounds no error of its logits: export it again, to onnx or openvino"
        if self.bound is None:
            known = ", ".join(each.arithmetic for each in proof.bounds)
            return f"its error is known in {known}, not in {backend.arithmetic}: load it so"
        if self.card.coarse is None and backend.info.name != "torch":
            return "its labels are no argmax of resized logits, so no lead can be read"
        return 'the graph makes its labels: load it with argmax="runtime", on a CPU with numba'

    def on_device(self, frame: object) -> object:
        """Labels of a frame that is already where the network runs, without a way through the host.

        Args:
            frame: uint8 of the network's own size (`card.input_shape`, without its N too where that
                is 1), contiguous: an object with DLPack, such as a tensor of PyTorch or an array of
                CuPy, JAX or NumPy, or with `__cuda_array_interface__`. The stream that makes it is
                waited for.

        Returns:
            (H, W) uint8 on that device, (N, H, W) of a frame with that axis; on a CPU a NumPy
            array, on a GPU an object with `__dlpack__` and `__cuda_array_interface__`. It is
            finished, and the next call of the segmenter writes over it: copy it to keep it.

        Raises:
            UsageError: if the frame is elsewhere, or of another type, shape or layout.
        """
        self._check_process()
        with self._lock:
            return self.backend.label_on_device(frame)

    def label_picture(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels (H, W) of a picture (H, W, 3) uint8 BGR, any size; an artifact of a camera's
        format is given it as its camera would give it."""
        labels = self(self.card.encode(picture))
        size = (picture.shape[0], picture.shape[1])
        return restore_labels(labels, size, self.card.fit) if self.card.takes_camera else labels

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
    size: tuple[int, int] | None = None,
    require_signature: str | os.PathLike[str] | None = None,
    **options: object,
) -> Segmenter:
    """The Segmenter of an artifact: `.engine`, `.onnx`, `.xml` (OpenVINO) or `.safetensors`.

    backend: "tensorrt", "onnxruntime", "openvino" or "torch"; by default what the file and this
    machine suggest. device: "cpu" or "cuda[:N]". size: (height, width), which of the sizes of an
    artifact that takes several; by default the first that it was exported at. options: as the
    backend's class takes them, such as `threads`.

    Raises ArtifactError if the file is damaged, was changed since it was exported, or cannot run
    here; its message says what to do.
    """
    path = Path(path)
    if require_signature is not None:
        verify_signature(path, require_signature)
    card = read_card(path)
    if size is not None:
        card.at(size)  # refused before anything is loaded
        options["size"] = size
    name = choose(path, backend, device)
    # The backend holds what it reads itself against this card: the file may be swapped meanwhile.
    own = {"", path.name, path.with_suffix(".bin").name}
    verify_artifact(path, card, but=own if path.suffix != ".safetensors" else ())
    return Segmenter(open_backend(name, path, device, card=card, **options))


def _are_several(frame: object, card: Card) -> bool:
    """Whether these are frames, and not one, which may be nested lists of numbers too."""
    if isinstance(frame, np.ndarray):
        # Bytes in two dimensions and a picture in three: only the shape tells several of the first.
        of_camera = card.takes_camera and frame.shape[1:] == card.frame_shape
        return of_camera or frame.ndim == 4
    return isinstance(frame, (list, tuple)) and all(isinstance(e, np.ndarray) for e in frame)


def _restore(labels: NDArray[np.uint8], size: tuple[int, int], fit: Fit) -> NDArray[np.uint8]:
    """The network's labels at the frame's size, the caller's own."""
    restored = restore_labels(labels, size, fit)
    # The backend writes its next labels over these, which the caller may still hold; a resize has
    # made an array of its own.
    return restored.copy() if np.shares_memory(restored, labels) else restored


def check_camera_frame(frame: NDArray[np.generic], card: Card) -> NDArray[np.uint8]:
    """A camera's bytes as the artifact takes them, contiguous and writable.

    Raises UsageError for another shape or type.
    """
    frame, (height, width) = np.asarray(frame), card.camera_size or card.size
    if frame.shape != card.frame_shape or frame.dtype != np.uint8:
        raise UsageError(
            f"this artifact takes {card.input} frames of a {height}x{width} camera, uint8 "
            f"{card.frame_shape}, not {frame.dtype} {frame.shape}: have the camera deliver those, "
            "or export again for what it delivers (--input, --camera-size)"
        )
    return np.require(frame, requirements=["C", "W"])


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
