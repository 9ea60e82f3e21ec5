"""The report without which nothing counts as exported.

Every artifact that can run here is run on the same frames as the plain float32 PyTorch network with
the same weights: labels through the runtime that will serve it, logits through a probe into the
same file, and a census of the data types that the file really holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from ..data.frames import read_folder
from ..models import Network
from ..models.source import normalised
from ..runtime.backend import installed, open_backend
from ..runtime.card import Card, Precision, Proof
from ..runtime.first_load import labels_of
from ..runtime.parity import BARS, MARGIN_STEPS, Figures, Reference, compare, faults

Logits = NDArray[np.float32]  # (K, H, W)


@dataclass(frozen=True)
class Expected:
    """The reference's answers: what travels with an engine, and the full logits of every frame.

    `truth`: label maps (H, W) of the frames where they have any, 255 where unlabelled.
    `align_corners`: how logits below the frame's size are enlarged to it.
    """

    reference: Reference
    logits: list[Logits]
    truth: list[NDArray[np.uint8] | None]
    align_corners: bool

    def enlarged(self, scores: NDArray[Any]) -> Logits:
        """Scores as an argmax reads them, (1, K, h, w) or before a pixel shuffle (1, K, p, h, w),
        as (K, H, W) float32 of the frame's size."""
        tensor = torch.from_numpy(np.asarray(scores, np.float32))
        if tensor.ndim == 5:
            factor = round(tensor.shape[2] ** 0.5)
            tensor = torch.nn.functional.pixel_shuffle(tensor.flatten(1, 2), factor)
        size = self.reference.labels.shape[1:]
        if tensor.shape[2:] != size:
            tensor = torch.nn.functional.interpolate(
                tensor, size, mode="bilinear", align_corners=self.align_corners
            )
        full: Logits = tensor[0].numpy()
        return full


@dataclass
class Verdict:
    """One artifact run in one precision: passed, failed, or not run here and why."""

    file: str
    backend: str
    precision: str
    status: str
    agreement: float | None = None
    band_agreement: float | None = None
    miou: float | None = None
    unexplained: float | None = None
    logits_error: float | None = None
    worst_frame: str | None = None
    iou: dict[str, float] = field(default_factory=dict)
    miou_change: float | None = None
    iou_change: dict[str, float] = field(default_factory=dict)
    census: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    why: str | None = None

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def read_frames(
    frames: Path | None, labels: Path | None
) -> tuple[list[tuple[str, NDArray[np.uint8]]] | None, list[NDArray[np.uint8] | None]]:
    """(name, image) of every image of the folder `frames`, and their label maps in `labels`.

    (None, []) without a folder. Raises ValueError if it holds no image, an unreadable one, or no
    label map fits by name.
    """
    if frames is None:
        if labels is not None:
            raise ValueError("--labels are of the images in --frames: give that folder too")
        return None, []
    pictures = read_folder(frames)
    if labels is None:
        return pictures, []
    truth: list[NDArray[np.uint8] | None] = []
    for name, _ in pictures:
        path = labels / f"{name}.png"
        found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
        truth.append(None if found is None else np.asarray(found, np.uint8))
    if not any(map_ is not None for map_ in truth):
        raise ValueError(f"{labels} has no label PNG of any frame, such as {pictures[0][0]}.png")
    return pictures, truth


