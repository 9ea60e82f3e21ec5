"""Any frame in, labels of its size out; several at once where the artifact takes a batch."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import chain, cycle, groupby, islice
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from ..data.classes import IGNORE
from ..data.letterbox import Fit, fit_frame, restore_labels
from ..errors import BackendError, MissingPackage, UsageError
from .argmax import Certificate
from .artifact import Card
from .backends.backend import Backend, Image, Info
from .bounds import Details, ErrorBound
from .frame_checks import as_bgr, check_camera_frame

IN_FLIGHT = 2  # one that is copied while one is computed


class Segmenter:
    """Frames to labels through one loaded artifact.

    Safe to call from several threads: calls wait for each other, since a backend has one set of
    buffers. Use one Segmenter per thread to run several at once. Close it, or use it as a context
    manager, to free the model.

    Attributes:
        certifies: a drive asks it for `details` of each frame.
        picks_size: of an artifact that takes several sizes: a frame of just one of them is run at
            that one, see `at`; all others at `card.size`. `load` sets it, unless it is given a
            size.
    """

    certifies = False
    picks_size = False

    def __init__(self, backend: Backend):
        self._backend: Backend | None = backend
        self._loaded: Segmenter | None = None  # of another size, which keeps this one; see `at`
        self._others: dict[tuple[int, int], Segmenter] = {}
        self._making = threading.Lock()  # of those, which no call of this size has to wait for
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.card: Card = backend.card
        self.info: Info = backend.info
        self._slots: Image | None = None  # of a batch
        self._lanes: list[list[Backend]] = []  # of streams that have ended, for the next

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
        loses nothing.

        An artifact of a camera's format (`rtseg export --input nv12`) takes that format's bytes,
        uint8 of the shape `card.frame_shape`, and nothing else; its labels are of the camera's
        size.

        Raises:
            UsageError: the frame is empty, of another shape or type, or its numbers would have to
                be changed; frames of a batch differ in size, or are more than it takes.
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
        network; otherwise as `segmenter(frames)`.

        Raises:
            UsageError: what a call raises, and if there is no frame.
        """
        self._check_process()  # before the lock, which another thread may have held at the fork
        chosen, card = self._pick(frames), self.card
        if chosen is not self:
            return chosen.label_each(frames)
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
            return self._restore_all(maps, [size for _, size in taken])

    def stream(
        self, frames: Iterable[NDArray[np.generic]], in_flight: int = IN_FLIGHT
    ) -> Iterator[NDArray[np.uint8]]:
        """Labels of frames one after another, as a call gives them, in their order.

        On a GPU, in TensorRT and PyTorch, the next frame is read and copied while this one is
        computed: more frames a second, and each is older by one frame when its labels come, so that
        a vehicle does not want it. Elsewhere, and where the GPU lacks memory for it, one frame
        follows another. An artifact of a batch is given that many at a time.

        Args:
            frames: as a call takes them, read `in_flight` batches ahead of the labels.
            in_flight: batches that are on their way at once, each with buffers of its own.

        Yields:
            (H, W) uint8 of each frame's size, the caller's own. What goes wrong with a frame, or
            with reading it, is raised in its place, behind the labels of those before it.

        Raises:
            UsageError: if `in_flight` is below 1.
        """
        if in_flight < 1:
            raise UsageError(f"{in_flight} frames in flight are none: give 1, or 2 to overlap")
        self._check_process()
        return (self._stream_by_size if self.picks_size else self._stream)(iter(frames), in_flight)

    def prepare_stream(self, in_flight: int = IN_FLIGHT) -> int:
        """Make the buffers of a `stream` ahead of it, which takes as long as loading the network.

        Returns:
            How many batches it will have in flight: 1 where one has to end before the next.
        """
        lanes = self._take_lanes(in_flight) if in_flight > 1 else []
        self._end_lanes(lanes, idle=True)
        return max(1, len(lanes))

    def _stream_by_size(
        self, frames: Iterator[NDArray[np.generic]], in_flight: int
    ) -> Iterator[NDArray[np.uint8]]:
        for chosen, alike in groupby(frames, lambda frame: self._pick([frame])):
            yield from chosen._stream(alike, in_flight)

    def _stream(
        self, frames: Iterator[NDArray[np.generic]], in_flight: int
    ) -> Iterator[NDArray[np.uint8]]:
        lanes = self._take_lanes(in_flight) if in_flight > 1 else []
        turns: Iterator[Backend | None] = cycle(lanes or [None])
        flying: deque[Callable[[], list[NDArray[np.uint8]]]] = deque()
        failed: Exception | None = None
        try:
            while failed is None:
                taken, failed = self._read_batch(frames)
                if not taken:
                    break
                try:
                    flying.append(self._begin(next(turns), taken))
                except Exception as error:  # raised behind the labels of the frames before
                    failed = error
                while len(flying) >= max(1, len(lanes)):
                    yield from self._land(flying)
            while flying:
                yield from self._land(flying)
            if failed is not None:
                raise failed
        finally:  # early, if the caller takes no more: then frames may be on their way
            self._end_lanes(lanes, idle=not flying and failed is None)

    def _read_batch(
        self, frames: Iterator[NDArray[np.generic]]
    ) -> tuple[list[tuple[NDArray[np.uint8], tuple[int, int]]], Exception | None]:
        """As many as there are, and what went wrong with the one behind them."""
        taken = []
        try:
            for frame in islice(frames, self.card.batch):
                taken.append(self._fit(frame))
        except Exception as error:
            return taken, error
        return taken, None

    def _begin(
        self, lane: Backend | None, taken: list[tuple[NDArray[np.uint8], tuple[int, int]]]
    ) -> Callable[[], list[NDArray[np.uint8]]]:
        """What gives the labels: in a lane once they are there, else at once."""
        images, sizes = [image for image, _ in taken], [size for _, size in taken]
        with self._lock:  # of the slots too
            if lane is not None:
                lane.start(self._fill(images))
                return lambda: self._restore_all(lane.finish(), sizes)
            made = self._restore_all(self.backend(self._fill(images)), sizes)
        return lambda: made

    def _restore_all(
        self, maps: NDArray[np.uint8], sizes: Sequence[tuple[int, int]]
    ) -> list[NDArray[np.uint8]]:
        fit = self.card.fit
        return [_restore(labels, size, fit) for labels, size in zip(maps, sizes, strict=False)]

    def _land(
        self, flying: deque[Callable[[], list[NDArray[np.uint8]]]]
    ) -> list[NDArray[np.uint8]]:
        labels = flying[0]()
        flying.popleft()  # only now: a lane that failed is not idle
        return labels

    def _take_lanes(self, count: int) -> list[Backend]:
        with self._lock:
            kept = next((lanes for lanes in self._lanes if len(lanes) == count), None)
            if kept is not None:
                self._lanes.remove(kept)
            return kept or self.backend.open_lanes(count)

    def _end_lanes(self, lanes: list[Backend], idle: bool) -> None:
        with self._lock:
            if lanes and idle and self._backend is not None:
                self._lanes.append(lanes)
                return
        for lane in lanes:
            lane.close()

    def _fit(self, frame: NDArray[np.generic]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(a frame as the network takes it, the size that its labels go back to)."""
        card = self.card
        if card.takes_camera:
            return check_camera_frame(frame, card), card.camera_size or card.size
        image = as_bgr(frame)
        fitted = fit_frame(image, card.size, card.fit, card.pad_color)
        return fitted, (image.shape[0], image.shape[1])

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
        if (chosen := self._pick([frame])) is not self:
            return chosen.details(frame)
        card = self.card
        fitted, size = self._fit(frame)
        with self._lock:
            bound = self.bound
            maker = self.backend.maker
            if bound is None or maker is None:
                labels = self.backend(self._fill([fitted]))[0]
                return Details(
                    restore_labels(labels, size, card.fit).copy(), why=self.why_uncertified()
                )
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

    def why_uncertified(self) -> str:
        """Why nothing is certified, and what to do about it."""
        proof, backend = self.card.proof, self.backend
        if proof is None or not proof.bounds:
            return "its card bounds no error of its logits: export it again, to onnx or openvino"
        if self.bound is None:
            known = ", ".join(each.arithmetic for each in proof.bounds)
            name = proof.bounds[0].arithmetic.partition(" ")[0]
            return (
                f"its error is known in {known}, not in {backend.arithmetic}: load it there "
                f"(--backend {name})"
            )
        if self.card.coarse is None and backend.info.name != "torch":
            return "its labels are no argmax of resized logits, so no lead can be read"
        return 'the graph makes its labels: load it with argmax="runtime", on a CPU with numba'

    def on_device(self, frame: object, size: tuple[int, int] | None = None) -> object:
        """Labels of a frame that is already where the network runs, without a way through the host.

        Args:
            frame: uint8 of the network's own size (`card.input_shape`, without its N too where that
                is 1), contiguous: an object with DLPack, such as a tensor of PyTorch or an array of
                CuPy, JAX or NumPy, or with `__cuda_array_interface__`. The stream that makes it is
                waited for.
            size: (height, width) that the labels are brought back to there, as a call brings them
                back to a frame's (nearest, 255 beside a crop); by default they have the network's.
                On a GPU this takes PyTorch.

        Returns:
            (H, W) uint8 on that device, (N, H, W) of a frame with that axis; on a CPU a NumPy
            array, on a GPU an object with `__dlpack__` and `__cuda_array_interface__`. It is
            finished, and the next call of the segmenter may write over it: copy it to keep it.

        Raises:
            UsageError: if the frame is elsewhere, or of another type, shape or layout.
            MissingPackage: if `size` is given on a GPU, and PyTorch is not installed.
        """
        if size is not None and min(size) < 1:
            raise UsageError(f"labels have a size (height, width) of 1 or more, not {size}")
        self._check_process()
        chosen = self._pick([frame])
        with chosen._lock:
            labels = chosen.backend.label_on_device(frame)
            if size is None:
                return labels
            if isinstance(labels, np.ndarray):
                maps = labels.reshape(-1, *labels.shape[-2:])
                back = np.stack([restore_labels(each, size, self.card.fit) for each in maps])
                return back.reshape(*labels.shape[:-2], *size)
            if not find_spec("torch"):
                raise MissingPackage(
                    'labels are resized on the GPU by PyTorch: pip install "rtseg[export]", or '
                    "leave `size` out"
                )
            from .letterbox_torch import restore_on_device

            return restore_on_device(labels, size, self.card.fit)

    def at(self, size: tuple[int, int]) -> Segmenter:
        """This artifact for frames of another of its sizes, (height, width).

        Weights are shared in TensorRT; elsewhere it is another model of the same file, as fast as
        one that is loaded for this size alone. It takes calls beside this one, each size its own
        thread. Made once, at the first call, and closed with the Segmenter that was loaded.

        Raises:
            ArtifactError: the artifact does not take that size, or is not right at it here.
        """
        loaded = self._loaded or self
        loaded._check_process()
        if size == loaded.card.size:
            return loaded
        loaded.card.at(size)  # refused before anything is made
        with loaded._making:
            kept = loaded._others.get(size)
            if kept is None or kept._backend is None:
                kept = loaded._others[size] = Segmenter(loaded.backend.at(size))
                kept._loaded = loaded
            return kept

    def _pick(self, frames: Sequence[object]) -> Segmenter:
        """The one of the frames' size, if all have the same and the artifact takes that."""
        shapes = {tuple(getattr(frame, "shape", ())) for frame in frames if self.picks_size}
        sizes = {shape[:2] if len(shape) == 2 else shape[-3:-1] for shape in shapes}
        known = [size for size in self.card.sizes if {size} == sizes] if sizes else []
        return self.at(known[0]) if known else self

    def stream_pictures(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
        """Labels of pictures one after another: as `label_picture` gives them, in a `stream`."""
        sizes: deque[tuple[int, int]] = deque()

        def encoded() -> Iterator[NDArray[np.uint8]]:
            for picture in pictures:
                frame = self.card.encode(picture)
                sizes.append((picture.shape[0], picture.shape[1]))
                yield frame

        for labels in self.stream(encoded()):
            size = sizes.popleft()
            yield restore_labels(labels, size, self.card.fit) if self.card.takes_camera else labels

    def label_picture(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Labels (H, W) of a picture (H, W, 3) uint8 BGR, any size; an artifact of a camera's
        format is given it as its camera would give it."""
        labels = self(self.card.encode(picture))
        size = (picture.shape[0], picture.shape[1])
        return restore_labels(labels, size, self.card.fit) if self.card.takes_camera else labels

    @property
    def backend(self) -> Backend:
        """What runs the network.

        Raises:
            BackendError: it was loaded before a fork.
            RuntimeError: this Segmenter is closed.
        """
        self._check_process()
        if self._backend is None:
            raise RuntimeError("this Segmenter is closed: load the artifact again")
        return self._backend

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            # A backend's threads do not survive a fork: a call would wait for them for ever.
            raise BackendError("this Segmenter was loaded before a fork: load it in each process")

    def close(self) -> None:
        """Give back the engine's memory, at all its sizes; done again, it does nothing."""
        with self._making:
            while self._others:  # first: they share what this one has
                self._others.popitem()[1].close()
        with self._lock:
            backend, self._backend = self._backend, None
            for lane in chain.from_iterable(self._lanes):
                lane.close()
            self._lanes = []
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
