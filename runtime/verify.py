"""Proof of an artifact against a reference: figures, bars, and an engine's first load on a machine.

Labels alone cannot judge a network whose classes are nearly tied, so a reference also records its
margins: where an artifact gives another label although the reference's margin is wider than the
error that its precision allows, that is a fault, whatever the share of equal labels.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..data.files import digest_of, write_atomically
from ..data.limits import read_arrays
from ..data.scenes import scene
from ..errors import ArtifactError
from ..gpu import Gpu
from ..system import read_system
from .artifact import Card, Precision, beside_engine
from .backends.backend import Backend, Image, Labels
from .batches import plan_batches, stack_batches
from .records import read_record, write_record

log = logging.getLogger("rtseg")
LabelMap = NDArray[np.uint8]  # (H, W)
BAND = 3  # pixels on each side of a border between classes
MARGIN_STEPS = 1000  # margins are kept in thousandths of the largest logit, up to 0.255
HALF_FRAMES = 3  # drawn, of a float16 graph's proof on a GPU
NEARLY_TIED = 0.9  # of random weights, whose logits are; what overflows agrees on far less
UNEXPLAINED = 1e-5  # share of pixels; a coarse grid of kept margins makes strays


@dataclass(frozen=True)
class Bars:
    """What an artifact of a precision must reach.

    agreement: least share of pixels with the reference's label, for trained weights. logits_error:
    most that the logits may differ, root mean square over that of the reference's. miou_change:
    most that the mIoU may move, as a fraction, where the frames have labels. untrained: the
    logits_error of random weights, where that is another.
    """

    agreement: float
    logits_error: float
    miou_change: float
    untrained: float | None = None

    @property
    def sure(self) -> float:
        """Where the reference's margin is wider than this, another label is a fault: both the first
        and the second logit may be off, and by more than the mean error. 255, which no margin is,
        where the error allowed is beyond the margins that are kept."""
        if self.logits_error * MARGIN_STEPS > 255:
            return 255
        return min(254, 4 * self.logits_error * MARGIN_STEPS)


BARS: dict[Precision, Bars] = {
    "fp32": Bars(0.9999, 1e-3, 0.0002),
    "fp16": Bars(0.998, 2e-2, 0.001),
    # bfloat16 keeps 3 bits less than float16; a fault of the graph also shows in the same file's
    # float32 run.
    "bf16": Bars(0.998, 0.16, 0.001),
    # A trained network's logits were off by 0.02 when calibrated on street frames, by 0.07 on
    # noise. Layers with random weights pass rounding on and amplify it, to 0.1 to 0.4 in sound
    # graphs; an answer that has nothing to do with the reference is off by 1 or more.
    "int8": Bars(0.985, 0.05, 0.01, untrained=0.5),
    # An engine in fp8 takes int8's place, and has to be as right.
    "fp8": Bars(0.985, 0.05, 0.01, untrained=0.5),
}


def find_bars(precision: Precision, trained: bool) -> Bars:
    """The bars of an artifact's precision and kind of weights."""
    bars = BARS[precision]
    if trained or bars.untrained is None:
        return bars
    return replace(bars, logits_error=bars.untrained)


@dataclass(frozen=True)
class Figures:
    """One frame's comparison, reference against artifact.

    band_agreement: agreement within BAND pixels of the reference's class borders. iou: per class of
    the reference, the overlap of the two maps. unexplained: share of pixels that differ although
    the reference was sure. logits_error: as in Bars; None if only labels could be read.
    """

    frame: str
    agreement: float
    band_agreement: float
    iou: dict[int, float]
    unexplained: float
    logits_error: float | None = None

    @property
    def miou(self) -> float:
        return float(np.mean(list(self.iou.values()))) if self.iou else 1.0


@dataclass
class Reference:
    """What float32 PyTorch said: frames (n, H, W, 3) uint8 BGR, or (n, *card.frame_shape) of a
    camera's format, labels (n, H, W) uint8, and margins
    (n, H, W) uint8, the lead of the first class over the second in thousandths of the largest
    logit. `names` of the frames, for the report."""

    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    margins: NDArray[np.uint8]
    names: tuple[str, ...]

    def save(self, path: Path) -> None:
        """As one compressed file; pictures in it are PNG."""
        packed: dict[str, Any] = {"names": np.array(self.names)}
        for kind in ("frames", "labels", "margins"):
            for i, picture in enumerate(getattr(self, kind)):
                # PNG keeps every value, and packs label maps well; it has no two channels.
                rows = len(picture)
                flat = picture.reshape(rows, -1) if picture.shape[2:] == (2,) else picture
                packed[f"{kind}_{i}"] = cv2.imencode(".png", flat)[1]
        buffer = io.BytesIO()
        np.savez(buffer, **packed)
        write_atomically(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, digest: str | None = None) -> Reference:
        """Raises ArtifactError if the file is absent, damaged, or not of that SHA-256."""
        try:
            packed = read_arrays(path, ArtifactError, digest)
        except OSError as error:
            raise ArtifactError(_NO_REFERENCE.format(path)) from error
        try:
            names = tuple(map(str, packed["names"]))
            frames, labels, margins = (
                np.stack([_unpacked(packed[f"{kind}_{i}"]) for i in range(len(names))])
                for kind in ("frames", "labels", "margins")
            )
        except (ValueError, KeyError, cv2.error) as error:
            raise ArtifactError(_NO_REFERENCE.format(path)) from error
        return cls(frames, labels, margins, names)


