"""Frames of another aspect: padded, never squashed, and labels back where they belong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtseg.data.classes import CAMVID
from rtseg.data.datasets import Sample
from rtseg.data.letterbox import check_fit, find_place, fit_frame, fit_labels, restore_labels
from rtseg.errors import UsageError
from rtseg.runtime import Segmenter
from speed_parts import CARD

GRAY = (0.2, 0.4, 0.6)  # RGB


@pytest.mark.parametrize(
    ("frame", "model", "fit", "size"),
    [
        ((360, 480), (360, 480), "letterbox", (360, 480)),
        ((720, 960), (360, 480), "letterbox", (360, 480)),
        ((100, 200), (100, 100), "letterbox", (50, 100)),
        ((200, 100), (100, 100), "letterbox", (100, 50)),
        ((100, 200), (100, 100), "stretch", (100, 100)),
        ((100, 110), (100, 100), "letterbox", (100, 100)),  # a tenth is stretched
        ((100, 111), (100, 100), "letterbox", (90, 100)),
        ((1, 5000), (64, 64), "letterbox", (1, 64)),
        ((100, 200), (100, 100), "crop", (100, 100)),
    ],
)
def test_how_much_of_the_input_is_the_frame(frame: Any, model: Any, fit: Any, size: Any) -> None:
    rows, columns = find_place(frame, model, fit)
    assert (rows.start, columns.start) == (0, 0)
    assert (rows.stop, columns.stop) == size


def test_the_frame_lies_in_the_middle_and_its_labels_come_back() -> None:
    frame = np.full((2, 8, 3), 200, np.uint8)
    assert find_place((2, 8), (5, 4), "letterbox_center") == (slice(2, 3), slice(0, 4))
    fitted = fit_frame(frame, (5, 4), "letterbox_center", (1, 2, 3))
    assert fitted[:, 0].tolist() == [[3, 2, 1]] * 2 + [[200] * 3] + [[3, 2, 1]] * 2  # BGR
    labels = np.arange(20, dtype=np.uint8).reshape(5, 4)
    back = restore_labels(labels, (2, 8), "letterbox_center")
    assert back.tolist() == [[8, 8, 9, 9, 10, 10, 11, 11]] * 2
    high = restore_labels(labels.T.copy(), (8, 2), "letterbox_center")
    assert high.tolist() == np.transpose(back).tolist()
    assert fit_labels(np.full((2, 8), 5, np.uint8), (5, 4), "letterbox_center")[:, 0].tolist() == [
        *(255, 255, 5, 255, 255)
    ]


def test_the_rest_is_black_and_the_frame_is_whole() -> None:
    frame = np.zeros((2, 4, 3), np.uint8)
    frame[0], frame[1] = 200, 100
    fitted = fit_frame(frame, (4, 4), "letterbox")
    assert fitted[:, 0].tolist() == [[200] * 3, [100] * 3, [0] * 3, [0] * 3]
    assert fit_frame(frame, (2, 4), "letterbox") is frame


def test_labels_come_back_without_the_rest() -> None:
    labels = np.array([[1, 1, 2, 2], [3, 3, 4, 4], [9, 9, 9, 9], [9, 9, 9, 9]], np.uint8)
    assert restore_labels(labels, (2, 4), "letterbox").tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    doubled = restore_labels(labels, (4, 8), "letterbox")
    assert doubled.tolist() == np.kron([[1, 1, 2, 2], [3, 3, 4, 4]], np.ones((2, 2))).tolist()
    assert np.shares_memory(restore_labels(labels, (4, 4), "letterbox"), labels)


def test_true_labels_go_the_same_way_and_the_rest_does_not_count() -> None:
    truth = np.array([[1, 2, 3, 4]], np.uint8)
    assert fit_labels(truth, (3, 4), "letterbox").tolist() == [[1, 2, 3, 4], [255] * 4, [255] * 4]


def test_a_crop_sees_the_middle_and_leaves_the_rest_unlabeled() -> None:
    wide = np.arange(6, dtype=np.uint8).reshape(1, 6).repeat(2, axis=0)
    assert fit_labels(wide, (2, 2), "crop").tolist() == [[2, 3], [2, 3]]
    assert (
        restore_labels(np.array([[7, 8], [7, 8]], np.uint8), (2, 6), "crop").tolist()
        == [[255, 255, 7, 8, 255, 255]] * 2
    )
    high = restore_labels(np.full((2, 2), 3, np.uint8), (8, 4), "crop")
    assert high.tolist() == [[255] * 4] * 2 + [[3] * 4] * 4 + [[255] * 4] * 2
    assert (fit_frame(np.ones((9, 1, 3), np.uint8), (64, 64), "crop") == 1).all()
    near = np.full((10, 10), 3, np.uint8)  # a tenth is stretched
    assert (restore_labels(near, (10, 11), "crop") == 3).all()


def test_a_fit_that_is_none_is_told() -> None:
    with pytest.raises(UsageError, match="stretch, letterbox, letterbox_center, crop, not 'zoom'"):
        check_fit("zoom")


@pytest.mark.parametrize(
    ("fit", "color", "says"),
    [
        ("letterbox", (114, 114), "whole number 0..255"),
        ("letterbox_center", (0, 0, 256), "whole number 0..255"),
        ("letterbox", (0.5, 0.5, 0.5), "whole number 0..255"),
        ("stretch", (114, 114, 114), "nothing does with fit stretch"),
        ("crop", (0, 0, 0), "nothing does with fit crop"),
    ],
)
def test_a_pad_color_that_is_none_is_told(fit: str, color: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_fit(fit, color)
    with pytest.raises(ValueError, match=r"pad.color"):
        CARD.model_validate(CARD.model_dump() | {"fit": fit, "pad_color": color})


class Red:
    """A backend whose labels are the red channel; it writes all answers to one buffer."""

    info = None

    def __init__(self, fit: str):
        self.card = CARD.model_copy(update={"size": (60, 60), "fit": fit})
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
    padded = (backend.seen[0] != 7).any()
    assert padded == (shape != (60, 60))


def test_evaluation_leaves_out_what_a_crop_does_not_see_and_says_so() -> None:
    from rtseg.train.evaluate import build_table, evaluate_frames

    class Frames:
        classes = CAMVID

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            truth = np.full((30, 60), 4, np.uint8)
            truth[:, :15] = 9  # what a crop to a square never sees
            return Sample(np.full((30, 60, 3), 4, np.uint8), truth, "one")

    result = evaluate_frames(Segmenter(Red("crop")), Frames())  # type: ignore[arg-type]
    assert (result.confusion.miou(), result.unseen) == (1.0, 0.5)
    assert result.as_dict()["unseen"] == 0.5
    assert build_table(result).rows[-1] == ("not seen (cropped away)", "", "", "50.00")
    whole = evaluate_frames(Segmenter(Red("letterbox")), Frames())  # type: ignore[arg-type]
    assert (whole.confusion.pixel_accuracy(), whole.unseen) == (0.75, 0.0)


def test_a_frame_of_the_models_size_is_not_copied() -> None:
    frame = np.zeros((60, 60, 3), np.uint8)
    backend = Red("letterbox")
    Segmenter(backend)(frame)  # type: ignore[arg-type]
    assert np.shares_memory(backend.seen[0], frame)


@pytest.mark.parametrize("flip", [False, True])
def test_a_network_is_evaluated_in_the_same_box(flip: bool) -> None:
    """Its scores here are the colors that it sees, so that labels show where a pixel came from."""
    torch = pytest.importorskip("torch")
    from rtseg.models.network import NetworkInfo
    from rtseg.train.predictor import Predictor

    class Colors(torch.nn.Conv2d):  # type: ignore[misc, name-defined]
        info = NetworkInfo("colors", 3, mean=GRAY, std=(1, 1, 1), multiple=1)

        def __init__(self) -> None:
            super().__init__(3, 3, 1, bias=False)
            self.weight.data = torch.eye(3)[:, :, None, None]

    frame = np.zeros((4, 8, 3), np.uint8)
    frame[:, :4, 2], frame[:, 4:, 0] = 255, 255  # red left, blue right; BGR
    labels = Predictor(Colors(), size=(8, 8), flip=flip)(frame)  # type: ignore[arg-type]
    assert labels.tolist() == [[0] * 4 + [2] * 4] * 4
    cropped = Predictor(Colors(), size=(8, 8), flip=flip, aspect="crop")(frame)  # type: ignore[arg-type]
    assert cropped.tolist() == [[255] * 2 + [0] * 2 + [2] * 2 + [255] * 2] * 4
