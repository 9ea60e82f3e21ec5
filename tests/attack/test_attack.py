"""Nothing that the package is given breaks it: hundreds of malformed inputs, each bounded."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attack_all import FORMATS, all_cases, quick_share
from attack_materials import Materials, make_materials
from attack_run import ONE_LINE, RIGHT, WRONG, Case, Server, build_table, run_case
from conftest import load_script
from rtseg.errors import UsageError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bounds processes as Linux does")


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    pytest.importorskip("openvino")
    pytest.importorskip("mcap")
    return make_materials(tmp_path_factory.mktemp("materials"))


@pytest.fixture(scope="module")
def cases(materials: Materials, request: pytest.FixtureRequest) -> list[Case]:
    every = all_cases(materials)
    assert len(every) >= 600
    return every if request.config.getoption("--slow") else quick_share(every)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.mark.parametrize("row", FORMATS)
def test_nothing_breaks_it(row: str, cases: list[Case], server: Server, tmp_path: Path) -> None:
    verdicts = [run_case(case, server, tmp_path) for case in cases if case.format == row]
    assert verdicts
    wrong = [f"{verdict.case}: {verdict.why}" for verdict in verdicts if verdict.kind == WRONG]
    assert wrong == []


@pytest.mark.parametrize(
    "kinds", [("kill", "swap"), ("stop", "sink"), ("fill", "ring"), ("camera", "flood")], ids=str
)
def test_every_frame_is_accounted_for(
    kinds: tuple[str, str], materials: Materials, tmp_path: Path
) -> None:
    """A short drive under attack of two kinds; `scripts/soak.py` runs long ones of all."""
    pytest.importorskip("uvicorn")
    soak = load_script("soak").Soak(materials.onnx, tmp_path, seed=5, kinds=kinds)
    assert soak.run(8.0) == []
    assert soak.attacks


def test_the_soak_sees_a_frame_that_is_lost(materials: Materials, tmp_path: Path) -> None:
    soak = load_script("soak").Soak(materials.onnx, tmp_path, kinds=("crowd",))
    publish = soak.drive.loop.counters.publish
    soak.drive.loop.counters.publish = lambda: None if soak.rng.random() < 0.2 else publish()
    faults = "; ".join(soak.run(3.0))
    assert "frames are open" in faults
    assert "results in the ledger of" in faults


def probe(name: str) -> Case:
    return Case("tests", name, lambda folder: None, probe=f"test_attack:{name}")


def answer(folder: Path) -> None:
    """Right."""


def refuse(folder: Path) -> None:
    raise UsageError("no such thing: take another")


def refuse_in_two_lines(folder: Path) -> None:
    raise UsageError("no\nsuch thing")


def break_down(folder: Path) -> None:
    raise KeyError("a bug")


def leave_a_file(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / ".labels.png.x7f").write_bytes(b"half")
    refuse(folder)


def leave_a_damaged_picture(folder: Path) -> None:
    (folder / "labels.png").write_bytes(b"half")


def leave_a_process(folder: Path) -> None:
    if not os.fork():
        os.setsid()
        os.execvp("sleep", ["sleep", "60"])


def take_all_memory(folder: Path) -> None:
    bytearray(1 << 34)


def end_by_a_signal(folder: Path) -> None:
    os.kill(os.getpid(), 11)


def say_too_much(folder: Path) -> None:
    sys.stderr.write("frames of nothing\n" * 10_000)


def write_to_tmp(folder: Path) -> None:
    tempfile.mkstemp(dir=os.environ["TMPDIR"])


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("answer", RIGHT, ""),
        ("refuse", ONE_LINE, "no such thing"),
        ("refuse_in_two_lines", WRONG, "lines of others"),
        ("break_down", WRONG, "a traceback"),
        ("leave_a_file", WRONG, "left: out/.labels"),
        ("leave_a_damaged_picture", WRONG, "left"),
        ("leave_a_process", WRONG, "processes left"),
        ("take_all_memory", WRONG, ""),
        ("end_by_a_signal", WRONG, "exit code -11"),
        ("say_too_much", WRONG, "characters on stderr"),
        ("write_to_tmp", WRONG, "left: tmp/"),
    ],
)
def test_the_judge_sees(name: str, kind: str, why: str, server: Server, tmp_path: Path) -> None:
    verdict = run_case(probe(name), server, tmp_path)
    assert (verdict.kind, why in verdict.why) == (kind, True), verdict


def test_the_table_counts(server: Server, tmp_path: Path) -> None:
    verdicts = [run_case(probe(name), server, tmp_path) for name in ("answer", "refuse", "refuse")]
    assert "| tests | 3 | 1 | 2 | 0 |" in build_table(verdicts)
