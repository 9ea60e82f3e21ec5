"""What is measured: artifacts through their backends, and the plain network in PyTorch eager."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime import Segmenter, load
from ..runtime.backend import Backend, Image, Labels
from ..runtime.segmenter import as_bgr
from .clock import MS
from .result import STAGES, Subject

if TYPE_CHECKING:
    import torch

    from ..models import Network

Frames = Sequence[NDArray[np.uint8]]  # each (H, W, 3) BGR, of any size


class Contestant(Protocol):
    """Takes frames in turn, batch 1. `laps`: ms by stage, one entry a `staged` call."""

    laps: list[dict[str, float]]

    @property
    def subject(self) -> Subject: ...

    def frame_to_labels(self) -> object:
        """One frame (H, W, 3) uint8 in host memory to labels (H, W) uint8 in host memory."""
        ...

    def network(self) -> object:
        """The network alone, on a frame that lies ready where it computes."""
        ...

    def staged(self) -> object:
        """`frame_to_labels`, with a stop after each stage; adds to `laps`."""
        ...

    def close(self) -> None: ...


class Laps:
    """Times of the stages of one frame, in ms by name; a stage may come twice and adds up."""

    def __init__(self) -> None:
        self.times = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter_ns()

    def lap(self, stage: str) -> None:
        now = time.perf_counter_ns()
        self.times[stage] += (now - self._last) * MS
        self._last = now


class _Stopwatch:
    """A backend that takes its steps one after another, each to its end, and times them."""

    def __init__(self, backend: Backend):
        self.backend, self.card, self.info = backend, backend.card, backend.info
        self.laps = Laps()

    def __call__(self, image: Image) -> Labels:
        self.laps.lap("preprocess")
        self.backend.upload(image)
        self.backend.synchronise()
        self.laps.lap("host_to_device")
        self.backend.compute()
        self.backend.synchronise()
        self.laps.lap("compute")
        labels = self.backend.download()
        self.laps.lap("device_to_host")
        return labels

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


class Artifact:
    """An artifact through the runtime, as a vehicle would run it.

    What the graph holds counts as network: normalisation, resize and argmax for labels.
    """

    def __init__(self, segmenter: Segmenter, frames: Frames, name: str = ""):
        self.segmenter, self.frames = segmenter, itertools.cycle(frames)
        self.laps: list[dict[str, float]] = []
        card, info = segmenter.card, segmenter.info
        self.subject = Subject(
            model=card.model,
            weights=card.weights,
            trained=card.trained,
            size=card.size,
            precision=info.precision,
            backend=info.name,
            version=info.version,
            device=info.device,
            threads=info.threads,
            options=dict(info.options),
            macs=card.macs,
            artifact=name,
        )
        self._stopwatch = _Stopwatch(segmenter.backend)
        self._staged = Segmenter(self._stopwatch)
        self.frame_to_labels()

    @classmethod
    def open(cls, path: Path, backend: str, frames: Frames, **options: Any) -> Artifact:
        """Raises ArtifactError if the artifact cannot run here."""
        return cls(load(path, backend, **options), frames, path.name)

    def frame_to_labels(self) -> object:
        return self.segmenter(next(self.frames))

    def network(self) -> object:
        backend = self.segmenter.backend
        backend.compute()
        backend.synchronise()
        return backend

    def staged(self) -> object:
        laps = self._stopwatch.laps = Laps()
        labels = self._staged(next(self.frames))
        laps.lap("post")
        self.laps.append(laps.times)
        return labels

    def close(self) -> None:
        self.segmenter.close()


class Eager:
    """The network as its authors' scripts time it: PyTorch eager, float32, contiguous tensors,
    `inference_mode`, on CUDA with cuDNN's search for the fastest algorithms.

    To labels: the frame is normalised on the device, the logits enlarged to the frame and their
    argmax taken. Not deployed, fused or compiled in any way.
    """

    def __init__(
        self,
        network: Network,
        size: tuple[int, int],
        weights: str,
        macs: int,
        frames: Frames,
        device: str = "cpu",
        threads: int | None = None,
        trained: bool = False,
    ):
        import torch

        self.torch, self.size, self.frames = torch, size, itertools.cycle(frames)
        self.laps: list[dict[str, float]] = []
        self.device = torch.device(device)
        if self.device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        self.threads = threads or torch.get_num_threads()
        self.model = network.eval().to(self.device)
        self.info = network.info
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.info.mean, self.info.std)
        )
        on_gpu = self.device.type == "cuda"
        self._subject = Subject(
            model=self.info.name,
            weights=weights,
            trained=trained,
            size=size,
            precision="fp32",
            backend="eager",
            version=torch.__version__,
            device=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            threads=None,
            options={},
            macs=macs,
            artifact="",
        )
        self.image: torch.Tensor | None = None
        self.frame_to_labels()

    @property
    def subject(self) -> Subject:
        on_cpu = self.device.type == "cpu"
        return replace(self._subject, threads=self.threads if on_cpu else None)

    def keep_faster_thread_count(self) -> None:
        """Go on with one thread if that is faster.

        With several, every operation ends at a barrier, and where another program holds one of the
        cores each barrier waits for it: networks were seen twenty times slower. That says nothing
        about PyTorch, and to compare with it would flatter everybody else.
        """
        times = {}
        for threads in dict.fromkeys((self.threads, 1)):
            self.threads = threads
            self.frame_to_labels()
            start = time.perf_counter_ns()
            self.frame_to_labels()
            times[threads] = time.perf_counter_ns() - start
        self.threads = min(times, key=lambda threads: times[threads])

    def frame_to_labels(self) -> object:
        return self._run(lambda stage: None)

    def staged(self) -> object:
        laps = Laps()

        def stop(stage: str) -> None:
            self._synchronise()
            laps.lap(stage)

        labels = self._run(stop)
        self.laps.append(laps.times)
        return labels

    def network(self) -> object:
        assert self.image is not None
        with self._settings():
            logits = self.model(self.image)
        self._synchronise()
        return logits

    def close(self) -> None:
        del self.model, self.image

    def _run(self, stop: Any) -> NDArray[np.uint8]:
        """frame -> labels (H, W) uint8; `stop(stage)` is called where a stage ends."""
        frame = as_bgr(next(self.frames))
        fitted = _fit(frame, self.size, cv2.INTER_LINEAR)
        stop("preprocess")
        with self._settings():
            uploaded = self.torch.from_numpy(fitted).to(self.device)
            stop("host_to_device")
            self.image = self._normalised(uploaded)
            stop("preprocess")
            logits = self.model(self.image)
            stop("compute")
            labels = self._labels(logits)
            stop("post")
            downloaded = labels.cpu().numpy()
        stop("device_to_host")
        mapped = _fit(downloaded, frame.shape[:2], cv2.INTER_NEAREST_EXACT)
        stop("post")
        return mapped

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Threads are the whole process's, and another contestant may use PyTorch too."""
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(self.threads)
        try:
            with self.torch.inference_mode():
                yield
        finally:
            self.torch.set_num_threads(before)

    def _normalised(self, frame: torch.Tensor) -> torch.Tensor:
        """(H, W, 3) uint8 BGR -> (1, 3, H, W) float32 RGB as the network takes it."""
        image = frame.flip(2).permute(2, 0, 1)[None].float().contiguous()
        return image.div_(255).sub_(self.mean).div_(self.std)

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        """(1, K, h, w) -> (H, W) uint8."""
        if tuple(logits.shape[-2:]) != self.size:
            logits = self.torch.nn.functional.interpolate(
                logits, self.size, mode="bilinear", align_corners=self.info.align_corners
            )
        return logits.argmax(1)[0].to(self.torch.uint8)

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)


def _fit(image: NDArray[np.uint8], size: tuple[int, ...], method: int) -> NDArray[np.uint8]:
    """`image` (H, W, ...) resized to `size` (height, width), or itself if it has that size."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), np.uint8)
