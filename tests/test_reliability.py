"""Reliability of confidences: counts, expected calibration error, and what has none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rtseg.api import evaluate
from rtseg.data.classes import CAMVID
from rtseg.errors import UsageError
from rtseg.runtime import Details, Segmenter
from rtseg.train.evaluate import Confusion, Evaluation, build_table
from rtseg.train.reliability import Reliability

SIZE = 100, 200
LABELS = np.zeros(SIZE, np.uint8)


class Certain:
    """Gives class 0 with a confidence by column."""

    def __init__(self, *confidences: int):
        parts = np.repeat(np.array(confidences, np.uint8), SIZE[1] // len(confidences))
        self.confidence = np.broadcast_to(parts, SIZE)

    def details(self, frame: NDArray[np.generic], /) -> Details:
        return Details(LABELS, None, self.confidence)


def truth(*shares: float) -> NDArray[np.uint8]:
    """Class 0 at these shares of the rows of each stretch of columns, else 1."""
    found = np.ones(SIZE, np.uint8)
    width = SIZE[1] // len(shares)
    for i, share in enumerate(shares):
        found[: round(share * SIZE[0]), i * width : (i + 1) * width] = 0
    return found


def run(confidences: tuple[int, ...], shares: tuple[float, ...]) -> Reliability:
    meter = Reliability(Certain(*confidences))
    meter.count(truth(*shares), meter(np.zeros((*SIZE, 3), np.uint8)))
    return meter


def test_calibrated_confidences_have_no_error() -> None:
    meter = run((51, 204), (0.2, 0.8))
    assert [(each.pixels, each.right) for each in meter.bins] == [(10_000, 0.2), (10_000, 0.8)]
    assert meter.ece == pytest.approx(0)


def test_the_error_is_the_mean_gap() -> None:
    meter = run((255, 204), (0.9, 1.0))
    assert meter.ece == pytest.approx((0.1 + 0.2) / 2)


def test_unlabeled_pixels_do_not_count() -> None:
    meter = Reliability(Certain(255))
    labels = truth(1.0)
    labels[:50] = 255
    meter.count(labels, meter(np.zeros((*SIZE, 3), np.uint8)))
    assert sum(each.pixels for each in meter.bins) == SIZE[0] * SIZE[1] // 2


def test_the_diagram_shows_the_gap_in_red() -> None:
    def red(meter: Reliability) -> int:
        return int((meter.draw() == (90, 90, 230)).all(axis=2).sum())

    assert red(run((51, 204), (0.9, 0.1))) > 4 * red(run((51, 204), (0.2, 0.8)))


def test_json_and_table_have_it_only_where_it_was_asked_for() -> None:
    plain = Evaluation(CAMVID, Confusion(len(CAMVID)))
    assert "ece" not in plain.as_dict()
    asked = Evaluation(CAMVID, Confusion(len(CAMVID)), reliability=run((255,), (0.9,)))
    facts: Any = json.loads(asked.to_json())
    assert facts["ece"] == pytest.approx(0.1)
    assert facts["reliability"] == [{"pixels": 20_000, "confidence": 1.0, "right": 0.9}]
    assert "expected calibration error" in build_table(asked).markdown()


class Served(Segmenter):
    """An artifact that is sure of class 0 everywhere."""

    def __init__(self) -> None:
        self.card: Any = SimpleNamespace(classes=CAMVID.names, takes_camera=False)
        self.info: Any = SimpleNamespace(name="openvino", precision="fp32")

    def details(self, frame: NDArray[np.generic]) -> Details:
        return Details(LABELS, None, np.full(SIZE, 204, np.uint8))


class Street(list[Any]):
    classes = CAMVID


def test_an_artifact_is_evaluated_with_its_diagram(tmp_path: Path) -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    data: Any = Street([SimpleNamespace(image=image, label=truth(0.7), name="a")])
    result = evaluate(Served(), data, reliability=tmp_path / "diagram.png")
    assert result.as_dict()["ece"] == pytest.approx(0.1)
    assert result.confusion.pixel_accuracy() == pytest.approx(0.7)
    assert cv2.imread(str(tmp_path / "diagram.png")) is not None


def test_what_gives_no_confidence_is_told(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def details(self, frame: NDArray[np.generic], /) -> Details:
            return Details(LABELS, why="load it otherwise")

    with pytest.raises(UsageError, match="gives no confidence: load it otherwise"):
        Reliability(Silent())(np.zeros((*SIZE, 3), np.uint8))
    from contextlib import contextmanager

    @contextmanager
    def labeler(*_: object, **__: object) -> Any:
        yield (lambda frame: LABELS), ("torch", "fp32")

    monkeypatch.setattr("rtseg.api.open_labeler", labeler)

    class Data:
        classes = CAMVID

    with pytest.raises(UsageError, match="only an artifact that takes pictures has confidences"):
        evaluate("csfcn_nano", Data(), reliability=tmp_path / "x.png")  # type: ignore[arg-type]
