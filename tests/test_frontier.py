"""The frontier: rounds that resume, ratios to one reference, the front, its page and picture."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rtseg.errors import ArtifactError, UsageError
from rtseg.speed import frontier
from rtseg.speed.config import BenchConfig
from rtseg.speed.frontier import REFERENCE, FrontierPoint, mark_front, measure_frontier
from rtseg.speed.plots import frontier_plot
from speed_parts import MACHINE

# One round's share of a network is a moment: a call takes no time worth the name.
WANTED = BenchConfig(
    models=("icnet", "efficientvit_b1", "fddwnet"), sizes=((64, 128),), runs=2, seconds=0.01
)


class FakeNetwork:
    def __init__(self, model: str):
        self.subject = SimpleNamespace(
            size=(64, 128), backend="fake", precision="fp32", macs=5_000_000, trained=False
        )
        self.closed = False

    def frame_to_labels(self) -> None:
        time.sleep(2e-4)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was opened, in order; nothing is exported, and a turn lasts a moment."""
    names: list[str] = []

    def fake(run: Any, model: str) -> FakeNetwork:
        names.append(model)
        if model == "icnet" and "broken" in names:
            raise ArtifactError("does not run here")
        return FakeNetwork(model)

    limits = frontier.Limits
    monkeypatch.setattr(frontier, "Limits", lambda *given: limits(*given, block_ms=1.0))
    monkeypatch.setattr(frontier._Run, "_open", fake)
    monkeypatch.setattr(frontier, "read_system", lambda: MACHINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def test_rounds_that_are_measured_are_not_measured_again(opened: list[str], tmp_path: Path) -> None:
    measure_frontier(WANTED, tmp_path, rounds=2)
    assert opened.count("icnet") == opened.count("fddwnet") == 2
    assert opened.count(REFERENCE) == 1, "it stays open"
    measure_frontier(WANTED, tmp_path, rounds=2)
    assert len(opened) == 7
    more = measure_frontier(WANTED, tmp_path, rounds=3)
    assert opened.count("icnet") == 3
    assert more.rounds == 3
    # A round has three turns, each of one run at least.
    assert all(point.runs >= 9 for point in more.points)


def test_other_settings_are_measured_anew(opened: list[str], tmp_path: Path) -> None:
    measure_frontier(WANTED, tmp_path, rounds=1)
    measure_frontier(WANTED.only("icnet", (64, 128), runs=3), tmp_path, rounds=1)
    assert opened.count("icnet") == 2


def test_what_does_not_run_is_listed_with_its_reason(opened: list[str], tmp_path: Path) -> None:
    opened.append("broken")
    found = measure_frontier(WANTED, tmp_path, rounds=1)
    assert found.absent == {"icnet": "does not run here"}
    assert "- icnet: does not run here" in (tmp_path / "frontier.md").read_text()
    with pytest.raises(UsageError, match="nothing could be measured: does not run here"):
        measure_frontier(WANTED.only("icnet", (64, 128)), tmp_path / "none", rounds=1)
    assert not (tmp_path / "none").exists()


def test_the_page_has_scores_times_and_the_sizes_of_both(opened: list[str], tmp_path: Path) -> None:
    found = measure_frontier(WANTED, tmp_path, rounds=1)
    page = (tmp_path / "frontier.md").read_text()
    assert "| `efficientvit_b1` | 80.5 | 1024x2048 | 64x128 | 0.0 | fake fp32 |" in page
    assert "| `fddwnet` | 71.5 test | 512x1024 | 64x128 |" in page
    assert "weights are random" in page
    value = json.loads((tmp_path / "frontier.json").read_text())
    assert value["reference"] == REFERENCE
    assert {point["model"] for point in value["points"]} == set(WANTED.models)
    assert [path.name for path in found.written] == ["frontier.json", "frontier.md", "frontier.png"]
    image = cv2.imread(str(tmp_path / "frontier.png"))
    assert image is not None
    assert np.std(image) > 5


def point(model: str, ratio: float, miou: float | None, data: str = "Cityscapes val") -> Any:
    size = (512, 1024)
    return FrontierPoint(
        model, size, "fake fp32", 1, False, miou, data, size, 10 * ratio, ratio, ratio, ratio, 9
    )


def test_the_front_is_what_nothing_faster_reaches() -> None:
    marked = mark_front(
        [
            point("slow and worse", 3.0, 77.0),
            point("exact", 2.0, 80.0),
            point("fast", 0.5, 75.0),
            point("test set", 0.6, 90.0, "Cityscapes test"),
            point("no score", 0.1, None, ""),
            point("as exact, slower", 2.5, 80.0),
        ]
    )
    assert [each.model for each in marked][:2] == ["no score", "fast"]
    assert [each.model for each in marked if each.front] == ["fast", "exact"]


def test_names_in_the_picture_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.text import Annotation, Text
    from rtseg.speed import plots

    figures: list[Any] = []
    monkeypatch.setattr(plots, "_png", lambda figure: figures.append(figure) or b"")
    crowd = [point(f"network_{i}", 1 + 0.003 * (i % 4) + (i > 9), 78 + 0.05 * i) for i in range(12)]
    machine = frontier.Frontier("a machine", MACHINE, "now", 1, 0.0, mark_front(crowd), {})
    frontier_plot(machine)
    (figure,) = figures
    figure.draw_without_rendering()
    texts = [each for each in figure.axes[0].get_children() if isinstance(each, Annotation)]
    assert len(texts) == 12
    boxes = [Text.get_window_extent(text) for text in texts]
    crossing = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    assert not crossing


def test_unknown_names_and_two_sizes_are_refused(opened: list[str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model is called 'icnett'"):
        measure_frontier(BenchConfig(models=("icnett",)), tmp_path)
    with pytest.raises(UsageError, match="give one"):
        measure_frontier(BenchConfig(models=("icnet",), sizes=((64, 128), (128, 256))), tmp_path)
    assert not opened
