"""Steady labels in a drive, and along the clips of `predict` and `demo`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from rtseg.data.frames import Frame, split_name
from rtseg.demo.clip_labels import ClipLabels
from rtseg.errors import UsageError
from rtseg.runtime import Details, Drive, Result
from rtseg.runtime.drive.agreement import compare_labels
from rtseg.runtime.drive.clock import DriveLimits
from rtseg.runtime.drive.continuous_proof import ContinuousProof
from rtseg.runtime.drive.engine import Answer
from rtseg.runtime.drive.health import assess_health
from rtseg.runtime.drive.messages import StatusKind
from rtseg.runtime.drive.picture_faults import read_limits
from rtseg.runtime.drive.steady_masks import SteadyMasks
from rtseg.runtime.sinks.black_box import BlackBox
from simulated import SIZE, SimulatedClock, SimulatedEngine, Simulation

UNCERTAIN, MS = 100, 1_000_000
LEFT = np.zeros(SIZE, bool)
LEFT[:, : SIZE[1] // 2] = True
Film = Sequence[int]  # the class that each frame in turn is all of


class Screen(SimulatedEngine):
    """Answers with a film's classes, certified in the left half, and sure of nothing."""

    film: list[int]
    told = True

    def take(self) -> Answer | None:
        answer = super().take()
        if answer is None or answer.labels is None:
            return answer
        labels = np.full(SIZE, self.film.pop(0), np.uint8)
        if not self.told:
            return replace(answer, labels=labels, why="the graph makes its labels")
        sure = np.full(SIZE, UNCERTAIN, np.uint8)
        return replace(answer, labels=labels, certified=LEFT, confidence=sure)


def play(film: Film, certify: bool = False, plan: list[str] | None = None, **limits: Any) -> Any:
    """A simulated drive at 20 Hz whose engines answer with the film, one after the other."""
    left = list(film)

    def start(clock: SimulatedClock) -> list[Callable[[], SimulatedEngine]]:
        def make() -> SimulatedEngine:
            engine = Screen(clock, plan=plan)
            engine.film = left
            return engine

        return [make]

    drive = Simulation(start, **limits)
    drive.loop.steady = SteadyMasks(drive.loop.limits, certify)
    return drive


def run(drive: Any, frames: int) -> list[tuple[int, int]]:
    """The class of the left half and of the right one, frame after frame."""
    drive.camera(0.05, 0.0, 0.05 * frames)
    drive.run(0.05 * frames + 0.02)
    masks = [result.labels for _, result in drive.results]
    assert all(mask[LEFT].min() == mask[LEFT].max() for mask in masks)
    return [(int(mask[0, 0]), int(mask[0, -1])) for mask in masks]


def test_uncertain_pixels_are_held_and_certified_ones_never() -> None:
    drive = play([1, 2, 1, 2, 2, 2])
    assert run(drive, 6) == [(1, 1), (2, 1), (1, 1), (2, 1), (2, 1), (2, 2)]
    results = [result for _, result in drive.results]
    assert [int(r.network[0, -1]) for r in results] == [1, 2, 1, 2, 2, 2]
    assert all(r.certified is None and r.confidence is None for r in results)
    summary = drive.loop.steady.summary()
    assert (summary.masks, summary.share) == (6, pytest.approx(3 / 12, abs=1e-6))
    assert str(summary) == "25.00% of the pixels of 6 masks"


def test_maps_stay_where_they_were_asked_for() -> None:
    drive = play([1, 2], certify=True)
    run(drive, 2)
    last = drive.results[-1][1]
    assert (last.certified == LEFT).all()
    assert last.confidence[0].tolist() == [UNCERTAIN] * 3 + [0] * 3


@pytest.mark.parametrize("fate", ["error", "hang", "die"])
def test_a_frame_that_went_wrong_ends_what_is_held(fate: str) -> None:
    """The mask behind it is the network's: nothing of the one before it is shown."""
    drive = play([1, *[2] * 100], plan=["", fate])
    run(drive, 60)
    before, after = drive.results[0][1], drive.results[1][1]
    assert after.frame_id > before.frame_id + 1
    assert before.labels[0, -1] == 1
    assert after.labels[0, -1] == 2


