"""The README's promises: its commands exist, its Python runs, its table is the code's."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from rtseg.cli.models import listed, score_texts
from rtseg.data.frames import Frame
from rtseg.models.loading import load_model

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_quick_start_is_two_commands() -> None:
    commands = [block.strip() for block in blocks("sh")]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert commands[0].endswith("&& rtseg quickstart")
    assert commands[1].endswith("&& python -m pytest")


def test_installed_extras_exist() -> None:
    setup = (ROOT / "setup.py").read_text()
    for extra in re.findall(r"\[(\w+)\]\"", "".join(blocks("sh"))):
        assert f'"{extra}": ' in setup


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"frame": np.zeros((480, 640, 3), np.uint8)}
    example, drive = blocks("python")
    exec(example, names)  # our own text
    labels = names["labels"]
    assert isinstance(labels, np.ndarray)
    assert labels.shape == (480, 640)
    assert names["names"] == load_model("csfcn_nano").classes.names
    monkeypatch.setattr("rtseg.data.camera.Camera", lambda where: frames_until(said))
    said: list[str] = []
    exec(drive, names | {"print": lambda *words: said.append(" ".join(map(str, words)))})
    assert any("(480, 640)" in line or line.startswith("LATE") for line in said)


def frames_until(said: list[str]) -> Iterator[Frame]:
    """A camera that goes on until something was said of inference; no picture comes twice, which
    would be a frozen camera's."""
    end, random = time.monotonic() + 120, np.random.default_rng(0)
    while time.monotonic() < end and not any("(" in s or s.startswith("LATE") for s in said):
        yield Frame(random.integers(0, 256, (480, 640, 3), np.uint8), 0, time.monotonic_ns())
        time.sleep(0.05)


def test_linked_pages_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_the_zoo_table_is_the_code_s() -> None:
    zoo = README[README.index("\n## Zoo") :]
    for row in listed():
        cells = [
            f"`{row['model']}`",
            f"{row['params'] / 1e6:.2f} M",
            f"{row['macs_512x1024'] / 1e9:.2f}",
            f"{row['macs_1024x2048'] / 1e9:.2f}",
            ", ".join(score_texts(row["published"])) or "-",
            ", ".join(f"`{name}`" for name in row["recipes"]),
            row["paper"],
        ]
        assert f"\n| {' | '.join(cells)} |\n" in zoo


def test_versions_are_pinned() -> None:
    pinned = {
        re.split(r"[=;]", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    wanted = re.findall(r'^\s*[\'"]([\w.-]+)>=', (ROOT / "setup.py").read_text(), re.MULTILINE)
    missing = {name.lower().replace("_", "-") for name in wanted} - pinned - {"onnxruntime-gpu"}
    assert missing == set()
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize(
    ("page", "title", "least"),
    [("README.md", "What you can rely on", 10), ("docs/howto/gpu.md", "Held without a GPU", 13)],
)
def test_promises_name_tests_that_exist(page: str, title: str, least: int) -> None:
    section = (ROOT / page).read_text().split(f"## {title}")[1].split("\n## ")[0]
    promises = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(promises) >= least
    for line in promises:
        names = re.findall(r"\[(tests/\w+\.py)\]", line), re.findall(r"`(test_\w+)`", line)
        assert all(names), line
        text = "".join((ROOT / file).read_text() for file in names[0])
        assert [name for name in names[1] if f"def {name}(" not in text] == []
