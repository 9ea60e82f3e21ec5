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

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.artifact import Card, Precision, Proof
from ..runtime.backends.backend import installed, open_backend
from ..runtime.parity import Figures, bars_of, compare, faults
from ..runtime.verify import labels_of
from .expected import Expected, Logits, expect, read_frames
from .probes import PROBES, session_of

__all__ = ["Expected", "Verdict", "expect", "judge", "judge_engine", "read_frames", "trial"]

INT8_SHARE = 0.5  # of the values of an int8 file, at least; tables and a few layers are float


@dataclass
class Verdict:
    """One artifact run in one precision: passed, failed, or not run here and why."""

    file: str
    backend: str
    precision: Precision
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
    probe = PROBES.get(backend)
    scores = probe(path, **options) if probe else None

    def answer(frame: Image, wanted: bool) -> Answer:
        wanted = wanted or not card.gives_labels
        read = expected.enlarged(scores(frame)) if scores and wanted else None
        if read is not None and not card.gives_labels:
            return read.argmax(0).astype(np.uint8), read
        return labels_of(runner, card, frame), read

    try:
        _hold_to(verdict, card, expected, answer)
    finally:
        runner.close()
    return verdict


def trial(graph: onnx.ModelProto, card: Card, expected: Expected) -> Verdict:
    """What `judge` would say of an ONNX graph that no file holds yet."""
    from .graph import census, with_scores

    verdict = Verdict("trial", "onnxruntime", card.precision, "failed", census=census(graph))
    probe, name = with_scores(graph)
    session = session_of(probe)
    labeled = "labels" in card.outputs

    def answer(frame: Image, wanted: bool) -> Answer:
        names = [name] if not labeled else [name, "labels"] if wanted else ["labels"]
        found = dict(zip(names, session.run(names, {"frame": frame}), strict=True))
        read = expected.enlarged(found[name]) if name in found else None
        if labeled:
            return found["labels"][0], read
        assert read is not None
        return read.argmax(0).astype(np.uint8), read

    _hold_to(verdict, card, expected, answer)
    return verdict


Image = NDArray[np.uint8]  # (1, H, W, 3)
Answer = tuple[NDArray[np.uint8], Logits | None]  # labels (H, W), and the logits if they were read


def _hold_to(
    verdict: Verdict,
    card: Card,
    expected: Expected,
    answer: Callable[[Image, bool], Answer],
) -> None:
    """Fill the verdict in from answers to the expected frames; `answer` is told whether the logits
    of a frame are wanted."""
    # An int8 file stays one, whatever its other layers compute in.
    precision: Precision = "int8" if card.precision == "int8" else verdict.precision
    bars, figures, maps = bars_of(precision, card.trained), [], []
    reference = expected.reference
    for i, frame in enumerate(reference.frames):
        known = expected.logits[i]
        labels, read = answer(frame[None], known is not None)
        error = None if read is None or known is None else _logits_error(read, known)
        figures.append(
            compare(
                reference.labels[i], reference.margins[i], labels, bars, reference.names[i], error
            )
        )
        maps.append(labels)
    _summarize(verdict, figures, card)
    _against_truth(verdict, expected, maps, card)
    verdict.faults = [*faults(figures, precision, card.trained), *_typed(card, verdict.census)]
    change = verdict.miou_change
    if change is not None and card.trained and abs(change) > bars.miou_change:
        verdict.faults.append(f"mIoU moves by {change:+.3%}, at most {bars.miou_change:.2%} may")
    verdict.status = "failed" if verdict.faults else "passed"


def _summarize(verdict: Verdict, figures: list[Figures], card: Card) -> None:
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
    total = sum(floats.values())
    if card.precision == "int8":
        total += census.get("int8", 0)
        share = census.get("int8", 0) / total if total else 0.0
        if share >= INT8_SHARE:
            return []
        return [f"the file claims int8, but only {share:.0%} of its values are"]
    wanted = {"fp32": "float", "fp16": "float16"}.get(card.precision)
    # Positions and other float32 islands of a half-precision graph weigh little.
    allowed = 0.05 if card.precision == "fp16" else 0.0
    if wanted is None or not total or 1 - floats.get(wanted, 0) / total <= allowed:
        return []
    found = ", ".join(f"{v / total:.0%} {k}" for k, v in sorted(floats.items()))
    return [f"the file claims {card.precision}, but its values are {found}"]


def _logits_error(ours: Logits, reference: Logits) -> float:
    """Root mean square difference over that of the reference."""
    return float(np.linalg.norm(ours - reference) / np.linalg.norm(reference))


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
