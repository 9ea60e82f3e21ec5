"""The one table, in every format, and in terminals of any width."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console
from rtseg.reporting import Table, format_figure, join

HEADER = ["model", "size", "p50 ms", "FPS", "note"]
ROWS = [
    ["csfcn_tiny", "1024x2048", "12.3", "81.3", "as exported"],
    ["pidnet_s", "512x1024", None, "", "no weights were given, so that they are random"],
]
TABLE = Table(HEADER, ROWS, "Latency & rate", names=2, words=["note"], optional=["FPS", "note"])


def printed(table: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_markdown_and_html_say_the_same():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "**Latency & rate**"
    assert lines[3] == "| --- | --- | ---: | ---: | --- |"
    assert lines[4] == "| csfcn_tiny | 1024x2048 | 12.3 | 81.3 | as exported |"
    assert Table(["a"], [["x|y\nz"]]).markdown().endswith("| x\\|y z |")
    text = TABLE.html()
    assert "<caption>Latency &amp; rate</caption>" in text
    assert '<th style="text-align:right">p50 ms</th>' in text
    assert "<td>1024x2048</td>" in text


def test_csv_is_read_back():
    table = Table(["a", "b"], [["x, y", 'say "z"'], [None, 3]])
    assert list(csv.reader(io.StringIO(table.csv()))) == [
        ["a", "b"],
        ["x, y", 'say "z"'],
        ["", "3"],
    ]


def test_latex_escapes_what_latex_reads():
    text = TABLE.latex()
    assert text.startswith("% Latency & rate\n\\begin{tabular}{llrrl}\n\\toprule\n")
    assert r"csfcn\_tiny & 1024x2048 & 12.3 & 81.3 & as exported \\" in text
    assert Table(["50 %"], [["a\\b~c^d{}"]]).latex().count("{}") == 3
    assert r"50 \% \\" in Table(["50 %"], []).latex()


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="no table format is called 'xls': choose from md, csv"):
        TABLE.format("xls")


@pytest.mark.parametrize("width", [200, 80, 60, 40, 24])
def test_no_name_and_no_figure_is_cut_at_any_width(width):
    text = printed(TABLE, width)
    assert max(map(len, text.splitlines())) <= width
    for cell in ("csfcn_tiny", "1024x2048", "12.3", "pidnet_s", "p50 ms"):
        assert cell in text
    assert ("81.3" in text) == (width > 24)


def test_words_are_wrapped_before_rows_are_stacked():
    wide = printed(TABLE, 160).splitlines()
    assert len([line for line in wide if line.strip()]) == 5
    wrapped = printed(TABLE, 62)
    assert "no weights were given," in wrapped
    assert any(line.startswith("pidnet_s    512x1024") for line in wrapped.splitlines())


def test_figures_stand_under_their_names_where_both_do_not_fit():
    table = Table(["model", *"abcdef"], [["a_long_name_of_a_network", *["123.4"] * 6]])
    lines = printed(table, 45).splitlines()
    assert lines[2].rstrip() == "a_long_name_of_a_network"
    assert lines[3].split() == ["123.4"] * 6


def test_pairs_have_no_header():
    assert printed(Table(["", ""], [["CPU", "fast"]]), 80).strip() == "CPU  fast"


def test_tables_are_joined_by_their_names():
    first = Table(["model", "p50"], [["a", 1], ["b", 2]])
    second = Table(["model", "share"], [["b", 9], ["c", 8]])
    assert join([first, second]).csv() == "model,p50,share\na,1,\nb,2,9\nc,,8\n"


def test_figures_have_three_digits():
    assert [format_figure(v) for v in (None, 1234.5, 12.345, 1.2345)] == [
        "",
        "1234",
        "12.3",
        "1.23",
    ]
