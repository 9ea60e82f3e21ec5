"""Pictures that show nothing, or not one moment: told and, where no mask can be, withheld."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.data.frames import Frame
from rtseg.data.images import read_image
from rtseg.data.scenes import scene
from rtseg.errors import UsageError
from rtseg.runtime.drive.health import assess_health
from rtseg.runtime.drive.messages import State, StatusKind
from rtseg.runtime.drive.picture_faults import PictureJudge, PictureLimits, read_limits
from simulated import SimulatedEngine, Simulation

RANDOM = np.random.default_rng(3)
PERIOD = 0.1
CUT = 150  # row from which on the lower part is another


def noisy(picture: Any, sigma: float = 2.0) -> Any:
    noise = RANDOM.normal(0, sigma, np.shape(picture))
    return np.clip(np.asarray(picture, np.float32) + noise, 0, 255).astype(np.uint8)


def street(moved: int = 0) -> Any:
    """A street from a camera that has moved sideways by that many pixels, with its noise."""
    return noisy(np.roll(cv2.resize(scene((240, 320), 5), (480, 360)), moved, 1))


def cut(upper: Any, lower: Any) -> Any:
    return np.concatenate([upper[:CUT], lower[CUT:]])


def filled(color: tuple[int, int, int]) -> Any:
    return np.broadcast_to(np.array(color, np.uint8), (360, 480, 3))


FAULTY = {
    "black": lambda: noisy(np.zeros((360, 480, 3)), 3),
    "overexposed": lambda: noisy(street().astype(np.float32) * 3 + 150),
    "blocked": lambda: noisy(filled((40, 60, 70)), 3),
    "half_decoded": lambda: cut(street(), filled((128, 128, 128))),
    "torn": lambda: cut(street(), street(12)),
}
MORE = {
    "green": ("half_decoded", lambda: cut(street(), filled((0, 135, 0)))),
    "row repeated": ("half_decoded", lambda: cut(street(), np.repeat(street()[CUT:][:1], 360, 0))),
}


def judge(*pictures: Any, **limits: Any) -> list[str]:
    """Causes of the last of the pictures."""
    judge = PictureJudge(PictureLimits(**limits))
    return [[fault.cause for fault in judge.judge(picture)] for picture in pictures][-1]


@pytest.mark.parametrize("cause", FAULTY)
def test_each_fault_is_found_by_its_name_and_can_be_switched_off(cause: str) -> None:
    picture = FAULTY[cause]()
    assert judge(street(), picture) == [cause]
    off = dict.fromkeys((each.name for each in fields(PictureLimits)), None)
    assert judge(street(), picture, **off) == []


@pytest.mark.parametrize("kind", MORE)
def test_a_decoder_fills_in_what_it_lacks_in_several_ways(kind: str) -> None:
    cause, picture = MORE[kind]
    assert judge(street(), picture()) == [cause]


def test_a_part_that_repeats_the_picture_before_is_torn() -> None:
    before, after = street(), street(3)
    assert judge(before, cut(after, before)) == ["torn"]
    assert judge(before, cut(before, after)) == ["torn"]
    assert judge(before, after) == []
    assert judge(before, before.copy()) == []  # a camera that repeats itself is another matter


@pytest.mark.parametrize("light", [1.0, 0.5, 0.25, 0.1])
def test_real_streets_are_sound_by_day_at_night_and_in_tunnels(
    shared_data: Path, light: float
) -> None:
    paths = sorted((shared_data / "camvid" / "val").glob("*.png"))[::10]
    assert len(paths) > 5
    judge = PictureJudge()
    told = [judge.judge(noisy(read_image(p).astype(np.float32) * light, 1.5)) for p in paths]
    assert told == [[] for _ in paths]


def test_tiny_pictures_are_not_judged() -> None:
    assert judge(np.zeros((63, 200, 3), np.uint8)) == []


def test_limits_from_the_command_line() -> None:
    assert read_limits([]) == PictureLimits()
    assert read_limits(["black=20", "torn=off"]) == PictureLimits(black=20, torn=None)
    assert read_limits(["off", "blocked=0.7"]) == PictureLimits(*[None] * 2, 0.7, *[None] * 3)
    for wrong, words in (
        ("dark=3", "choose from black"),
        ("black=x", "above 0"),
        ("torn", "above"),
    ):
        with pytest.raises(UsageError, match=words):
            read_limits([wrong])


class Show:
    """A drive that sees one kind of picture after another."""

    def __init__(self, **limits: Any):
        start = lambda clock: [lambda: SimulatedEngine(clock, lambda level: 0.01)]  # noqa: E731
        self.drive = Simulation(start, **limits)
        self.shown = 0

    def see(self, picture: Any, frames: int) -> None:
        for _ in range(frames):
            at_s = self.shown * PERIOD - self.drive.seconds
            self.drive.clock.after(at_s, lambda n=self.shown: self._give(n, picture))
            self.shown += 1
        self.drive.run((self.shown - 0.5) * PERIOD)

    def _give(self, number: int, picture: Any) -> None:
        self.drive.capture.accept(Frame(picture(), number, self.drive.clock.now))


@pytest.mark.parametrize("cause", ["black", "half_decoded"])
def test_a_picture_that_shows_nothing_gets_no_mask_and_a_status_at_once(cause: str) -> None:
    show = Show()
    show.see(street, 10)
    show.see(FAULTY[cause], 15)
    drive = show.drive
    assert len(drive.results) == 10
    first_s, first = drive.statuses[0]
    assert (first.kind, first.cause) == (StatusKind.LOST, cause)
    assert first_s <= 1.0 + 2 * PERIOD
    assert drive.frames["dropped"] == {cause: 15}
    assert assess_health(drive.loop).state is State.stale
    assert "picture" in assess_health(drive.loop).reasons[0]  # not: the camera is silent
    show.see(street, 30)
    assert len(drive.results) == 40
    assert drive.states[-1] == "running"


@pytest.mark.parametrize("cause", ["overexposed", "blocked", "torn"])
def test_a_faulty_picture_is_labeled_with_a_warning(cause: str) -> None:
    show = Show()
    show.see(street, 10)
    show.see(FAULTY[cause], 2)
    drive = show.drive
    assert len(drive.results) == 12
    assert [r.warnings for _, r in drive.results[-3:]] == [(), (cause,), (cause,)]
    health = assess_health(drive.loop)
    assert health.state is State.degraded
    assert health.reasons[0].startswith(f"{cause}: ")


def test_a_log_is_labeled_from_end_to_end() -> None:
    show = Show(max_age_ms=None)
    show.see(FAULTY["black"], 3)
    assert [r.warnings for _, r in show.drive.results] == [("black",)] * 3


def test_a_limit_may_be_a_whole_number() -> None:
    assert judge(street(), black=20) == []
    assert judge(np.zeros_like(street()), black=20) == ["black"]
