"""The plain network in PyTorch eager: what every row is compared with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..runtime.segmenter import as_bgr
from .contestant import Frame, Frames, Laps
from .result import Subject

if TYPE_CHECKING:
    import torch

    from ..models import Network


class Eager:
    """The network as its authors' scripts time it: PyTorch eager, float32, contiguous tensors,
    `inference_mode`, on CUDA with cuDNN's search for the fastest algorithms.

    To labels: the frame is normalized on the device, the logits enlarged to the frame and their
    argmax taken. Not deployed, fused or compiled in any way. Peers that only run the network
    otherwise derive from it and replace `_prepare`, which gives what is called with the normalized
    image, or `_compute`.
    """

    backend, precision = "eager", "fp32"

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
        self.info = network.info
        self.mean, self.std = (
            torch.tensor(values, device=self.device).view(1, 3, 1, 1)
            for values in (self.info.mean, self.info.std)
        )
        self.model = self._prepare(network.eval().to(self.device))
        on_gpu = self.device.type == "cuda"
        self._subject = Subject(
            model=self.info.name,
            weights=weights,
            trained=trained,
            size=size,
            precision=self.precision,
            backend=self.backend,
            version=self._version(),
            device=torch.cuda.get_device_name(self.device) if on_gpu else "cpu",
            threads=None,
            options={},
            macs=macs,
            artifact="",
            peer=True,
        )
        self.image: torch.Tensor | None = None
        self._noise: torch.Tensor | None = None
        self.frame_to_labels()

    def _prepare(self, network: Network) -> Any:
        """What is called with the normalized image (1, 3, H, W) and gives logits."""
        return network

    def _version(self) -> str:
        return self.torch.__version__

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

    def label(self, frame: Frame) -> NDArray[np.uint8]:
        return self._run(frame, lambda stage: None)

    def frame_to_labels(self) -> object:
        return self.label(next(self.frames))

    def staged(self) -> object:
        laps = Laps()

        def stop(stage: str) -> None:
            self._synchronize()
            laps.lap(stage)

        labels = self._run(next(self.frames), stop)
        self.laps.append(laps.times)
        return labels

    def network(self) -> object:
        assert self.image is not None
        with self._settings():
            result = self._compute(self.image)
        self._synchronize()
        return result

    def queued(self, count: int) -> object:
        assert self.image is not None
        if self._noise is None:
            self._noise = self.torch.randn_like(self.image)
        with self._settings():
            for _ in range(count):
                result = self._compute(self._noise)
        self._synchronize()
        return result

    def close(self) -> None:
        del self.model, self.image

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        """The part that counts as network: normalized image -> logits (1, K, h, w)."""
        logits: torch.Tensor = self.model(image)
        return logits

    def _run(self, frame: Frame, stop: Callable[[str], None]) -> NDArray[np.uint8]:
        """frame -> labels (H, W) uint8; `stop(stage)` is called where a stage ends."""
        frame = as_bgr(frame)
        fitted = _fit(frame, self.size, cv2.INTER_LINEAR)
        stop("preprocess")
        with self._settings():
            uploaded = self.torch.from_numpy(fitted).to(self.device)
            stop("host_to_device")
            self.image = self._normalized(uploaded)
            stop("preprocess")
            computed = self._compute(self.image)
            stop("compute")
            labels = self._labels(computed)
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

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
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

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)


def _fit(image: NDArray[np.uint8], size: tuple[int, ...], method: int) -> NDArray[np.uint8]:
    """`image` (H, W, ...) resized to `size` (height, width), or itself if it has that size."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=method), np.uint8)
