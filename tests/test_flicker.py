"""Flicker, counted by hand, and along sequences."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from rtseg.api import evaluate
from rtseg.data.datasets import open_data
from rtseg.errors import UsageError
from rtseg.train.evaluate import build_table, evaluate_sequences
from rtseg.train.flicker import Flicker, order_sequences
from tiny_camvid import write_camvid


def row(*ids: int) -> NDArray[np.uint8]:
    return np.array([ids], np.uint8)


def test_flicker_by_hand() -> None:
    meter = Flicker()
    assert np.isnan(meter.share)
    meter.count(row(1, 1, 1, 2, 255, 3), row(1, 1, 5, 2, 0, 3))
    assert meter.pixels == 0
    # Still: the first four but the third's truth, which moves; of these only the second changes.
    meter.count(row(1, 1, 2, 2, 255, 3), row(1, 4, 2, 2, 1, 255))
    assert (meter.changed, meter.pixels) == (1, 3)
    # A wrong label that stays does not flicker; one that becomes right does.
    meter.count(row(1, 1, 2, 2, 255, 3), row(1, 4, 0, 2, 2, 3))
    assert (meter.changed, meter.pixels) == (2, 7)
    assert meter.share == pytest.approx(2 / 7)


def test_a_new_sequence_is_not_compared_with_the_last_one() -> None:
    meter = Flicker()
    meter.count(row(1), row(1))
    meter.restart()
    meter.count(row(1), row(2))
    assert meter.pixels == 0


def test_a_sequence_is_of_one_prefix_by_number() -> None:
    names = ["a_10", "b_1", "a_9", "b_2", "still", "a_0011"]
    assert order_sequences(names) == [[2, 0, 5], [1, 3], [4]]


def test_frames_are_taken_in_order_and_sequences_begin_anew(tmp_path: Path) -> None:
    root = write_camvid(tmp_path, frames=4)
    for old, new in (
        ("frame_0", "x_10"),
        ("frame_1", "y_2"),
        ("frame_2", "x_9"),
        ("frame_3", "y_3"),
    ):
        for folder in ("val", "valannot"):
            (root / folder / f"{old}.png").rename(root / folder / f"{new}.png")
    data = open_data("camvid", root, "val")
    seen: list[str] = []
    result = evaluate_sequences(
        lambda frame: np.full(frame.shape[:2], len(seen) % 2, np.uint8),
        data,
        seen=lambda index: seen.append(data.name(index)),
        restart=lambda: seen.append("restart"),
    )
    assert seen == ["restart", "x_9", "x_10", "restart", "y_2", "y_3"]
    # The prediction is 1 0 in one sequence and 0 1 in the other: all that can flicker does.
    assert result.as_dict()["flicker"] == 1
    assert ("flicker (truth still)", "", "", "100.00") in build_table(result).rows


def test_evaluation_gives_flicker_only_where_it_is_asked_for(tmp_path: Path) -> None:
    root = write_camvid(tmp_path)
    facts = json.loads(
        evaluate("csfcn_nano", "camvid", root, temporal=True, size=(32, 64)).to_json()
    )
    assert 0 <= facts["flicker"] < 1
    assert facts["images"] == 6
    assert "flicker" not in evaluate("csfcn_nano", "camvid", root, size=(32, 64)).as_dict()


def test_what_cannot_flicker_is_told(tmp_path: Path) -> None:
    root = write_camvid(tmp_path, frames=1)
    with pytest.raises(UsageError, match="no two frames are of one sequence"):
        evaluate("csfcn_nano", "camvid", root, temporal=True)
    with pytest.raises(UsageError, match="one at a time"):
        evaluate("csfcn_nano", "camvid", root, temporal=True, reliability=tmp_path / "x.png")
    with pytest.raises(UsageError, match="add --temporal"):
        evaluate("csfcn_nano", "camvid", root, steady=True)
    with pytest.raises(UsageError, match="only an artifact"):
        evaluate("csfcn_nano", "camvid", root, temporal=True, steady=True)
