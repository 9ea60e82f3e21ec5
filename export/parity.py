"""Proof of an artifact: its labels and logits against the plain float32 PyTorch network.

Every artifact that can run here is run on the same frames as the network it was made from: labels
through the runtime that will serve it, logits through a probe into the same file, and a census of
the data types that the file really holds. Only an artifact that passes counts as exported.
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
import onnxruntime
from numpy.typing import NDArray

from ..data.classes import IGNORE
from ..reporting import Progress
from ..runtime.artifact import ROUNDED, Card, Precision, Proof
from ..runtime.backends.backend import BACKENDS, is_installed, open_backend
from ..runtime.backends.onnxruntime_self_test import WIDEN, self_test
from ..runtime.batches import plan_batches
from ..runtime.bounds import ErrorBound
from ..runtime.verify import Figures, compare, find_bars, find_faults, read_labels
from ..train.evaluate import Confusion
from .conditions import text_of
from .error_bound import ErrorMeter
from .reference import LabelMap, Logits, ReferenceOutputs

Image = NDArray[np.uint8]  # (N, H, W, 3) BGR
# Labels (N, H, W) if it gives any, and scores (N, ...) as an argmax reads them if they were read.
Answer = tuple[LabelMap | None, NDArray[np.generic] | None]

ROUNDED_SHARE = (
    0.5  # of the values of an int8 or fp8 file, at least; tables and a few layers are float
)


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """The graph in ONNX Runtime on the CPU."""
    options = onnxruntime.SessionOptions()
    # 3: errors and worse.
    options.log_severity_level = 3
    if any(each.data_type == onnx.TensorProto.FLOAT8E4M3FN for each in model.graph.initializer):
        # Version 1.31.1 optimizes fp8 into graphs that do not load, or give other labels.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry(WIDEN, str(int(self_test())))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@dataclass
class ParityResult:
    """One artifact run in one precision: "passed", "failed", or "not run" here, and why.

    Attributes:
        size: of the frames, as "512x1024".
        frames: how many it was run on.
        agreement, band_agreement: share of pixels with the reference's label, in all and near
            borders between classes.
        miou, iou: overlap with PyTorch's labels, which is no accuracy.
        unexplained: share of pixels that differ although the reference was sure.
        logits_error: root mean square over that of the reference, both centered.
        miou_change, iou_change: of the accuracy, where frames have true labels.
        census: values that the file holds, by data type.
        bound: of the logits' error; the fields of an `ErrorBound`.
        argmax: where it was taken, of a file that is proven both ways.
    """

    file: str
    backend: str
    precision: Precision
    status: str
    size: str = ""
    frames: int = 0
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
    bound: dict[str, Any] | None = None
    faults: list[str] = field(default_factory=list)
    why: str | None = None
    argmax: str | None = None

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    def fail(self, faults: Sequence[str]) -> None:
        """Add faults that were found elsewhere, if there are any."""
        if faults:
            self.faults += faults
            self.status = "failed"


def prove_artifact(
    path: Path,
    card: Card,
    expected: ReferenceOutputs,
    backend: str,
    census: dict[str, int],
    bar: Precision | None = None,
    device: str = "cpu",
    progress: Progress = lambda step, share: None,
    **options: object,
) -> ParityResult:
    """Run an artifact on the reference's frames and hold it to a bar.

    Args:
        path: the artifact, with its card written.
        card: of it.
        expected: what the float32 network said.
        backend: that runs it.
        census: values that the file holds, by data type.
        bar: the precision whose bar counts, by default the artifact's own.
        device: of the backend.
        progress: called with what is being done and the share of it that is done, 0..1.
        **options: of the backend.
    """
    precision = bar or card.precision
    result = ParityResult(
        path.name, backend, precision, "failed", text_of(card.size), census=census
    )
    result.argmax = str(options["argmax"]) if "argmax" in options else None
    if card.sizes:
        options["size"] = card.size
    if not is_installed(backend):
        result.status, result.why = "not run", f"{backend} is not installed here"
        return result
    # The backend that will serve the file, not a session of our own: its settings count too.
    runner = open_backend(backend, path, device, None, **options)
    kind = BACKENDS[backend].load()
    scores = kind.open_scores(path, **options)

    # Of the logits that the labels are made of, where they can be read, not of a probe's.
    meter = ErrorMeter(runner.arithmetic)
    maker = runner.maker

    def served(slot: int) -> Logits | None:
        if maker is None:
            return None
        return expected.upsample_coarse(maker.coarse[slot], maker.upsampling)

    def answer(frame: Image, wanted: bool) -> Answer:
        wanted = wanted or not card.gives_labels
        read = scores(frame) if scores and wanted else None
        if read is not None and kind.gives_coarse and card.coarse is not None:
            whole = [expected.upsample_coarse(each, card.coarse.upsampling) for each in read]
            read = np.stack(whole)
        if read is not None and not card.gives_labels:
            return None, read
        return read_labels(runner, card, frame), read

    try:
        _compare_frames(result, card, expected, answer, progress, meter, served)
    finally:
        runner.close()
    return result


def prove_graph(
    graph: onnx.ModelProto,
    card: Card,
    expected: ReferenceOutputs,
    progress: Progress = lambda step, share: None,
) -> ParityResult:
    """What `prove_artifact` would say of an ONNX graph that no file holds yet."""
    from .graph import census, with_scores

    size = text_of(card.size)
    result = ParityResult(
        "graph", "onnxruntime", card.precision, "failed", size, census=census(graph)
    )
    probe, name = with_scores(graph)
    session = open_session(probe)
    labeled = "labels" in card.outputs

    def answer(frame: Image, wanted: bool) -> Answer:
        names = [name] if not labeled else [name, "labels"] if wanted else ["labels"]
        found = dict(zip(names, session.run(names, {"frame": frame}), strict=True))
        return found.get("labels"), found.get(name)

    _compare_frames(result, card, expected, answer, progress)
    return result


def _compare_frames(
    result: ParityResult,
    card: Card,
    expected: ReferenceOutputs,
    answer: Callable[[Image, bool], Answer],
    progress: Progress = lambda step, share: None,
    meter: ErrorMeter | None = None,
    served: Callable[[int], Logits | None] = lambda slot: None,
) -> None:
    """Fill the result in from answers to the reference's frames; `answer` is told whether the
    logits of a frame are wanted. Of a batch every slot has another frame, and a bar of its own.
    `served`: the logits that the last answer's labels of a slot were made of, where that is known;
    the `meter` takes them, or else those of the answer."""
    # An int8 file stays one, whatever its other layers compute in.
    precision = card.precision if card.precision in ROUNDED else result.precision
    bars, reference = find_bars(precision, card.trained), expected.reference
    figures: list[list[Figures]] = [[] for _ in range(card.batch)]  # by slot
    maps: dict[int, LabelMap] = {}
    result.frames = len(reference.frames)
    for places in plan_batches(result.frames, card.batch):
        last = max(places) + 1
        progress(f"frame {last} of {result.frames}", last / result.frames)
        wanted = any(expected.logits[i] is not None for i in places)
        given, scores = answer(reference.frames[places], wanted)
        for slot, i in enumerate(places):
            known, read = expected.logits[i], None
            if scores is not None and (known is not None or given is None):
                read = expected.upsample(scores[slot : slot + 1])
            if given is not None:
                labels = given[slot]
            else:
                assert read is not None
                labels = read.argmax(0).astype(np.uint8)
            error = None if read is None or known is None else _logits_error(read, known)
            truth = reference.labels[i], reference.margins[i]
            figures[slot].append(compare(*truth, labels, bars, reference.names[i], error))
            maps[i] = labels
            if meter is not None and known is not None:
                ours = served(slot)
                ours = read if ours is None else ours
                if ours is not None:
                    meter.add(ours, known, expected.truth[i])
    bound = meter.bound() if meter is not None else None
    result.bound = bound.model_dump() if bound is not None else None
    _fill_figures(result, [each for slot in figures for each in slot], card)
    _fill_miou_change(result, expected, [maps[i] for i in range(result.frames)], card)
    for slot, judged in enumerate(figures):
        faults = find_faults(judged, precision, card.trained)
        place = f"at {result.size}: " if card.sizes else ""
        place += f"slot {slot} of the batch: " if card.batch > 1 else ""
        result.faults += [f"{place}{fault}" for fault in faults]
    result.faults += _check_types(card, result.census)
    change = result.miou_change
    # Labels of random weights are noise: their mIoU moves with every rounding.
    if change is not None and card.trained and abs(change) > bars.miou_change:
        result.faults.append(f"mIoU moves by {change:+.3%}, at most {bars.miou_change:.2%} may")
    result.status = "failed" if result.faults else "passed"


def _fill_figures(result: ParityResult, figures: list[Figures], card: Card) -> None:
    def mean(values: list[float]) -> float:
        return float(np.mean(values))

    result.agreement = mean([f.agreement for f in figures])
    result.band_agreement = mean([f.band_agreement for f in figures])
    result.miou = mean([f.miou for f in figures])
    result.unexplained = max(f.unexplained for f in figures)
    errors = [f.logits_error for f in figures if f.logits_error is not None]
    result.logits_error = max(errors, default=None)
    result.worst_frame = min(figures, key=lambda f: f.agreement).frame
    seen = sorted({i for f in figures for i in f.iou})
    result.iou = {card.classes[i]: mean([f.iou[i] for f in figures if i in f.iou]) for i in seen}


def _fill_miou_change(
    result: ParityResult, expected: ReferenceOutputs, maps: list[NDArray[np.uint8]], card: Card
) -> None:
    """How far the mIoU against real labels moves, where frames have them."""
    pairs = [
        (truth, ours, theirs)
        for truth, ours, theirs in zip(expected.truth, expected.reference.labels, maps, strict=True)
        if truth is not None
    ]
    if not pairs:
        return
    before, after = Confusion(len(card.classes)), Confusion(len(card.classes))
    for truth, ours, theirs in pairs:
        # Ids beyond the classes are unlabeled pixels, whatever number the data set gives them.
        known = np.where(truth < len(card.classes), truth, IGNORE)
        before.update(known, ours)
        after.update(known, theirs)
    change = after.iou() - before.iou()
    # A class that is in no frame has no IoU.
    counted = np.flatnonzero(~np.isnan(change))
    result.iou_change = {card.classes[i]: float(change[i]) for i in counted}
    result.miou_change = float(change[counted].mean()) if len(counted) else None


def _check_types(card: Card, census: dict[str, int]) -> list[str]:
    """A file whose values are not of the precision that it claims, whatever it computes."""
    floats = {k: v for k, v in census.items() if "float" in k or k in ("half", "double")}
    total = sum(floats.values())
    if card.precision in ROUNDED:
        rounded = census.get({"int8": "int8", "fp8": "float8e4m3fn"}[card.precision], 0)
        total += rounded if card.precision == "int8" else 0  # fp8 is among the floats
        share = rounded / total if total else 0.0
        if share >= ROUNDED_SHARE:
            return []
        return [f"the file claims {card.precision}, but only {share:.0%} of its values are"]
    wanted = {"fp32": "float", "fp16": "float16"}.get(card.precision)
    # Positions and other float32 islands of a half-precision graph weigh little.
    allowed = 0.05 if card.precision == "fp16" else 0.0
    if wanted is None or not total or 1 - floats.get(wanted, 0) / total <= allowed:
        return []
    found = ", ".join(f"{v / total:.0%} {k}" for k, v in sorted(floats.items()))
    return [f"the file claims {card.precision}, but its values are {found}"]


def _logits_error(ours: Logits, reference: Logits) -> float:
    """Root mean square difference over that of the reference, without what all classes share: it
    decides no label, and a large bias would hide any error behind it."""
    centered = reference - reference.mean(axis=0)
    return float(
        np.linalg.norm(ours - ours.mean(axis=0) - centered)
        / max(float(np.linalg.norm(centered)), 1e-30)
    )


def find_overflow(
    graph: onnx.ModelProto,
    expected: ReferenceOutputs,
    progress: Progress = lambda step, share: None,
) -> list[str]:
    """Why a float16 graph is too near the end of float16's range on the reference's frames."""
    from .graph import FLOAT16_MAX, HEADROOM, find_batch, with_peaks

    probe, peaks = with_peaks(graph)
    session = open_session(probe)
    names, frames = expected.reference.names, expected.reference.frames
    for places in plan_batches(len(frames), find_batch(graph)):
        number = max(places) + 1
        progress(f"frame {number} of {len(frames)}", number / len(frames))
        sizes = np.array(session.run(list(peaks), {"frame": frames[places]}))
        # NaN is the worst of all: an overflow that has already met another.
        worst = int(np.nanargmax(np.where(np.isnan(sizes), np.inf, sizes)))
        if not sizes[worst] <= FLOAT16_MAX / HEADROOM:
            name = " or ".join(dict.fromkeys(names[i] for i in places))
            return [
                f"{peaks[f'peak_{worst}']} reaches {sizes[worst]:.3g} on {name}, and float16 ends "
                f"at {FLOAT16_MAX:.0f}: {HEADROOM} times less leaves room for other frames. "
                "Export in fp32, or train with weight decay"
            ]
    return []


def summarize(
    results: Sequence[ParityResult], expected: ReferenceOutputs, warnings: Sequence[str]
) -> Proof | None:
    """The card's entry for an artifact's results; None if it could not be run."""
    own = [v for v in results if v.agreement is not None and v.precision != "bf16"]
    if not own:
        return None
    in_bf16 = [v.passed for v in results if v.precision == "bf16"]
    sizes = {v.size for v in results}
    # Sorted, so that the digest does not depend on the order of fields.
    content = json.dumps([asdict(v) for v in results], sort_keys=True)
    return Proof(
        report=hashlib.sha256(content.encode()).hexdigest()[:16],
        passed=all(v.passed for v in own),
        frames=len(expected.logits),
        frames_from=expected.origin,
        frames_of=expected.total,
        warnings=tuple(warnings),
        agreement=min(v.agreement for v in own if v.agreement is not None),
        logits_error=max((v.logits_error for v in own if v.logits_error is not None), default=None),
        bf16=all(in_bf16) if in_bf16 else None,
        # A bound is of one size: that of another would certify what it was not measured on.
        bounds=tuple(ErrorBound(**v.bound) for v in results if v.bound and len(sizes) == 1),
    )


def prove_engine(
    path: Path, card: Card, expected: ReferenceOutputs, census: dict[str, int]
) -> ParityResult:
    """An engine runs where there is a GPU that can load it; elsewhere it stays unproven."""
    from ..runtime.preflight import check

    here = check(path)
    if here.ok:
        return prove_artifact(path, card, expected, "tensorrt", census, device="cuda", prove=False)
    found = _check_types(card, census)
    return ParityResult(
        path.name,
        "tensorrt",
        card.precision,
        "failed" if found else "not run",
        text_of(card.size),
        census=census,
        faults=found,
        why=f"{here.reason}; it is proven on the first machine that loads it",
    )
