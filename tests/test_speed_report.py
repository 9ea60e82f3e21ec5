"""A report's JSON and tables."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest
from rich.console import Console
from rtseg.speed.bench import Setup, measure_latency
from rtseg.speed.config import BenchConfig
from rtseg.speed.host import Host
from rtseg.speed.result import STAGES, Report, Speedup
from rtseg.speed.timing import Ratio
from speed_parts import MACHINE, result_of


@pytest.fixture
def report() -> Report:
    speedup = Speedup(Ratio(4, 3.5, 4.5), Ratio(3, 2.5, 3.5))
    rows = [result_of("openvino", 10, speedup), result_of("eager", 40, None)]
    host = Host(BenchConfig(["any"]), MACHINE, 4, lambda *_: None)
    object.__setattr__(host, "race", lambda contest: rows)
    return measure_latency(Setup(host, [None], ["a warning"], "2030-01-01T00:00:00+00:00"))


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
    assert "| 100 | 4.00 (3.50-4.50) |" in markdown
    assert "Some CPU, 4 cores (avx2 vnni)" in markdown
    assert "csfcn_nano 0123456789ab (random)" in markdown
    assert "- a warning" in markdown
    console = Console(width=160, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert "3.50-4.50" in text
    assert "eager fp32" in text


def test_a_paper_s_table_is_latex_or_csv(report):
    assert r"csfcn\_nano & 64x128 & openvino fp32 &" in report.format("latex")
    header, ours, eager = csv.reader(io.StringIO(report.format("csv")))
    assert header[:4] == ["model", "size", "run by", "mean"]
    row = dict(zip(header, ours, strict=True))
    assert (row["FPS"], row["x eager"], row["burst"]) == ("100", "4.00 (3.50-4.50)", "10.0")
    assert eager[2] == "eager fp32"


def test_at_80_columns_no_unit_and_no_name_is_cut(report):
    console = Console(width=80, file=io.StringIO())
    console.print(report.table())
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "csfcn_nano 64x128 openvino fp32" in lines
    assert any(line.split()[-1:] == ["MiB"] for line in lines)