@pytest.mark.parametrize("trouble", ["silence", "late", "busy", "frozen"])
def test_a_gap_ends_what_is_held(trouble: str) -> None:
    drive = play([1, 2, 2], max_age_ms=400.0)
    loop = drive.loop
    drive.camera(0.05, 0.0, 0.05)
    drive.run(0.04)
    if trouble == "silence":
        drive.camera(0.05, 1.0, 1.05)  # the camera is overdue meanwhile
        drive.run(1.04)
        assert drive.statuses
    else:
        kinds = {"late": "LATE", "busy": "LATE", "frozen": "STALE"}
        loop._tell(StatusKind(kinds[trouble]), trouble, "it is")
        drive.camera(0.05, 0.05, 0.10)
        drive.run(0.09)
    assert [int(result.labels[0, -1]) for _, result in drive.results] == [1, 2]


def test_no_class_is_older_than_max_age() -> None:
    """At 20 Hz and 80 ms, what a pixel shows may be one frame old, and not two."""
    assert run(play([1, 2, 2, 2], max_age_ms=80.0), 4) == [(1, 1), (2, 1), (2, 2), (2, 2)]
    assert run(play([1, 2, 2, 2], max_age_ms=40.0), 4) == [(1, 1), (2, 2), (2, 2), (2, 2)]


def answer_of(labels: int) -> Answer:
    sure = np.full(SIZE, UNCERTAIN, np.uint8)
    return Answer(1, np.full(SIZE, labels, np.uint8), certified=LEFT, confidence=sure)


def shown(masks: SteadyMasks, answer: Answer, maker: Any, at_ms: int, doubt: bool = False) -> int:
    held = masks.hold(answer, maker, at_ms * MS, doubt, at_ms * MS)
    assert held.labels is not None
    return int(held.labels[0, -1])


def test_another_engine_or_level_or_a_doubtful_picture_begins_anew() -> None:
    masks, engine, other = SteadyMasks(DriveLimits(), False), object(), object()
    assert shown(masks, answer_of(1), (engine, 0), 0) == 1
    assert shown(masks, answer_of(2), (engine, 0), 50) == 1
    assert shown(masks, answer_of(2), (engine, 1), 100) == 2
    assert shown(masks, answer_of(3), (other, 1), 150) == 3
    assert shown(masks, answer_of(4), (other, 1), 200, doubt=True) == 4
    # Nor is anything of the doubtful picture shown after it.
    assert shown(masks, answer_of(5), (other, 1), 250) == 5


def test_cameras_do_not_share_what_they_hold() -> None:
    def segment(image: NDArray[np.uint8]) -> Details:
        labels = image[:, :, 0].copy()
        sure = np.full(labels.shape, UNCERTAIN, np.uint8)
        return Details(labels, np.zeros(labels.shape, bool), sure)

    found: dict[str, list[int]] = {"a": [], "b": []}

    def sink(message: Any) -> None:
        if isinstance(message, Result):
            found[message.camera].append(int(message.labels[0, 0]))

    sources: Any = {
        name: [
            Frame(np.full((64, 96, 3), value, np.uint8), index, time.monotonic_ns())
            for index, value in enumerate(film)
        ]
        for name, film in (("a", [1, 2, 2, 2]), ("b", [5, 5, 6, 6]))
    }
    pictures = read_limits(["off"])  # which are of one color
    Drive(sources, segment, [sink], every_frame=True, steady=True, pictures=pictures).run(60)
    assert found == {"a": [1, 1, 1, 2], "b": [5, 5, 5, 5]}


def test_an_artifact_without_confidence_is_told_and_its_masks_go_on() -> None:
    drive = play([1, 2, 2])
    Screen.told = False
    try:
        assert run(drive, 3) == [(1, 1), (2, 2), (2, 2)]
    finally:
        Screen.told = True
    reasons = assess_health(drive.loop).reasons
    assert "labels are not held steady: the graph makes its labels" in reasons
    assert "nothing: the graph makes" in str(drive.loop.steady.summary())


