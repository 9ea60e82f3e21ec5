"""A report's JSON and tables."""

from __future__ import annotations

import io
import json
import re

import pytest
from rich.console import Console
from rtseg.speed.report import Report
from rtseg.speed.result import STAGES, Speedup
from rtseg.speed.timing import Limits, Ratio
from speed_parts import MACHINE, result_of


@pytest.fixture
def report() -> Report:
    speedup = Speedup(Ratio(4, 3.5, 4.5), Ratio(3, 2.5, 3.5))
    rows = [result_of("openvino", 10, speedup), result_of("eager", 40, None)]
    return Report(rows, MACHINE, Limits(), "2030-01-01T00:00:00+00:00", ["the machine was busy"])


def keys_of(value) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys_of(inner)}
    if isinstance(value, list):
        return {key for inner in value for key in keys_of(inner)}
    return set()


def test_a_report_as_json_is_one_value_whose_rows_stand_alone(report):
    value = json.loads(report.to_json())
    ours, eager = value["rows"]
    assert ours["against_eager"]["frame_to_labels"] == {"ratio": 4, "low": 3.5, "high": 4.5}
    assert eager["against_eager"] is None
    assert ours["macs_per_s"] == 10**11
    assert set(ours["stages"]) == {f"{stage}_ms" for stage in STAGES}
    assert {"machine", "threads", "precision", "model", "weights", "backend_version"} <= set(ours)
    assert ours["machine"]["packages"] == {"rtseg": "0.1.0"}
    packages = set(MACHINE.packages)
    assert all(re.fullmatch("[a-z0-9_]+", key) for key in keys_of(value) - packages)


def test_a_report_shows_every_figure_in_both_tables(report):
    markdown = report.to_markdown()
    assert markdown.count("| csfcn_nano | 64x128 | openvino fp32 |") == 3
    assert "| 4.00 | 3.50-4.50 |" in markdown
    assert "Some CPU, 4 cores (avx2 vnni)" in markdown
    assert "csfcn_nano 0123456789ab (random)" in markdown
    assert "the machine was busy" in markdown
    console = Console(width=160, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert "3.50-4.50" in text
    assert "eager fp32" in text
