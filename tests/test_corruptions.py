"""Corrupted frames: the same each time, each different, and their mIoU in what `eval` says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from rtseg.api import evaluate
from rtseg.data.corruptions import CORRUPTIONS, add_fog, corrupt
from rtseg.errors import UsageError
from rtseg.train.evaluate import build_table
from tiny_camvid import write_camvid

PICTURE = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("camvid"))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_pixels_and_is_the_same_each_time(name: str) -> None:
    before = PICTURE.copy()
    once, again = corrupt(PICTURE, name), corrupt(PICTURE, name)
    assert np.array_equal(once, again)
    assert np.array_equal(PICTURE, before)
    assert (once.shape, once.dtype) == (PICTURE.shape, np.uint8)
    assert (once != PICTURE).mean() > 0.5


def test_noise_is_of_the_stated_strength_and_differs_from_picture_to_picture() -> None:
    gray = np.full((200, 300, 3), 128, np.uint8)
    noise = corrupt(gray, "noise").astype(int) - 128
    assert noise.std() == pytest.approx(20, rel=0.03)
    other = corrupt(gray + 1, "noise").astype(int) - 129
    assert not np.array_equal(noise, other)


def test_dark_and_fog_by_hand() -> None:
    assert corrupt(np.full((4, 4, 3), 100, np.uint8), "dark").tolist() == [[[25] * 3] * 4] * 4
    fog = add_fog(np.full((2, 1, 3), 110, np.uint8))
    # 0.3 of 110 and 0.7 of 210 at the top; 0.8 and 0.2 at the bottom.
    assert fog[:, 0, 0].tolist() == [180, 130]


def test_an_unknown_corruption_is_told() -> None:
    with pytest.raises(UsageError, match="did you mean 'noise'"):
        corrupt(PICTURE, "noisy")
    with pytest.raises(UsageError, match="choose from dark, blur"):
        evaluate("csfcn_nano", "camvid", ".", corrupt=["x"])


def test_evaluation_gives_miou_under_each(root: Path) -> None:
    seen: list[int] = []
    result = evaluate("csfcn_nano", "camvid", root, corrupt=True, size=(32, 64), seen=seen.append)
    plain = evaluate("csfcn_nano", "camvid", root, size=(32, 64))
    facts = json.loads(result.to_json())
    assert list(facts["corruptions"]) == list(CORRUPTIONS)
    assert facts["miou"] == plain.confusion.miou()
    # These blocks have few labels right; yet what the network sees must have changed.
    assert all(0 < miou < 1 and miou != facts["miou"] for miou in facts["corruptions"].values())
    assert len(seen) == 6 * (1 + len(CORRUPTIONS))
    assert ("mean, fog", f"{100 * facts['corruptions']['fog']:.2f}", "", "") in build_table(
        result
    ).rows
    assert "corruptions" not in plain.as_dict()


def test_some_corruptions_may_be_named(root: Path) -> None:
    result = evaluate("csfcn_nano", "camvid", root, corrupt=["dark"], size=(32, 64))
    assert list(result.corruptions) == ["dark"]


def test_the_documents_table_has_the_strengths_of_the_code() -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    for name, corruption in CORRUPTIONS.items():
        assert f"| `{name}` | {corruption.strength} |" in page
