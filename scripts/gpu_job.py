"""What every step of the GPU suite works with: its plan, its rows, and why it is left out."""

from __future__ import annotations

import gc
import json
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.camera_formats import CameraFormat
    from ..gpu import Gpu
    from ..speed.timing import Limits

ROOT = Path(__file__).resolve().parents[1]
NO_TIME = "no time was left"
SKIPPED, OUT_OF_TIME = 75, 76  # exit statuses of a step that ends so
STEADY = 1000  # frames over which memory has to stay where it is


class Skip(Exception):
    """This step cannot run here; the message says why."""

    status = SKIPPED


class OutOfTime(Skip):
    """This step could run here, but not in the time that it has."""

    status = OUT_OF_TIME


@dataclass(frozen=True)
class Plan:
    """What is measured: on a GPU, or as a dry run."""

    models: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    precisions: tuple[str, ...]
    runs: int
    seconds: float
    block_ms: float
    labels_of: tuple[str, ...] = ("csfcn_tiny", "csfcn")
    engine: str = "csfcn_tiny"
    engine_size: tuple[int, int] = (512, 1024)
    steady: int = STEADY
    formats: tuple[CameraFormat, ...] = ("bgr", "nv12", "yuyv", "bayer_rggb")
    cameras: tuple[tuple[int, int], ...] = ((1080, 1920), (2160, 3840))

    @property
    def limits(self) -> Limits:
        from ..speed.timing import Limits

        return Limits(self.runs, self.seconds, rounds=3, block_ms=self.block_ms)


FULL = Plan(
    models=("csfcn", "csfcn_tiny", "csfcn_nano", "pidnet_s", "sfnet_r18"),
    sizes=((1024, 2048), (512, 1024)),
    precisions=("fp16", "bf16"),
    runs=60,
    seconds=1.0,
    block_ms=80,
)
DRY = Plan(
    models=("csfcn_nano",), sizes=((64, 128),), precisions=("fp32",),
    runs=2, seconds=0.02, block_ms=1, labels_of=("csfcn_nano",),
    engine="csfcn_nano", engine_size=(64, 128), steady=5,
    formats=("bgr", "nv12", "bayer_rggb"), cameras=((96, 192),),
)  # fmt: skip


@dataclass
class Job:
    """One step at work: where its rows go, and until when."""

    device: str
    rows: Path
    out: Path
    ends: float
    camvid: Path | None = None
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = DRY if self.dry else FULL

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    @property
    def index(self) -> int:
        """CUDA's number of the GPU."""
        return int(self.device.partition(":")[2] or 0)

    def left(self) -> float:
        return self.ends - time.monotonic()

    def row(self, **facts: Any) -> None:
        """Keep facts at once: the step may be ended at any time."""
        with self.rows.open("a") as file:
            file.write(json.dumps(facts, default=str) + "\n")

    @contextmanager
    def part(self, **named: Any) -> Iterator[None]:
        """A part of the step; if it fails, that is its row, and the next one goes on.

        Raises:
            OutOfTime: no time is left, here or in a part of this part, which ends the step.
        """
        if self.left() < 1:
            self.row(**named, absent=NO_TIME)
            raise OutOfTime(NO_TIME)
        began = time.monotonic()
        try:
            yield
        except OutOfTime:
            raise
        except Exception as error:
            from ..errors import RtsegError

            lines = str(error).strip().splitlines() or [""]
            if isinstance(error, (Skip, RtsegError)):  # which say what would help
                self.row(**named, absent=lines[0][:500])
            else:
                self.row(**named, failed=f"{type(error).__name__}: {lines[0][:300]}")
                traceback.print_exc()
        finally:
            free_memory(self.device)
            sys.stderr.write(f"{named}: {time.monotonic() - began:.1f} s\n")


def free_memory(device: str) -> None:
    gc.collect()
    if device != "cpu" and "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


def use_tests() -> None:
    """The tests' pretended GPU and kernel cases are used as they are."""
    if not (ROOT / "tests" / "fake_cuda.py").is_file():
        raise Skip("the checkout's tests/ are not here")
    sys.path.append(str(ROOT / "tests"))


def this_gpu(job: Job) -> Gpu:
    from ..gpu import gpus

    return next(gpu for gpu in gpus() if gpu.index == job.index)
