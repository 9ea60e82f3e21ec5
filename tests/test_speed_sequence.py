"""mIoU under latency, against a simulation that looks at every moment."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rtseg.data.classes import IGNORE, ClassSet
from rtseg.data.datasets import Cached, Sample
from rtseg.speed import sequence
from rtseg.speed.camera_rate import Shot, play
from speed_parts import Clock

CLASSES = 4


def brute_force(service_ms: list[int], period_ms: int) -> tuple[list[int | None], list[bool]]:
    """(frame whose mask is at hand when each frame is due, dropped), a millisecond at a time."""
    count = len(service_ms)
    shown: list[int | None] = []
    taken: list[int] = []
    at_hand: int | None = None
    waiting: int | None = None
    working: tuple[int, int] | None = None  # frame, when it will be done
    for moment in range(count * (period_ms + max(service_ms)) + 1):
        if working and working[1] == moment:
            at_hand, working = working[0], None
        if moment % period_ms == 0 and moment // period_ms < count:
            shown.append(at_hand)
            waiting = moment // period_ms
        if working is None and waiting is not None:
            working = (waiting, moment + service_ms[len(taken)])
            taken.append(waiting)
            waiting = None
    return shown, [index not in taken for index in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_the_mask_at_hand_is_that_of_a_simulation(seed):
    random = np.random.default_rng(seed)
    count, period = int(random.integers(5, 40)), int(random.integers(3, 60))
    service = random.integers(1, 4 * period, count).tolist()
    clock, calls = Clock(), iter(service)
    shots = play(lambda index: clock.work(next(calls)), count, 1000 / period, clock, clock.sleep)
    shown, dropped = brute_force(service, period)
    assert sequence.mask_at(shots) == shown
    assert [shot.ended_ns is None for shot in shots] == dropped


def miou_by_pixels(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """mIoU of (label, mask) pairs, counted pixel by pixel."""
    shares = []
    for class_id in range(CLASSES):
        hit = union = 0
        for label, mask in pairs:
            for truth, guess in zip(label.ravel(), mask.ravel(), strict=True):
                if truth != IGNORE and class_id in (truth, guess):
                    union += 1
                    hit += truth == guess
        if union:
            shares.append(hit / union)
    return sum(shares) / len(shares)


def test_the_score_is_of_the_mask_at_hand_against_the_label_of_the_moment():
    random = np.random.default_rng(1)
    labels = [random.choice([0, 1, 2, 3, IGNORE], (5, 7)).astype(np.uint8) for _ in range(6)]
    masks = {i: random.integers(0, CLASSES, (5, 7)).astype(np.uint8) for i in range(6)}
    shown = [None, 0, 0, 2, 3, 4]
    found = sequence.score(labels, masks, shown, 2, CLASSES)
    expected = miou_by_pixels([(labels[i], masks[shown[i]]) for i in range(2, 6)])
    assert found == pytest.approx(expected)
    assert sequence.score([None, *labels[1:]], masks, shown, 0, CLASSES) == pytest.approx(
        miou_by_pixels([(labels[i], masks[shown[i]]) for i in range(1, 6)])
    )


def moving(count: int) -> Cached:
    """A bright square that moves two pixels a frame, and its labels."""
    data = Cached.__new__(Cached)
    data.classes = ClassSet("two", ("ground", "square"), ((0, 0, 0), (255, 0, 0)))
    data.samples = []
    for index in range(count):
        label = np.zeros((8, 64), np.uint8)
        label[:, 2 * index : 2 * index + 8] = 1
        data.samples.append(Sample(np.repeat(label[..., None] * 200, 3, 2), label, str(index)))
    return data


def played(subject, data: Cached, service_ms: float, clock: Clock) -> sequence._Played:
    shots = play(lambda index: clock.work(service_ms), len(data), 20, clock, clock.sleep)
    masks = {i: (data[i].image[..., 0] > 0).astype(np.uint8) for i in range(len(data))}
    return sequence._Played(subject, shots, masks)


def test_a_perfect_network_loses_what_its_delay_costs():
    data, clock = moving(20), Clock()
    fast, slow = played("fast", data, 10, clock), played("slow", data, 120, clock)
    start = sequence._first_scored([fast, slow])
    assert start == 3  # the slow one's first mask is there at 120 ms, frame 3 is due at 150 ms
    quick, late = (sequence._point(each, data, start, 20) for each in (fast, slow))
    assert quick.offline_miou == late.offline_miou == 1
    assert quick.lag == 1
    # A square of 8 that is 2 pixels off: 6 of 10 columns agree; the ground has 54 of 58.
    assert quick.latency_miou == pytest.approx((6 / 10 + 54 / 58) / 2)
    assert late.latency_miou < quick.latency_miou
    assert late.lag > 2


def test_a_network_that_never_answers_in_time_scores_nothing():
    data, clock = moving(5), Clock()
    never = played("never", data, 10_000, clock)
    point = sequence._point(never, data, sequence._first_scored([never]), 20)
    assert point.latency_miou == 0
    assert sequence._flat(point)["frames_behind"] is None
    json.dumps(sequence._flat(point), allow_nan=False)


def fact(model: str, latency: float, ms: float, peer: bool = False) -> dict:
    return {
        "model": model, "size": [4, 8], "precision": "bf16", "backend": "openvino", "peer": peer,
        "latency_miou": latency, "offline_miou": 0.9, "pace": {"service": {"p50_ms": ms}},
    }  # fmt: skip


def test_the_best_operating_point_is_a_line():
    rows = [fact("slow", 0.5, 90), fact("best", 0.61, 40), fact("peer", 0.8, 10, peer=True)]
    line = sequence.best_line(rows, 15)
    assert line.startswith("best at 15 Hz on this machine: best 4x8 bf16 in openvino, mIoU 61.0%")
    tied = sequence.best_line([fact("a", 0.5, 90), fact("b", 0.5, 40)], 15)
    assert ": b 4x8" in tied


def test_classes_have_to_be_those_of_the_labels():
    with pytest.raises(ValueError, match="they must be the same"):
        sequence._check_classes(("road", "car"), moving(1))
    sequence._check_classes(("ground", "square"), moving(1))


def test_a_mask_is_at_hand_in_the_very_moment_it_is_done():
    shots = [Shot(0, 0, 100), Shot(100, 100, 150), Shot(200, 200, 300)]
    assert sequence.mask_at(shots) == [None, 0, 1]
