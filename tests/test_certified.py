"""Certified labels: the bitmap is that of its definition, and a file's bound holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labels_plain import KINDS, Logits, corners, random, regions
from rtseg.data.scenes import scenes
from rtseg.export import export
from rtseg.export.error_bound import ErrorMeter, make_table
from rtseg.export.reference import ProofFrames, run_reference
from rtseg.models.loading import Model
from rtseg.runtime import load
from rtseg.runtime.argmax import Axis, Certificate, LabelMaker
from rtseg.runtime.artifact import Proof
from rtseg.runtime.backends.backend import choose, choose_certifying
from rtseg.runtime.bounds import ErrorBound
from rtseg.runtime.drive.worker_process import load_artifacts
from rtseg.runtime.segmenter import Segmenter

TABLE = np.arange(10, 251, 30, dtype=np.uint8)


def by_definition(logits: Logits, size: tuple[int, int], aligned: bool) -> tuple[Any, Any]:
    """(leads of the first class over the second (H, W) in float64, the largest size of a logit at
    the corners that each pixel reads)."""
    axes = [
        Axis(coarse, fine, aligned) for coarse, fine in zip(logits.shape[2:], size, strict=True)
    ]
    (top, bottom), (left, right) = map(corners, axes)
    full, largest = 0.0, np.zeros(size)
    for rows, down in ((top, axes[0].near), (bottom, axes[0].far)):
        for columns, across in ((left, axes[1].near), (right, axes[1].far)):
            corner = logits[0].astype(np.float64)[:, rows][:, :, columns]
            full = full + corner * down.astype(np.float64)[:, None] * across.astype(np.float64)
            largest = np.maximum(largest, np.abs(corner).max(axis=0))
    second, first = np.sort(full, axis=0)[-2:]
    return first - second, largest


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_the_bitmap_is_that_of_its_definition(make: Any, aligned: bool) -> None:
    upsampling: Any = "bilinear_aligned" if aligned else "bilinear"
    for classes, factor in ((2, 3), (11, 8), (19, 16)):
        logits = make((1, classes, 9, 11))
        size = 9 * factor, 11 * factor
        lead, largest = by_definition(logits, size, aligned)
        maker = LabelMaker(logits.shape, size, upsampling)
        labels = maker(logits).copy()
        for bound in (0.0, float(np.quantile(lead, 0.3)), float(np.quantile(lead, 0.9))):
            maker.certify(Certificate(bound))
            assert (maker(logits) == labels).all()
            certified = maker.certified[0] == 1
            assert not (certified & (lead <= bound)).any()
            # What rounds: 16 u of a class and of its rival, and 16 u of the bound.
            near = 2**-19 * (largest + bound) + 1e-34
            assert certified[lead > bound + near].all()


def test_threads_and_confidence_give_the_same_bitmap() -> None:
    logits = regions((1, 11, 30, 41))
    size, found = (240, 328), []
    for threads, table in ((1, None), (3, None), (1, TABLE), (3, TABLE)):
        maker = LabelMaker(logits.shape, size, "bilinear", threads)
        maker.certify(Certificate(0.5, table, step=0.25))
        maker(logits)
        found.append(maker.certified.copy())
        maker.close()
    assert all((each == found[0]).all() for each in found)
    assert 0.5 < found[0].mean() < 1


@pytest.mark.parametrize("bound", [0.1, 5.0])
def test_confidence_is_the_tables(bound: float) -> None:
    logits = regions((1, 7, 9, 11))
    lead, _ = by_definition(logits, (72, 88), False)
    maker = LabelMaker(logits.shape, (72, 88), "bilinear")
    maker.certify(Certificate(bound, TABLE, step=0.5))
    maker(logits)
    expected = TABLE[np.minimum(lead / 0.5, len(TABLE) - 1).astype(int)]
    # At the edge of two entries rounding decides.
    edge = np.abs(lead / 0.5 - np.round(lead / 0.5)) < 1e-3
    assert (maker.confidence[0] == expected)[~edge].all()
    assert len(np.unique(maker.confidence)) > 4


def test_shuffled_logits_are_certified_pixel_by_pixel() -> None:
    logits = random((1, 5 * 16, 6, 7))
    full = torch.pixel_shuffle(torch.from_numpy(logits), 4)[0].double().numpy()
    second, first = np.sort(full, axis=0)[-2:]
    maker = LabelMaker(logits.shape, (24, 28), "shuffle", threads=2)
    labels = maker(logits).copy()
    maker.certify(Certificate(0.4, TABLE, step=0.5))
    assert (maker(logits) == labels).all()
    assert ((maker.certified[0] == 1) == (first - second > 0.4)).all()
    entries = np.minimum((first - second) / 0.5, len(TABLE) - 1).astype(int)
    assert (maker.confidence[0] == TABLE[entries]).all()
    maker.close()


def test_no_number_certifies_nothing() -> None:
    logits = regions((1, 3, 4, 5))
    logits[:, 0] = np.nan
    maker = LabelMaker(logits.shape, (32, 40), "bilinear")
    maker.certify(Certificate(0.1, TABLE))
    maker(logits)
    assert maker.certified.max() == 0


# The bound.


def test_the_bound_leaves_out_what_all_classes_share() -> None:
    float32 = random((3, 8, 9))
    meter = ErrorMeter("cpu")
    meter.add(float32 + 100, float32)
    first = meter.bound()
    assert first is not None
    assert first.observed < 1e-4
    moved = float32.copy()
    moved[1, 3, 4] += 0.5
    meter.add(moved, float32)
    bound = meter.bound()
    assert bound is not None
    assert bound.observed == pytest.approx(0.25)
    assert (bound.frames, bound.pixels, bound.risk) == (2, 144, pytest.approx(1 / 3))


def test_above_the_bound_every_lead_keeps_half() -> None:
    float32 = random((5, 40, 50))
    logits = float32 + 0.4 * random((5, 40, 50))[:, ::-1]
    meter = ErrorMeter("cpu")
    meter.add(float32, float32)
    assert meter.halved == 0.0
    meter.add(logits, float32)
    bound = meter.bound()
    assert bound is not None
    leads = []
    for ours, theirs in zip(logits.reshape(5, -1).T, float32.reshape(5, -1).T, strict=True):
        first = int(ours.argmax())
        lead = ours[first] - np.delete(ours, first).max()
        left = theirs[first] - np.delete(theirs, first).max()
        if left < lead / 2:
            leads.append(lead)
    assert bound.lead == bound.halved == pytest.approx(max(leads))
    assert 0 < bound.lead <= 4 * bound.observed


def test_logits_that_are_no_numbers_have_no_bound() -> None:
    float32 = random((3, 8, 9))
    meter = ErrorMeter("cpu")
    assert meter.bound() is None
    for broken in (np.nan, np.inf):
        logits = float32.copy()
        logits[1, 3, 4] = broken
        meter.add(logits, float32)
        meter.add(float32, float32)
        assert meter.bound() is None


def test_a_table_never_falls_and_follows_the_shares() -> None:
    rng = np.random.default_rng(0)
    lead = rng.uniform(0, 8, 200_000).astype(np.float32)
    right = rng.random(lead.size) < np.minimum(0.5 + lead / 8, 0.98)
    table = make_table([(lead, right)], "truth")
    assert table is not None
    assert (np.diff(table.shares) >= 0).all()
    middle = (np.arange(len(table.shares) - 1) + 0.5) * table.step
    expected = np.minimum(0.5 + middle / 8, 0.98)
    assert np.abs(table.table[:-1] / 255 - expected).max() < 0.04
    assert table.shares[-1] == pytest.approx(0.98 * 255, abs=3)


# An artifact.

SIZE = 96, 128


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino", reason="needs OpenVINO, whose bf16 differs from float32")
    folder = tmp_path_factory.mktemp("certified")
    frames = [(f"scene {i}", each) for i, each in enumerate(scenes(6, SIZE, seed=20))]
    (made,) = export(nano, SIZE, "openvino", "fp32", frames=frames, out=folder)
    return made.path


def with_proof(segment: Segmenter, **changes: Any) -> Segmenter:
    assert segment.card.proof is not None
    segment.card = segment.card.model_copy(
        update={"proof": segment.card.proof.model_copy(update=changes)}
    )
    return segment


def test_certified_labels_are_those_of_float32(artifact: Path, nano: Model) -> None:
    frames = [(f"scene {i}", each) for i, each in enumerate(scenes(4, SIZE, seed=70))]
    float32 = run_reference(nano.network, ProofFrames(frames), SIZE).reference.labels
    with load(artifact) as segment:
        for (_, frame), expected in zip(frames, float32, strict=True):
            details = segment.details(frame)
            assert details.why == ""
            assert details.certified is not None
            assert details.confidence is not None
            assert (details.labels == segment(frame)).all()
            assert (details.labels == expected)[details.certified].all()
            assert details.certified.mean() > 0.9
            assert details.bound is not None
            assert details.certified.mean() == pytest.approx(details.bound.share, abs=0.1)
            # They are the caller's own.
            before = details.certified.copy()
            segment.details(255 - frame)
            assert (details.certified == before).all()


def test_each_arithmetic_has_its_bound(artifact: Path) -> None:
    with load(artifact, precision="fp32") as segment:
        bound = segment.bound
        assert bound is not None
        assert bound.arithmetic == "openvino cpu fp32"
        assert bound.frames == 6
        assert bound.confidence is not None
        assert bound.confidence.against == "float32"
        sure = segment.details(scenes(1, SIZE)[0]).certified_share
    with load(artifact, precision="fp32") as segment:
        assert bound.halved is not None
        assert bound.lead == bound.halved <= 4 * bound.observed
        # Of a version that measured the error alone.
        wide = bound.model_copy(update={"observed": 2.0, "halved": None})
        share = with_proof(segment, bounds=(wide,)).details(scenes(1, SIZE)[0]).certified_share
        assert share is not None
        assert sure is not None
        assert share < sure - 0.2


def test_a_file_is_certified_where_its_error_is_known(nano: Model, tmp_path: Path) -> None:
    """Its proof runs ONNX Runtime, while the fastest that loads it here may be OpenVINO."""
    frames = [(f"scene {i}", each) for i, each in enumerate(scenes(2, SIZE, seed=20))]
    (made,) = export(nano, SIZE, "onnx", "fp32", frames=frames, out=tmp_path)
    assert choose(made.path, None, None) == "openvino"
    assert choose_certifying(made.path, "openvino", None) == "openvino"  # asked for
    for segment in load_artifacts([str(made.path)], None, None, certify=True):
        with segment:
            assert segment.info.name == "onnxruntime"
            assert segment.details(scenes(1, SIZE)[0]).certified is not None


def test_details_say_why_there_are_none(artifact: Path) -> None:
    frame = scenes(1, SIZE)[0]
    with load(artifact, argmax="graph") as segment:
        details = segment.details(frame)
        assert (details.certified, details.confidence, details.bound) == (None, None, None)
        assert details.labels.shape == SIZE
        assert 'argmax="runtime"' in details.why
        assert "export it again" in with_proof(segment, bounds=()).details(frame).why
    with load(artifact, precision="fp32") as segment:
        (other,) = (b for b in segment.card.proof.bounds if b.arithmetic.endswith("fp32"))  # type: ignore[union-attr]
        foreign = other.model_copy(update={"arithmetic": "tensorrt gpu fp16"})
        why = with_proof(segment, bounds=(foreign,)).details(frame).why
        assert "tensorrt gpu fp16" in why
        assert "openvino cpu fp32" in why


def test_nothing_is_certified_beside_a_crop(artifact: Path) -> None:
    with load(artifact) as segment:
        segment.card = segment.card.model_copy(update={"fit": "crop"})
        details = segment.details(scenes(1, (96, 300))[0])
        assert details.certified is not None
        assert details.confidence is not None
        beside = details.labels == 255
        assert beside.any()
        assert not details.certified[beside].any()
        assert details.confidence[beside].max() == 0


def test_a_card_without_bounds_still_reads() -> None:
    proof = Proof(report="x", passed=True, frames=3, agreement=1.0)
    assert proof.bounds == ()
    old = proof.model_dump(exclude={"bounds"})
    assert Proof.model_validate(old) == proof


@pytest.mark.parametrize(
    "changes",
    [
        {"observed": -1.0}, {"observed": float("nan")}, {"frames": 0}, {"risk": 2.0},
        {"confidence": {"against": "truth", "step": 0.0, "shares": [1], "pixels": 1}},
        {"confidence": {"against": "truth", "step": 1.0, "shares": [], "pixels": 1}},
        {"confidence": {"against": "truth", "step": 1.0, "shares": [256], "pixels": 1}},
    ],
)  # fmt: skip
def test_bounds_that_cannot_be_are_refused(changes: dict[str, Any]) -> None:
    sound = {"arithmetic": "a", "observed": 0.1, "frames": 1, "pixels": 1, "risk": 0.5, "share": 1}
    ErrorBound.model_validate(sound)
    with pytest.raises(ValueError, match="validation error"):
        ErrorBound.model_validate(sound | changes)