def expect(
    network: Network,
    frames: Sequence[tuple[str, NDArray[np.uint8]]],
    size: tuple[int, int],
    truth: Sequence[NDArray[np.uint8] | None] = (),
) -> Expected:
    """Run the plain network in float32 on frames (name, (H, W, 3) uint8 BGR), resized to `size`."""
    height, width = size
    fitted, labels, margins, logits = [], [], [], []
    for _, frame in frames:
        image = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        with torch.inference_mode():
            full = network(normalised(np.asarray(image), network))
            if full.shape[-2:] != size:
                corners = network.info.align_corners
                full = torch.nn.functional.interpolate(
                    full, size, mode="bilinear", align_corners=corners
                )
            best = full[0].topk(2, dim=0).values
            lead = (best[0] - best[1]) / full.abs().max() * MARGIN_STEPS
        fitted.append(image)
        labels.append(full[0].argmax(0).numpy().astype(np.uint8))
        margins.append(lead.clamp(0, 255).numpy().astype(np.uint8))
        logits.append(full[0].numpy())
    reference = Reference(
        np.stack(fitted), np.stack(labels), np.stack(margins), tuple(name for name, _ in frames)
    )
    maps: list[NDArray[np.uint8] | None] = [
        None
        if each is None
        else np.asarray(
            cv2.resize(each, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8
        )
        for each in (truth or [None] * len(labels))
    ]
    return Expected(reference, logits, maps, network.info.align_corners)


def judge(
    path: Path,
    card: Card,
    expected: Expected,
    backend: str,
    census: dict[str, int],
    bar: Precision | None = None,
    device: str = "cpu",
    **options: Any,
) -> Verdict:
    """Run the artifact on the expected frames and hold it to the bar of precision `bar`, by
    default the artifact's own; `options` go to the backend."""
    precision = bar or card.precision
    verdict = Verdict(path.name, backend, precision, "failed", census=census)
    if not installed(backend):
        verdict.status, verdict.why = "not run", f"{backend} is not installed here"
        return verdict
    runner = open_backend(backend, path, device, **options)
    probe = _PROBES.get(backend)
    scores = probe(path, **options) if probe else None
    figures, maps = [], []
    reference = expected.reference
    try:
        for i, frame in enumerate(reference.frames):
            read = expected.enlarged(scores(frame[None])) if scores else None
            if read is not None and "labels" not in card.outputs:
                labels = read.argmax(0).astype(np.uint8)
            else:
                labels = labels_of(runner, card, frame[None])
            error = None if read is None else _logits_error(read, expected.logits[i])
            figures.append(
                compare(
                    reference.labels[i],
                    reference.margins[i],
                    labels,
                    BARS[precision],
                    reference.names[i],
                    error,
                )
            )
            maps.append(labels)
    finally:
        runner.close()
    _summarise(verdict, figures, card)
    _against_truth(verdict, expected, maps, card)
    verdict.faults = [*faults(figures, precision, card.trained), *_typed(card, census)]
    change = verdict.miou_change
    if change is not None and card.trained and abs(change) > BARS[precision].miou_change:
        verdict.faults.append(
            f"mIoU moves by {change:+.3%}, at most {BARS[precision].miou_change:.2%} may"
        )
    verdict.status = "failed" if verdict.faults else "passed"
    return verdict


def _summarise(verdict: Verdict, figures: list[Figures], card: Card) -> None:
    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    verdict.agreement = mean([f.agreement for f in figures])
    verdict.band_agreement = mean([f.band_agreement for f in figures])
    verdict.miou = mean([f.miou for f in figures])
    verdict.unexplained = max(f.unexplained for f in figures)
    errors = [f.logits_error for f in figures if f.logits_error is not None]
    verdict.logits_error = max(errors, default=None)
    verdict.worst_frame = min(figures, key=lambda f: f.agreement).frame
    seen = sorted({i for f in figures for i in f.iou})
    verdict.iou = {card.classes[i]: mean([f.iou[i] for f in figures if i in f.iou]) for i in seen}


def _against_truth(
    verdict: Verdict, expected: Expected, maps: list[NDArray[np.uint8]], card: Card
) -> None:
    """How far the mIoU against real labels moves, where frames have them."""
    pairs = [
        (truth, ours, theirs)
        for truth, ours, theirs in zip(expected.truth, expected.reference.labels, maps, strict=True)
        if truth is not None
    ]
    if not pairs:
        return
    before = _iou([(truth, ours) for truth, ours, _ in pairs], len(card.classes))
    after = _iou([(truth, theirs) for truth, _, theirs in pairs], len(card.classes))
    verdict.iou_change = {card.classes[i]: after[i] - before[i] for i in before}
    verdict.miou_change = float(np.mean(list(verdict.iou_change.values())))


def _iou(
    pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int
) -> dict[int, float]:
    both = np.zeros((classes, classes), np.int64)
    for truth, labels in pairs:
        counted = truth < classes
        index = truth[counted].astype(np.int64) * classes + labels[counted]
        both += np.bincount(index, minlength=classes**2).reshape(classes, classes)
    union = both.sum(0) + both.sum(1) - both.diagonal()
    return {i: float(both[i, i] / union[i]) for i in range(classes) if union[i]}


def _typed(card: Card, census: dict[str, int]) -> list[str]:
    """A file whose values are not of the precision that it claims, whatever it computes."""
    floats = {k: v for k, v in census.items() if "float" in k or k in ("half", "double")}
    wanted = {"fp32": "float", "fp16": "float16"}.get(card.precision)
    total = sum(floats.values())
    # Positions and other float32 islands of a half-precision graph weigh little.
    allowed = 0.05 if card.precision == "fp16" else 0.0
    if wanted is None or not total or 1 - floats.get(wanted, 0) / total <= allowed:
        return []
    found = ", ".join(f"{v / total:.0%} {k}" for k, v in sorted(floats.items()))
    return [f"the file claims {card.precision}, but its values are {found}"]


def _logits_error(ours: Logits, reference: Logits) -> float:
    """Root mean square difference over that of the reference."""
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


Scores = Callable[[NDArray[np.uint8]], NDArray[Any]]


def _probe_onnx(path: Path) -> Scores:
    import onnx

    from .onnx import with_scores

    model, name = with_scores(onnx.load(path))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda frame: session.run([name], {"frame": frame})[0]


def _probe_openvino(path: Path, precision: str = "fp32") -> Scores:
    from ..runtime.ov import HINTS, the_core, with_positions
    from .onnx import SCORES

    core = the_core()
    model = with_positions(core, path)
    outputs = {name for output in model.outputs for name in output.get_names()}
    name = SCORES
    if not any(SCORES in o.get_names() for node in model.get_ops() for o in node.outputs()):
        name = "logits"  # an output of its own, which the argmax reads
    if name not in outputs:
        model.add_outputs(name)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]})
    return lambda frame: compiled({"frame": frame})[name]


