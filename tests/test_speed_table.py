"""The speed table: measured once, merged by machine, written where the page wants it."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from rtseg.errors import ArtifactError
from rtseg.speed import plots, table
from rtseg.speed.config import BenchConfig
from rtseg.speed.result import Absent, Speedup
from rtseg.speed.timing import Histogram, Ratio
from speed_parts import MACHINE, result_of


def report_of(model: str, size: tuple[int, int], ms: float) -> SimpleNamespace:
    speedup = Speedup(Ratio(4, 3.5, 4.5), Ratio(3, 2.5, 3.5))
    rows = []
    for backend, time, against in (("openvino", ms, speedup), ("eager", 4 * ms, None)):
        row = result_of(backend, time, against)
        subject = dataclasses.replace(row.subject, model=model, size=size)
        histograms = {"burst": Histogram.of(np.linspace(ms, 2 * ms, 30))}
        rows.append(dataclasses.replace(row, subject=subject, histograms=histograms))
    absent = [Absent(model, size, "plain OpenVINO on cpu", "is not installed")]
    return SimpleNamespace(rows=rows, absent=absent)


@pytest.fixture
def measured(tmp_path, monkeypatch) -> list[tuple[str, tuple[int, int]]]:
    """What `bench` was asked for; it takes no time here."""
    asked: list[tuple[str, tuple[int, int]]] = []

    def fake(config):
        asked.append((config.models[0], config.sizes[0]))
        if config.models[0] == "broken":
            raise ArtifactError("does not run here")
        return report_of(config.models[0], config.sizes[0], 10.0)

    monkeypatch.setattr(table, "set_up", lambda config: config)
    monkeypatch.setattr(table, "measure_latency", fake)
    monkeypatch.setattr(table, "read_system", lambda: MACHINE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


WANTED = BenchConfig(models=("csfcn", "pidnet_s"), sizes=((512, 1024), (1024, 2048)))


def test_a_table_that_was_stopped_goes_on_where_it_was(measured, tmp_path, monkeypatch):
    finished = table.measure_latency

    def stopped(config):
        if len(measured) == 2:
            raise KeyboardInterrupt
        return finished(config)

    monkeypatch.setattr(table, "measure_latency", stopped)
    with pytest.raises(KeyboardInterrupt):
        table.measure(WANTED, tmp_path)
    (half,) = table.read_machines(tmp_path)
    assert len(half["rows"]) == 4
    monkeypatch.setattr(table, "measure_latency", finished)
    path = table.measure(WANTED, tmp_path)
    assert len(measured) == len(set(measured)) == 4
    assert len(json.loads(path.read_text())["rows"]) == 8


def test_other_settings_are_measured_anew(measured, tmp_path):
    table.measure(WANTED, tmp_path)
    table.measure(dataclasses.replace(WANTED, runs=7), tmp_path)
    assert len(measured) == 8


def test_rows_of_an_earlier_run_stay_beside_new_ones(measured, tmp_path):
    table.measure(WANTED, tmp_path)
    path = table.measure(dataclasses.replace(WANTED, models=("bisenetv2",)), tmp_path)
    models = {row["model"] for row in json.loads(path.read_text())["rows"]}
    assert models == {"csfcn", "pidnet_s", "bisenetv2"}


def test_what_does_not_run_is_listed_with_its_reason(measured, tmp_path):
    wanted = dataclasses.replace(WANTED, models=("broken", "csfcn"), sizes=((512, 1024),))
    value = json.loads(table.measure(wanted, tmp_path).read_text())
    assert value["absent"] == {
        "broken 512x1024": "does not run here",
        "csfcn 512x1024 plain OpenVINO on cpu": "is not installed",
    }
    assert {row["model"] for row in value["rows"]} == {"csfcn"}


def test_machines_are_merged_each_under_its_name(measured, tmp_path, monkeypatch):
    table.measure(WANTED, tmp_path)
    other = dataclasses.replace(MACHINE, cpu="Other CPU", gpus=("Some GPU",))
    monkeypatch.setattr(table, "read_system", lambda: other)
    table.measure(WANTED, tmp_path)
    (tmp_path / "soak.json").write_text('{"frames": 3}')  # other results live there too
    table.write_pages(tmp_path)
    text = (tmp_path / "speed.md").read_text()
    assert text.index("## Some CPU, 4 cores avx2") < text.index("## Some GPU")
    assert text.count("| csfcn | 512x1024 | openvino fp32 |") == 2
    assert "4.00 (3.50-4.50)" in text
    for name in ("accuracy.png", "latency.png"):
        assert cv2.imread(str(tmp_path / name)).std() > 5


def test_the_short_table_stands_between_the_page_s_marks(measured, tmp_path):
    table.measure(WANTED, tmp_path)
    page = tmp_path / "README.md"
    page.write_text(f"before\n{table.MARKS[0]}\nold\n{table.MARKS[1]}\nafter\n")
    table.write_pages(tmp_path, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{table.MARKS[1]}\nafter\n")
    assert "old" not in text
    assert "| `csfcn` | 100 fp32 (4.00x) | 100 fp32 (4.00x) |" in text
    table.write_pages(tmp_path, page)
    assert page.read_text() == text


def test_a_page_without_marks_is_refused_and_left_alone(measured, tmp_path):
    table.measure(WANTED, tmp_path)
    page = tmp_path / "README.md"
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="has no lines"):
        table.write_pages(tmp_path, page)
    assert page.read_text() == "nothing\n"


def test_without_a_machine_s_file_there_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="run `rtseg bench table` first"):
        table.write_pages(tmp_path)


def test_accuracy_is_plotted_for_networks_whose_authors_report_one():
    row = {"size": [1024, 2048], "peer": False, "backend": "openvino"}
    timing = {"frame_to_labels": {"fps": 20.0}}
    rows = [{"model": name, **row, **timing} for name in ("pidnet_s", "csfcn_nano")]
    assert [point[:3] for point in plots._points(rows)] == [("pidnet_s", 78.8, 20.0)]


def test_the_table_is_made_for_papers_too(measured, tmp_path):
    path = table.measure(WANTED, tmp_path)
    found = table.write_pages(tmp_path, None, path)
    assert json.loads(found.to_json())["written"][0] == str(path)
    assert r"pidnet\_s & 1024x2048 & openvino fp32" in found.format("latex")