def test_the_proof_that_goes_on_judges_the_network_s_labels() -> None:
    drive = play([1, 2])
    run(drive, 2)
    last = drive.results[-1][1]
    proof = ContinuousProof.__new__(ContinuousProof)
    took: Any = proof
    took.levels, took._thread, took.clock = None, object(), drive.clock
    took._published, took._newest, took._lock = Counter(), {}, Lock()
    took._due, took.pace = lambda camera: True, SimpleNamespace(share=None)
    proof(last)
    seen = compare_labels(np.full(SIZE, 2, np.uint8), took._newest[""].labels, 0, "large", None)
    assert seen.agreement == 1


def test_a_black_box_cannot_replay_steady_masks(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box")
    with pytest.raises(UsageError, match="leave out one of the two"):
        Drive([], lambda image: image[:, :, 0], black_box=box, steady=True)


# The clips of `predict` and `demo`.


class Projector:
    """A segmenter of the class that a picture is all of."""

    card: Any = SimpleNamespace(takes_camera=False)

    def details(self, frame: NDArray[np.uint8]) -> Details:
        labels = frame[:, :, 0].copy()
        sure = np.full(labels.shape, UNCERTAIN, np.uint8)
        return Details(labels, np.zeros(labels.shape, bool), sure)

    def label_picture(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return self.details(picture).labels

    def stream_pictures(self, pictures: Iterable[NDArray[np.uint8]]) -> Iterator[Any]:
        yield from map(self.label_picture, pictures)


def label_clip(names: Sequence[str], steady: bool = True) -> list[int]:
    clip = ClipLabels(Projector(), steady)  # type: ignore[arg-type]
    pictures = [np.full((4, 6, 3), number + 1, np.uint8) for number in range(len(names))]
    return [
        int(clip(Frame(picture, index, 0, name))[0, 0])
        for index, (picture, name) in enumerate(zip(pictures, names, strict=True))
    ]


def test_a_clip_is_held_steady_and_the_next_one_begins_anew() -> None:
    assert label_clip(["a_1", "a_2", "a_4"]) == [1, 1, 1]
    assert label_clip(["a_1", "a_2", "b_3", "b_4"]) == [1, 1, 3, 3]
    assert label_clip(["a_9", "a_10", "a_3"]) == [1, 1, 3]  # back in time
    assert label_clip(["left", "right"]) == [1, 2]
    assert label_clip(["a_1", "a_2", "a_4"], steady=False) == [1, 2, 3]


def test_an_unreadable_frame_ends_a_clip() -> None:
    clip = ClipLabels(Projector(), steady=True)  # type: ignore[arg-type]
    assert clip(Frame(np.full((4, 6, 3), 1, np.uint8), 0, 0, "a_1"))[0, 0] == 1
    clip.cut()
    assert clip(Frame(np.full((4, 6, 3), 2, np.uint8), 1, 0, "a_2"))[0, 0] == 2


def test_names_of_a_sequence() -> None:
    assert split_name("0016E5_07959") == ("0016E5_", 7959)
    assert split_name("street") == ("street", 0)


def test_a_camera_s_own_format_is_refused() -> None:
    projector: Any = Projector()
    projector.card = SimpleNamespace(takes_camera=True)
    with pytest.raises(UsageError, match="export without --input"):
        ClipLabels(projector, steady=True)


def test_predict_and_demo_hold_a_folder_s_frames(tmp_path: Path, monkeypatch: Any) -> None:
    from rtseg.data.frames import open_source
    from rtseg.demo.predict import predict

    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"f_{number}.png"), np.full((64, 96, 3), number, np.uint8))
    projector: Any = Projector()
    projector.card = SimpleNamespace(takes_camera=False, palette=[(9, 9, 9)] * 5, label_ids=None)
    for steady, expected in ((False, [0, 1, 2]), (True, [0, 0, 0])):
        out = tmp_path / str(steady)
        predict(open_source(str(folder)), projector, out, steady=steady)
        files = sorted((out / "labels").glob("*.png"))
        assert [int(cv2.imread(str(path), 0)[0, 0]) for path in files] == expected
