"""What people read on a terminal: progress, tables, lines, a file's facts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rtseg.cli import _console, app, inspect
from rtseg.errors import ArtifactError, UsageError
from rtseg.reporting import Table


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=True, color_system=None)
    monkeypatch.setattr(_console, "stderr", lambda: console)
    return text


def shown(terminal: io.StringIO, line: str, share: float) -> str:
    """The last line that the terminal had when it was told so."""
    with _console.working() as step:
        step("the one before", 1.0)
        step(line, share)
    return [each for each in terminal.getvalue().splitlines() if line in each][-1]


def test_frames_of_a_proof_are_a_bar(terminal: io.StringIO) -> None:
    assert 10 < shown(terminal, "proof of onnx, frame 12 of 24", 0.5).count("━") <= 24


def test_a_step_that_cannot_tell_has_none_and_a_name_is_no_markup(terminal: io.StringIO) -> None:
    assert "━" not in shown(terminal, "[odd] ONNX graph", 0.0)


def test_facts_of_a_file_are_for_people() -> None:
    facts = {"schedule": {"epochs": 16.0, "stop": None, "per_epoch": False}, "groups": [], "a": {}}
    assert inspect._text("", facts) == "schedule.epochs: 16\nschedule.per_epoch: no"
    assert inspect._text("trained_size", [512, 1024]) == "512x1024"
    assert inspect._text("betas", (0.9, 0.9990000001)) == "0.9, 0.999"
    assert inspect._text("digests", {"": "6885"}) == "file: 6885"
    assert inspect._text("bytes", 3235126) == "3,235,126"


def run_into_an_error(moves: int) -> None:
    with _console.steps("eval", 10) as advance:
        for _ in range(moves):
            advance()
        raise UsageError("no such class")


@pytest.mark.parametrize("ends", [False, True], ids=["terminal", "pipe"])
def test_a_bar_that_never_moved_leaves_an_error_alone(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for moves in (0, 1):
        text = io.StringIO()
        console = Console(file=text, width=100, force_terminal=not ends, color_system=None)
        monkeypatch.setattr(_console, "stderr", lambda console=console: console)
        with pytest.raises(UsageError):
            run_into_an_error(moves)
        last = text.getvalue().rpartition("eval")[2]
        if ends:  # nothing at all, not even an empty line
            assert bool(text.getvalue()) == bool(moves)
        else:  # the line is erased
            assert ("\x1b[2K" in last) == (not moves)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [80, 160])
def test_lines_break_between_words_on_a_terminal_and_not_at_all_in_a_pipe(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    name = "artifacts/csfcn_tiny_1024x2048_fp16.engine"
    line = " ".join([f"a note on {name}, number {i};" for i in range(9)])
    folded = _console.fold(line, Terminal())
    assert folded.replace("\n", " ") == line
    lengths = [len(each) for each in folded.split("\n")]
    assert max(lengths) <= width
    assert min(lengths[:-1]) > width - len(name) - 1
    assert folded.count(name) == 9
    assert _console.fold(line, io.StringIO()) == line


def test_a_terminal_shows_errors_without_breaking_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", Terminal())
    path = "/a/rather/long/folder/of/somebody/csfcn_nano_360x480_fp32.onnx"
    with pytest.raises(SystemExit):
        app.fail(ArtifactError(f"no artifact at {path}"), 1, debug=False)
    assert app.sys.stderr.getvalue() == f"rtseg: no artifact at\n{path}\n"  # type: ignore[attr-defined]


def test_the_rule_of_a_table_is_as_long_as_what_it_shows() -> None:
    words = "one_long_recipe_name, another_recipe_name, and_one_more_recipe_name"
    table = Table(("network", "recipes"), [("csfcn", words)] * 3, words=("recipes",))
    for width in (50, 60, 70, 160):
        console = Console(file=io.StringIO(), width=width)
        console.print(table)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert max(map(len, lines)) == len(lines[1]) <= width


def test_a_title_is_broken_between_words() -> None:
    path = "/a/rather/long/folder/csfcn_nano_64x96_fp32.xml"
    console = Console(file=io.StringIO(), width=60)
    console.print(Table(("a", "b"), [("c", 1)], f"{path} on folder val, run by openvino in fp32"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.startswith(f"{path} on folder\nval, run by openvino in fp32\na")


def test_a_pipe_gets_no_empty_line_of_a_spinner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = io.StringIO()
    monkeypatch.setattr(_console, "stderr", lambda: Console(file=text, width=100))
    with _console.working() as step:
        step("exporting", 0.5)
    assert not text.getvalue()