def _probe_torch(path: Path) -> Scores:
    from ..models import FrameToLabels, build, load_checkpoint
    from ..runtime.card import read_card

    card = read_card(path)
    whole = FrameToLabels(load_checkpoint(build(card.model, len(card.classes)), path), ("logits",))

    def scores(frame: NDArray[np.uint8]) -> NDArray[Any]:
        with torch.inference_mode():
            value: NDArray[Any] = whole(torch.from_numpy(frame))[0].numpy()
            return value

    return scores


_PROBES: dict[str, Callable[..., Scores]] = {
    "onnxruntime": _probe_onnx,
    "openvino": _probe_openvino,
    "torch": _probe_torch,
}


def proof_of(verdicts: Sequence[Verdict], frames: int) -> Proof | None:
    """The card's entry for an artifact's verdicts; None if it could not be run."""
    own = [v for v in verdicts if v.agreement is not None and v.precision != "bf16"]
    if not own:
        return None
    in_bf16 = [v.passed for v in verdicts if v.precision == "bf16"]
    content = json.dumps([asdict(v) for v in verdicts], sort_keys=True)
    return Proof(
        report=hashlib.sha256(content.encode()).hexdigest()[:16],
        passed=all(v.passed for v in own),
        frames=frames,
        agreement=min(v.agreement for v in own if v.agreement is not None),
        logits_error=max((v.logits_error for v in own if v.logits_error is not None), default=None),
        bf16=in_bf16[0] if in_bf16 else None,
    )


def judge_engine(path: Path, card: Card, expected: Expected, census: dict[str, int]) -> Verdict:
    """An engine runs where there is a GPU that can load it; elsewhere it stays unproven."""
    from ..runtime.preflight import check

    here = check(path)
    if here.ok:
        return judge(path, card, expected, "tensorrt", census, device="cuda", prove=False)
    found = _typed(card, census)
    return Verdict(
        path.name,
        "tensorrt",
        card.precision,
        "failed" if found else "not run",
        census=census,
        faults=found,
        why=f"{here.reason}; it is proven on the first machine that loads it",
    )
