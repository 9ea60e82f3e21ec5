"""Progress on a terminal: a bar where a share is known, else the line alone."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rtseg.cli import _console


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
