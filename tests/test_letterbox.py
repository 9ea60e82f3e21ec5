"""Frames of another aspect: between bars, never squashed, and labels back where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtseg.data.letterbox import Box, fit_frame, fit_labels, place_frame, restore_labels
from rtseg.runtime import Segmenter
from speed_parts import CARD

GRAY = (0.2, 0.4, 0.6)  # RGB


@pytest.mark.parametrize(
    ("frame", "model", "fit", "box"),
    [
        ((360, 480), (360, 480), "letterbox", Box(0, 0, 360, 480)),
        ((720, 960), (360, 480), "letterbox", Box(0, 0, 360, 480)),
        ((100, 200), (100, 100), "letterbox", Box(25, 0, 50, 100)),
        ((200, 100), (100, 100), "letterbox", Box(0, 25, 100, 50)),
        ((100, 200), (100, 100), "stretch", Box(0, 0, 100, 100)),
        ((100, 110), (100, 100), "letterbox", Box(0, 0, 100, 100)),  # a tenth is stretched
        ((100, 111), (100, 100), "letterbox", Box(5, 0, 90, 100)),
        ((1, 5000), (64, 64), "letterbox", Box(31, 0, 1, 64)),
    ],
)
def test_where_a_frame_lies(frame: Any, model: Any, fit: Any, box: Box) -> None:
    assert place_frame(frame, model, fit) == box


def test_bars_are_of_the_mean_color_and_the_frame_is_whole() -> None:
    frame = np.zeros((2, 4, 3), np.uint8)
    frame[0], frame[1] = 200, 100
    fitted = fit_frame(frame, (4, 4), "letterbox", GRAY)
    assert fitted[:, 0].tolist() == [[153, 102, 51], [200] * 3, [100] * 3, [153, 102, 51]]  # BGR
    assert fit_frame(frame, (2, 4), "letterbox", GRAY) is frame


def test_labels_come_back_without_the_bars() -> None:
    labels = np.array([[9, 9, 9, 9], [1, 1, 2, 2], [3, 3, 4, 4], [9, 9, 9, 9]], np.uint8)
    assert restore_labels(labels, (2, 4), "letterbox").tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    doubled = restore_labels(labels, (4, 8), "letterbox")
    assert doubled.tolist() == np.kron([[1, 1, 2, 2], [3, 3, 4, 4]], np.ones((2, 2))).tolist()
    assert restore_labels(labels, (4, 4), "letterbox") is labels


def test_true_labels_go_the_same_way_and_bars_do_not_count() -> None:
    truth = np.array([[1, 2, 3, 4]], np.uint8)
    assert fit_labels(truth, (3, 4), "letterbox").tolist() == [[255] * 4, [1, 2, 3, 4], [255] * 4]


class Red:
    """A backend whose labels are the red channel; it writes all answers to one buffer."""

    info = None

    def __init__(self, fit: str):
        self.card = CARD.model_copy(update={"size": (60, 60), "fit": fit, "mean": GRAY})
        self.buffer = np.zeros((1, 60, 60), np.uint8)
        self.seen: list[np.ndarray[Any, Any]] = []

    def __call__(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.seen.append(image)
        self.buffer[:] = image[..., 2]
        return self.buffer

    def close(self) -> None: ...


@pytest.mark.parametrize("shape", [(30, 60), (60, 30), (60, 60), (120, 60), (45, 60)])
def test_a_segmenter_gives_labels_of_the_frame_and_of_nothing_else(shape: tuple[int, int]) -> None:
    frame = np.full((*shape, 3), 7, np.uint8)
    backend = Red("letterbox")
    labels = Segmenter(backend)(frame)  # type: ignore[arg-type]
    assert labels.shape == shape
    assert set(np.unique(labels)) == {7}
    backend.buffer[:] = 0  # the caller's labels are not the backend's
    assert set(np.unique(labels)) == {7}
    bars = (backend.seen[0] != 7).any()
    assert bars == (shape != (60, 60))


def test_a_frame_of_the_models_size_is_not_copied() -> None:
    frame = np.zeros((60, 60, 3), np.uint8)
    backend = Red("letterbox")
    Segmenter(backend)(frame)  # type: ignore[arg-type]
    assert np.shares_memory(backend.seen[0], frame)
