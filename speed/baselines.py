"""Baselines: the same network as others run it, without any of this pipeline; in PyTorch here."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..data.letterbox import Color, Fit, fit_frame, restore_labels
from ..errors import ArtifactError, RtsegError
from ..runtime.frame_checks import as_bgr
from .contestant import Frame, Frames, Laps, random_frame
from .result import Subject
from .timing import device_ms

if TYPE_CHECKING:
    import torch

    from ..models import Network


@contextmanager
def as_artifact_error(title: str) -> Iterator[None]:
    """Compilers and runtimes raise errors of their own; a peer that fails is only left out."""
    try:
        yield
    except RtsegError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ArtifactError(f"{title}: {lines[0][:300]}") from error


class Eager:
    """The network as its authors' scripts time it: PyTorch eager, float32, contiguous tensors,
    `inference_mode`, on CUDA with cuDNN's search for the fastest algorithms.

    To labels: the frame is normalized on the device, the logits enlarged to the frame and their
    argmax taken. Not deployed, fused or compiled in any way. Peers that only run the network
    otherwise derive from it and replace `_prepare`, which gives what is called with the normalized
    image, or `_compute`.

    Of a batch, frames are laid over each other and go through the network at once.

    Attributes:
        kinds: of devices that it runs on.
        package: that it needs; `install` brings it.
        by_name_only: never measured unless it is named.
    """

    backend, precision = "eager", "fp32"
    title = "PyTorch eager"
    batch = 1
    kinds: tuple[str, ...] = ("cpu", "cuda")
    package, install = "torch", 'pip install "rtseg[export]"'
    packages: tuple[str, ...] = ()  # where any of several will do
    by_name_only = False

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
        fit: Fit = "letterbox",
        batch: int = 1,
        pad_color: Color | None = None,
    ):
        import torch

        self.fit: Fit = fit
        self.pad_color = pad_color
        self.batch = batch
        self.torch, self.size, self.frames = torch, size, itertools.cycle(frames)
        self.laps: list[dict[str, float]] = []
        self.device = torch.device(device)
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise ArtifactError(
                    "this build of PyTorch does not use the GPU: "
                    "see https://pytorch.org/get-started/locally"
                )
            # As authors' scripts have it: the fastest algorithm for this one shape.
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
            batch=batch,
        )
        self.image: torch.Tensor | None = None
        self._noise: torch.Tensor | None = None
        self.frame_to_labels()

    def _prepare(self, network: Network) -> Any:
        """What is called with the normalized image (N, 3, H, W) and gives logits."""
        return network

    def _version(self) -> str:
        return self.torch.__version__

    @property
    def subject(self) -> Subject:
        on_cpu = self.device.type == "cpu"
        return replace(self._subject, threads=self.threads if on_cpu else None)

    def keep_faster_thread_count(self) -> None:
        """Continue with one thread if that is faster."""
        # With several, every operation ends at a barrier, and where another program holds one of
        # the cores each barrier waits for it: networks were seen twenty times slower. That says
        # nothing about PyTorch, and to compare with it would flatter everybody else.
        times = {}
        # Seen beside a busy process: csfcn_nano, 256x512, 900 ms with two threads, 40 with one.
        for threads in dict.fromkeys((self.threads, 1)):
            self.threads = threads
            self.frame_to_labels()
            # The call before it has started the new threads.
            start = time.perf_counter_ns()
            self.frame_to_labels()
            times[threads] = time.perf_counter_ns() - start
        self.threads = min(times, key=lambda threads: times[threads])

    def label(self, frame: Frame) -> NDArray[np.uint8]:
        return self._run([frame] * self.batch, lambda stage: None)[0]

    def frame_to_labels(self) -> object:
        labels = self._run(self._next_frames(), lambda stage: None)
        return labels if self.batch > 1 else labels[0]

    def _next_frames(self) -> list[Frame]:
        return list(itertools.islice(self.frames, self.batch))

    def time_stages(self) -> object:
        laps = Laps()

        def stop(stage: str) -> None:
            self._synchronize()
            laps.lap(stage)

        labels = self._run(self._next_frames(), stop)
        self.laps.append(laps.times)
        return labels

    def network(self) -> object:
        assert self.image is not None
        with self._settings():
            result = self._compute(self.image)
        self._synchronize()
        return result

    def device_ms(self) -> float | None:
        image = self.image
        assert image is not None
        with self._settings():
            return device_ms(lambda: self._compute(image), str(self.device))

    def take_noise(self) -> None:
        assert self.image is not None
        if self._noise is None:
            noise = self.torch.from_numpy(random_frame(self.size))
            self._noise = noise.expand(self.batch, *noise.shape).contiguous().to(self.device)
        self._synchronize()

    def run_queued(self, count: int) -> object:
        assert self._noise is not None
        with self._settings():
            for _ in range(count):
                # From pixels to labels, since an artifact's graph holds all of that.
                result = self._labels(self._compute(self._normalized(self._noise)))
        self._synchronize()
        return result

    def close(self) -> None:
        del self.model, self.image

    def _compute(self, image: torch.Tensor) -> torch.Tensor:
        """The part that counts as network: normalized image -> logits (N, K, h, w)."""
        logits: torch.Tensor = self.model(image)
        return logits

    def _run(self, frames: Sequence[Frame], stop: Callable[[str], None]) -> list[NDArray[np.uint8]]:
        """A batch of frames -> labels (H, W) uint8 of each; `stop(stage)` is called where a stage
        ends."""
        frames = [as_bgr(frame) for frame in frames]
        fitted = np.stack([fit_frame(f, self.size, self.fit, self.pad_color) for f in frames])
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
        mapped = [
            restore_labels(each, (frame.shape[0], frame.shape[1]), self.fit)
            for each, frame in zip(downloaded, frames, strict=True)
        ]
        stop("post")
        return mapped

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Threads are the whole process's, and another contestant may use PyTorch too."""
        before = self.torch.get_num_threads()
        self.torch.set_num_threads(self.threads)  # of the whole process
        try:
            with self.torch.inference_mode():
                yield
        finally:
            self.torch.set_num_threads(before)

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        """(N, H, W, 3) uint8 BGR -> (N, 3, H, W) float32 RGB as the network takes it."""
        # As authors' scripts prepare it, but on the device.
        image = frame.flip(3).permute(0, 3, 1, 2).float().contiguous()
        return image.div_(255).sub_(self.mean).div_(self.std)

    def _labels(self, logits: torch.Tensor) -> torch.Tensor:
        """(N, K, h, w) -> (N, H, W) uint8."""
        if tuple(logits.shape[-2:]) != self.size:
            logits = self.torch.nn.functional.interpolate(
                logits, self.size, mode="bilinear", align_corners=self.info.align_corners
            )
        return logits.argmax(1).to(self.torch.uint8)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)


class Compiled(Eager):
    """`torch.compile`: on a CPU in float32 with its defaults; on CUDA in float16, channels last,
    "max-autotune", which searches for the fastest kernels and replays a CUDA graph."""

    backend = title = "torch.compile"

    def _prepare(self, network: Network) -> Any:
        torch = self.torch
        if self.device.type == "cpu":
            return self._tried(torch.compile(network, dynamic=False))
        self.precision = "fp16"
        half: Any = network.half()
        half = half.to(memory_format=torch.channels_last)
        return self._tried(torch.compile(half, dynamic=False, mode="max-autotune"))

    def _tried(self, model: Any) -> Any:
        """Compiled by a first call, so that a compiler that is absent is found here."""
        with as_artifact_error("torch.compile"), self._settings():
            model(self._as_taken(self.torch.zeros(self.batch, 3, *self.size, device=self.device)))
        return model

    def _as_taken(self, image: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cpu":
            return image
        half: torch.Tensor = image.half().contiguous(memory_format=self.torch.channels_last)
        return half

    def _normalized(self, frame: torch.Tensor) -> torch.Tensor:
        return self._as_taken(super()._normalized(frame))
