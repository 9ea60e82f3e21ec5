"""What the tests of measuring share: a clock of our own, a fake backend, results made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rtseg.runtime import Card
from rtseg.runtime.backends.backend import Backend, Diagnosis, Info
from rtseg.speed import plan
from rtseg.speed.config import BenchConfig
from rtseg.speed.result import STAGES, BenchResult, Speedup, Subject
from rtseg.speed.timing import Timing, WarmUp
from rtseg.system import SystemInfo
from rtseg.usage import Noise

SIZE = (64, 128)


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def work(self, ms: float) -> None:
        self.ns += round(ms * 1e6)

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)


CARD = Card(
    model="csfcn_nano",
    size=(4, 8),
    precision="fp32",
    outputs=("labels",),
    classes=("road", "car"),
    palette=((0, 0, 0), (1, 1, 1)),
    class_set="two",
    mean=(0, 0, 0),
    std=(1, 1, 1),
    weights="0123456789abcdef",
    weights_from="nowhere",
    trained=False,
    macs=5_000_000,
    params=7,
    tools={},
)


class FakeBackend(Backend):
    card = CARD
    info = Info("fake", "1.0", "cpu", 2, "fp32", (("hint", "latency"),))

    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed = False

    def upload(self, image):
        assert image.shape == (1, 4, 8, 3)
        self.log.append("upload")

    def compute(self):
        self.log.append("compute")

    def download(self):
        self.log.append("download")
        return np.ones((1, 4, 8), np.uint8)

    def _fetch(self, name):
        raise AssertionError("downloads are faked")

    @classmethod
    def diagnose(cls, found):
        return Diagnosis({}, ("cpu",))

    def synchronize(self):
        self.log.append("synchronize")

    def logits(self):
        return None

    def close(self):
        self.closed = True


def frames_of(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [np.zeros((*size, 3), np.uint8) for size in sizes]


MACHINE = SystemInfo(
    "Some CPU", 4, ("avx2", "vnni"), 16.0, "Linux 6 x86_64", "3.11.7", (), {"rtseg": "0.1.0"}
)


def result_of(backend: str, ms: float, against: Speedup | None) -> BenchResult:
    subject = Subject(
        "csfcn_nano", "0123456789abcdef", False, SIZE, "fp32", backend, "1", "cpu", 4, {}, 10**9,
        "", peer=backend == "eager",
    )  # fmt: skip
    timing = Timing.of(np.full(5, ms))
    stages = dict.fromkeys(STAGES, ms / 5)
    warmed, noise = WarmUp(6, 0.1, True, ms), Noise(0.0, 0.0, 0.5)
    ratios = {"eager fp32": against} if against else {}
    return BenchResult(subject, timing, timing, stages, 12.0, None, warmed, ratios, noise, MACHINE)


def onnx_with_card(folder: Path, card: Card = CARD) -> Path:
    from rtseg.runtime.artifact import append_card

    path = folder / "some.onnx"
    path.write_bytes(append_card(b"model", card))
    return path


def planned(models, sizes=(), backends=(), precisions=(), **options):
    config = BenchConfig(models, sizes, backends, precisions, device="cpu", **options)
    return plan.plan(config, lambda *_: None)
