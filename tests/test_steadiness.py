"""Steady labels: what is held, for how long, and what never is."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rtseg.api import evaluate
from rtseg.data.classes import CAMVID
from rtseg.errors import UsageError
from rtseg.runtime import Details, Segmenter
from rtseg.runtime.steadiness import SteadyLabels

FRAME = np.zeros((1, 1, 3), np.uint8)
UNCERTAIN, SURE = 100, 250  # in 255ths; the threshold of these tests is 0.8, 204


class Film:
    """Gives the details of frame after frame."""

    def __init__(self, frames: Sequence[Details]):
        self.frames = iter(frames)

    def details(self, frame: NDArray[np.generic], /) -> Details:
        return next(self.frames)


def one_pixel(ids: Sequence[int], confidence: int, certified: bool = False) -> list[Details]:
    return [
        Details(
            np.full((1, 1), each, np.uint8),
            np.full((1, 1), certified),
            np.full((1, 1), confidence, np.uint8),
        )
        for each in ids
    ]


def play(frames: Sequence[Details], threshold: float = 0.8, hold: int = 2) -> list[int]:
    steady = SteadyLabels(Film(frames), threshold, hold)
    return [int(steady(FRAME)[0, 0]) for _ in frames]


def test_an_uncertain_pixel_that_flickers_is_held() -> None:
    assert play(one_pixel([1, 1, 2, 1, 2, 2, 1], UNCERTAIN)) == [1] * 7


@pytest.mark.parametrize("hold", [1, 2, 5])
def test_a_real_change_shows_at_most_hold_frames_late(hold: int) -> None:
    assert play(one_pixel([1, 1] + [2] * 8, UNCERTAIN), hold=hold) == [1, 1] + [1] * hold + [2] * (
        8 - hold
    )


def test_a_sure_pixel_and_a_certified_one_change_at_once() -> None:
    ids = [1, 1, 2, 1, 2]
    assert play(one_pixel(ids, SURE)) == ids
    assert play(one_pixel(ids, UNCERTAIN, certified=True)) == ids


def test_a_pixel_of_ever_new_classes_is_held_no_longer() -> None:
    assert play(one_pixel([1, 2, 3, 4, 5], UNCERTAIN)) == [1, 1, 1, 4, 4]


def test_nothing_is_held_beside_a_crop_nor_from_before_a_reset() -> None:
    assert play(one_pixel([1, 1, 255, 1], UNCERTAIN)) == [1, 1, 255, 1]
    steady = SteadyLabels(Film(one_pixel([1, 1, 2], UNCERTAIN)))
    assert [int(steady(FRAME)[0, 0]) for _ in range(2)] == [1, 1]
    steady.reset()
    assert steady(FRAME)[0, 0] == 2


def test_every_mask_is_of_the_newest_frame() -> None:
    """Over random films: certified and sure pixels are the network's of this frame, and no pixel
    differs from the network's for more than `hold` frames in a row."""
    random, hold, shape = np.random.default_rng(0), 3, (20, 30)
    films = [
        Details(
            random.integers(0, 3, shape, dtype=np.uint8),
            random.random(shape) < 0.3,
            random.integers(0, 256, shape, dtype=np.uint8),
        )
        for _ in range(40)
    ]
    steady = SteadyLabels(Film(films), 0.8, hold)
    late, held = np.zeros(shape, int), 0
    for film in films:
        shown = steady.details(FRAME)
        differs = shown.labels != film.labels
        assert not differs[film.certified].any()
        assert film.confidence is not None
        assert shown.confidence is not None
        assert not differs[film.confidence >= 204].any()
        assert np.array_equal(shown.confidence == 0, differs | (film.confidence == 0))
        late = (late + 1) * differs
        assert late.max() <= hold
        held += int(differs.sum())
    assert held > 100


def test_labels_are_the_callers_own() -> None:
    steady = SteadyLabels(Film(one_pixel([1, 1, 2, 2], UNCERTAIN)))
    for _ in range(3):
        labels = steady(FRAME)
        assert labels[0, 0] == 1
        labels[:] = 9


def test_another_size_begins_anew() -> None:
    other = Details(np.full((2, 2), 3, np.uint8), None, np.full((2, 2), UNCERTAIN, np.uint8))
    steady = SteadyLabels(Film([*one_pixel([1, 1], UNCERTAIN), other]))
    assert [steady(FRAME).shape for _ in range(3)] == [(1, 1), (1, 1), (2, 2)]


def test_what_cannot_be_held_is_told() -> None:
    with pytest.raises(UsageError, match="no confidence: its card"):
        SteadyLabels(Film([Details(np.zeros((1, 1), np.uint8), why="its card bounds no error")]))(
            FRAME
        )
    with pytest.raises(UsageError, match="threshold"):
        SteadyLabels(Film([]), threshold=80)
    with pytest.raises(UsageError, match="1 to 254"):
        SteadyLabels(Film([]), hold=0)


class Served(Segmenter):
    """An artifact that gives a film's labels, plainly or in detail."""

    def __init__(self, frames: Sequence[Details]):
        self.film = Film(frames)
        self.card: Any = SimpleNamespace(classes=CAMVID.names, takes_camera=False)
        self.info: Any = SimpleNamespace(name="openvino", precision="int8")

    def details(self, frame: NDArray[np.generic]) -> Details:
        return self.film.details(frame)

    def label_picture(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.details(picture).labels


class Sequences(list[Any]):
    """Two of them, of two frames each; all is road."""

    classes = CAMVID

    def __init__(self) -> None:
        label = np.full((1, 1), 3, np.uint8)
        names = ("a_1", "a_2", "b_1", "b_2")
        super().__init__(SimpleNamespace(image=FRAME, label=label, name=name) for name in names)

    def name(self, index: int) -> str:
        return str(self[index].name)


def test_an_artifact_is_evaluated_with_labels_held_steady() -> None:
    data: Any = Sequences()
    frames = one_pixel([3, 4, 4, 3], UNCERTAIN)
    plain = evaluate(Served(frames), data, temporal=True)
    assert plain.as_dict()["flicker"] == 1
    assert plain.confusion.pixel_accuracy() == 0.5
    steady = evaluate(Served(frames), data, temporal=True, steady=True)
    assert steady.as_dict()["flicker"] == 0
    # The second sequence begins anew with 4, not with the 3 of the first; 4 is held.
    assert steady.confusion.matrix[3].tolist()[3:5] == [2, 2]