_NO_REFERENCE = "{} is missing or damaged: copy it again with its engine, or export again"


def _unpacked(png: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise ValueError("a picture in it is damaged")
    return np.asarray(picture, np.uint8)


def compare(
    reference: LabelMap,
    margins: NDArray[np.uint8],
    labels: LabelMap,
    bars: Bars,
    name: str = "",
    logits_error: float | None = None,
) -> Figures:
    """The figures of one frame; all maps are (H, W)."""
    same = reference == labels
    band = find_borders(reference)
    sure = margins > bars.sure
    iou: dict[int, float] = {}
    for i in np.unique(reference).tolist():
        union = np.count_nonzero((reference == i) | (labels == i))
        iou[i] = float(np.count_nonzero((reference == i) & (labels == i)) / union)
    return Figures(
        frame=name,
        agreement=float(same.mean()),
        band_agreement=float(same[band].mean()) if band.any() else 1.0,
        iou=iou,
        unexplained=float((~same & sure).mean()),
        logits_error=logits_error,
    )


def find_borders(labels: LabelMap) -> NDArray[np.bool_]:
    """(H, W): True within BAND pixels of a border between classes."""
    box = np.ones((2 * BAND + 1, 2 * BAND + 1), np.uint8)
    return np.asarray(cv2.dilate(labels, box) != cv2.erode(labels, box))


def find_faults(figures: Sequence[Figures], precision: Precision, trained: bool) -> list[str]:
    """What falls below the bar, in words; empty if nothing does.

    Random weights give neighboring logits nearly equal values, so they are not held to the share
    of equal labels.
    """
    bars, found = find_bars(precision, trained), []
    agreement = float(np.mean([f.agreement for f in figures]))
    if trained and agreement < bars.agreement:
        found.append(
            f"labels agree on {agreement:.3%} of pixels, the bar for {precision} is "
            f"{bars.agreement:.2%}"
        )
    unexplained = max(f.unexplained for f in figures)
    if unexplained > UNEXPLAINED:
        found.append(
            f"{unexplained:.3%} of a frame's pixels differ where the reference was sure, "
            f"at most {UNEXPLAINED:.3%} may"
        )
    errors = [f.logits_error for f in figures if f.logits_error is not None]
    # Written so that NaN fails.
    if errors and not max(errors) <= bars.logits_error:
        found.append(
            f"the logits are off by {max(errors):.2g} of their size, the bar for {precision} is "
            f"{bars.logits_error:g}"
        )
    return found


@dataclass(frozen=True)
class EngineHost:
    """Where an engine runs; what a proof holds for. tensorrt: flavour and version."""

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str


def reference_path(engine: Path, card: Card | None = None) -> Path:
    """File of an engine's frames and float32 PyTorch's labels, beside it."""
    return beside_engine(engine, card, "reference.npz")


def record_path(engine: Path, card: Card | None = None) -> Path:
    """File that records an engine's proof on this machine, beside it."""
    return beside_engine(engine, card, "proof.json")


def prove_once(path: Path, card: Card, backend: Backend, host: EngineHost) -> dict[str, object]:
    """The record of the engine's proof on this machine, made now if there is none yet.

    The record lies beside the engine, as `NAME.proof.json`, where the folder can be written. It
    holds for this card, engine file and reference, on this device with these versions, and only if
    this user's cache made it; see `records`.

    Raises:
        ArtifactError: the engine gives other labels than its reference, or has none.
    """
    key = {**_subject(path, card), **asdict(host)}
    known = read_record(record_path(path, card), passed=True, **key)
    if known is not None:
        return known
    figures = _run(_reference(path, card), card, backend)
    found = find_faults(figures, card.precision, card.trained)
    record = {**key, "passed": not found, "faults": found, "frames": [asdict(f) for f in figures]}
    # A vehicle's folder may be read-only; then the proof is made at every start.
    write_record(record_path(path, card), record)
    log.log(
        logging.ERROR if found else logging.INFO,
        "proof of %s on %s with %s: %s",
        path.name,
        host.gpu,
        host.tensorrt,
        "; ".join(found) or "passed",
    )
    if found:
        raise ArtifactError(
            f"{path.name} is wrong on {host.gpu} with {host.tensorrt} ({'; '.join(found)}), "
            f"so it is not served: export it again for this machine, or use the ONNX artifact"
        )
    return record


@dataclass(frozen=True)
class Processor:
    """A CPU as a proof names it: its name with its instruction sets, and no driver."""

    name: str
    driver: str = ""


def this_processor() -> Processor:
    """This machine's."""
    found = read_system()
    return Processor(f"{found.cpu} ({' '.join(found.instruction_sets)})")


def prove_half(
    path: Path, card: Card, backend: Backend, gpu: Gpu | Processor, open_cpu: Callable[[], Backend]
) -> None:
    """Prove a model on the device that really computes it in float16, once, against float32 on the
    CPU of its machine.

    Export proved it on a CPU, which mostly computes such a graph in float32; sums that are really
    of float16 may overflow where nothing showed it. The record lies beside the file, as of
    `prove_once`.

    Args:
        path: the artifact.
        card: of it.
        backend: on that device.
        gpu: the device, which may be a CPU.
        open_cpu: loads the same file in float32; called where there is no record yet.

    Raises:
        ArtifactError: the device gives other labels than float32.
    """
    host = {"gpu": gpu.name, "driver": gpu.driver, "version": backend.info.version}
    key = {**_subject(path, card), **host}
    if read_record(record_path(path, card), passed=True, **key) is not None:
        return
    cpu = open_cpu()
    try:
        drawn = [
            card.encode(scene(card.size, seed)) for seed in range(max(HALF_FRAMES, card.batch))
        ]
        frames = list(stack_batches(drawn, card.batch))
        same = [_classes(backend, frame) == _classes(cpu, frame) for frame in frames]
    finally:
        cpu.close()
    agreement, bar = float(np.mean(same)), BARS["fp16"].agreement if card.trained else NEARLY_TIED
    write_record(
        record_path(path, card), {**key, "passed": agreement >= bar, "agreement": agreement}
    )
    log.info("proof of %s on %s: %.3f %% of labels agree", path.name, gpu.name, 100 * agreement)
    if agreement < bar:
        raise ArtifactError(
            f"{path.name} is wrong on {gpu.name} in float16 (its labels agree with float32's on "
            f"{agreement:.3%} of pixels, the bar is {bar:.2%}), so it is not served: export it "
            "in fp32, or as an engine"
        )


def _classes(backend: Backend, image: Image) -> Labels:
    """Labels, or the likeliest classes at the logits' own size where there are only those."""
    if backend.card.gives_labels:
        return np.array(backend(image))
    backend.upload(image)
    backend.compute()
    backend.synchronize()
    logits = backend.logits()
    assert logits is not None
    return np.asarray(logits.argmax(1), np.uint8)


def is_proven_here(path: Path, card: Card) -> bool:
    """Whether an engine passed its proof on a device of this machine."""
    return read_record(record_path(path, card), passed=True, **_subject(path, card)) is not None


def _subject(path: Path, card: Card) -> dict[str, str]:
    """What a proof is of: digests of what lies there, and the version that judges."""
    files = {"file": path, "reference": reference_path(path, card)}
    return {
        "rtseg": __version__,
        "card": hashlib.sha256(card.to_json().encode()).hexdigest(),  # it sets the bar
        **{kind: digest_of(each) if each.is_file() else "" for kind, each in files.items()},
    }


def _reference(path: Path, card: Card) -> Reference:
    beside = reference_path(path, card)
    expected = card.files.get(beside.name)
    if expected is None:
        raise ArtifactError(
            f"{path.name} carries no reference, so nothing proves it here: export it again"
        )
    return Reference.load(beside, expected)


def _run(reference: Reference, card: Card, backend: Backend) -> list[Figures]:
    """One comparison a slot of each batch."""
    bars, figures = find_bars(card.precision, card.trained), []
    for places in plan_batches(len(reference.frames), card.batch):
        maps = read_labels(backend, card, reference.frames[places].reshape(card.input_shape))
        for i, labels in zip(places, maps, strict=True):
            truth = reference.labels[i], reference.margins[i]
            figures.append(compare(*truth, labels, bars, reference.names[i]))
    return figures


def read_labels(backend: Backend, card: Card, image: Image) -> Labels:
    """Labels (N, H, W) of an image (*card.input_shape), from the logits where there are only
    those."""
    if card.gives_labels:
        # A copy: the next call overwrites the backend's labels.
        return np.array(backend(image))
    backend.upload(image)
    backend.compute()
    logits = backend.logits()
    if logits is None or logits.shape[2:] != card.size:
        raise ArtifactError(
            "logits below the frame's size cannot be proven: export it again with --output both"
        )
    return np.asarray(logits.argmax(1), np.uint8)
