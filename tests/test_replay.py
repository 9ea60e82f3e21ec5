"""Updates on a log: an equal one passes, and each planted fault is refused by the bar's name."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, as_json
from rtseg.cli._console import JobUndecided
from rtseg.cli.replay import report_baseline, report_replay
from rtseg.data.files import digest_of
from rtseg.data.frames import open_source
from rtseg.data.images import write_png
from rtseg.data.scenes import scene
from rtseg.errors import BackendError, UsageError
from rtseg.export import export
from rtseg.models.loading import Model, load_model
from rtseg.runtime import Segmenter, load
from rtseg.speed.energy import read_energy_j
from rtseg.speed.replay import (
    LONGER,
    ReplayConfig,
    ReplayResult,
    compare_here,
    judge,
    play_turns,
    record,
    replay,
    until_decided,
)
from rtseg.speed.replay_bars import ReplayBars, read_bars
from rtseg.speed.replay_elsewhere import replay_elsewhere
from rtseg.speed.replay_figures import find_quantiles, find_slope
from rtseg.speed.replay_report import describe_replay
from rtseg.speed.replay_side import ReplaySide, describe_side
from speed_parts import Clock

SIZE = 64, 128
FRAMES = 20
RUNS = 24  # the log, and a part of it again
MASKS_ONLY = ReplayBars(latency_ratio=None, memory_growth_mb=None)


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    for number in range(FRAMES):
        write_png(folder / f"{number}.png", scene(SIZE, number))
    return folder


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, nano: Model) -> Path:
    (made,) = export(nano, to="onnx", size=SIZE, out=tmp_path_factory.mktemp("old"))
    return Path(made.path)


class Wrapped(Segmenter):
    """An artifact whose calls take time of our own clock, and may do something else too."""

    def __init__(self, path: Path, work: Callable[[], object]):
        super().__init__(load(path, "onnxruntime", "cpu").backend)
        self.work = work

    def __call__(self, frame: Any) -> Any:
        self.work()
        return super().__call__(frame)


class Memory:
    """A process of our own, in bytes."""

    def __init__(self) -> None:
        self.resident = 10**9

    def __call__(self) -> int:
        return self.resident

    def grow(self, size: int) -> None:
        self.resident += size


def replay_wrapped(
    artifact: Path,
    frames: Path,
    clock: Clock,
    old: Callable[[], object],
    new: Callable[[], object],
    memory: Memory,
) -> ReplayResult:
    with Wrapped(artifact, old) as before, Wrapped(artifact, new) as after:
        return compare_here(
            open_source(frames),
            (before, describe_side(artifact, before)),
            (after, describe_side(artifact, after)),
            RUNS,
            clock,
            memory,
        )


def refused(done: ReplayResult, bars: ReplayBars | None = None) -> list[str]:
    done.checks = judge(done, bars or ReplayBars())
    return [each.bar for each in done.refusals]


def jitter(clock: Clock, mean_ms: float, seed: int, part: float = 0.1) -> Callable[[], None]:
    """A call's time: 10 % around the mean, as a machine that does other things has it."""
    random = np.random.default_rng(seed)
    return lambda: clock.work(mean_ms * random.uniform(1 - part, 1 + part))


def test_twenty_equal_updates_pass(artifact: Path, frames: Path) -> None:
    for seed in range(20):
        clock = Clock()
        old, new = (jitter(clock, 10, 2 * seed + each) for each in (0, 1))
        done = replay_wrapped(artifact, frames, clock, old, new, Memory())
        assert refused(done) == [], done.failure()
        assert done.masks.agreement == 1
        assert len(done.masks.frames) == FRAMES
        assert done.old.runs == done.new.runs >= RUNS


def test_a_fifth_more_latency_is_refused(artifact: Path, frames: Path) -> None:
    for seed in range(5):
        clock = Clock()
        old, new = (jitter(clock, ms, 2 * seed + ms, part=0.03) for ms in (10, 12))
        done = replay_wrapped(artifact, frames, clock, old, new, Memory())
        assert refused(done) == ["latency_ratio"]
        (check,) = done.refusals
        assert check.value == pytest.approx(1.2, abs=0.08)  # 3 % of either side at most


def test_noise_is_no_latency(artifact: Path, frames: Path) -> None:
    """Turns that take 10 or 30 ms by chance: the ratio is beyond the bar, its interval holds 1."""
    clock = Clock()
    done = replay_wrapped(
        artifact, frames, clock, jitter(clock, 10, 0), jitter(clock, 10, 1), Memory()
    )
    done.old.rounds = [[10.0, 11.0], [30.0, 31.0], [10.0, 11.0], [30.0, 31.0], [10.0, 11.0]]
    done.new.rounds = [[30.0, 31.0], [10.0, 11.0], [30.0, 31.0], [10.0, 11.0], [30.0, 31.0]]
    assert refused(done) == []
    check = next(each for each in done.checks if each.bar == "latency_ratio")
    assert (check.passed, check.value) == (None, pytest.approx(30 / 11, rel=0.1))
    assert check.undecided
    assert check.text.startswith("not decided: the machine was busy: ")
    with pytest.raises(JobUndecided, match="latency_ratio: not decided") as caught:
        report_replay(done, "net.onnx", None, True)
    assert caught.value.exit_code == 3
    assert not describe_replay(done)["passed"]


def test_near_the_bar_is_not_decided_in_other_words(artifact: Path, frames: Path) -> None:
    clock = Clock()
    done = replay_wrapped(
        artifact, frames, clock, jitter(clock, 10, 0), jitter(clock, 11, 1), Memory()
    )
    done.old.rounds = [[10.0]] * 6
    done.new.rounds = [[10.8], [11.2]] * 3
    assert refused(done) == []
    check = next(each for each in done.checks if each.undecided)
    assert "the update is too near the bar" in check.text


@pytest.mark.parametrize(("slower", "names"), [(1.0, []), (1.2, ["latency_ratio"])])
def test_a_busy_machine_decides_all_the_same(
    artifact: Path, frames: Path, slower: float, names: list[str]
) -> None:
    """Its calls take up to four times as long for a while, whichever side has the turn; and each
    turn by itself up to a third longer."""
    clock, random = Clock(), np.random.default_rng(0)
    turns: dict[tuple[float, int], float] = {}

    def work(mean_ms: float) -> Callable[[], None]:
        def run() -> None:
            second = clock() // 10**9
            own = turns.setdefault((mean_ms, clock() // 10**8), random.uniform(1, 1.33))
            clock.work(mean_ms * own * (1 + 3 * (second % 2)))

        return run

    with Wrapped(artifact, work(10)) as old, Wrapped(artifact, work(10 * slower)) as new:
        done = compare_here(
            open_source(frames),
            (old, describe_side(artifact, old)),
            (new, describe_side(artifact, new)),
            80,
            clock,
            Memory(),
            limit=1.1,
        )
    assert refused(done) == names
    assert not done.undecided, done.undecided
    assert done.old.runs <= 80 * LONGER + 8


def test_runs_are_taken_until_the_ratio_is_decided() -> None:
    side = recorded_side([[11.0]])
    old = [[10.0]]
    assert not until_decided(1, None, old)(side)
    assert until_decided(2, None, old)(side)
    side.rounds, old[:] = [[10.9], [11.1]] * 5, [[10.0]] * 10
    assert until_decided(10, 1.1, old)(side)
    assert not until_decided(10, 1.2, old)(side)
    side.rounds, old[:] = [[10.9], [11.1]] * 25, [[10.0]] * 50
    assert not until_decided(10, 1.1, old)(side)  # enough


@pytest.mark.parametrize(
    ("count", "turns"), [(3, [3]), (8, [8]), (15, [15]), (16, [8, 8]), (26, [8, 8, 10])]
)
def test_no_turn_is_shorter_than_a_block_where_the_log_is_not(
    tmp_path: Path, count: int, turns: list[int]
) -> None:
    """The first calls of a turn are slow on both sides, which hides a slower update."""
    players = [Turns(), Turns()]
    for number in range(count):
        write_png(tmp_path / f"{number}.png", scene((8, 16), number))
    play_turns(open_source(tmp_path), players, lambda side: False, lambda *seen: None)  # type: ignore[arg-type]
    assert players[0].lengths == players[1].lengths == turns


class Turns:
    """A player that notes how long its turns are."""

    side = None

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def take_turn(self, images: Sequence[Any]) -> list[Any]:
        self.lengths.append(len(images))
        return list(images)


def recorded_side(rounds: list[list[float]]) -> ReplaySide:
    return ReplaySide(
        *("net", "net.onnx", "", "fp32", SIZE, ("road",)), *("ort", "1", "cpu", 1, "cpu", "3"),
        rounds=rounds,
    )  # fmt: skip


def test_a_megabyte_a_frame_is_refused(artifact: Path, frames: Path) -> None:
    clock, memory = Clock(), Memory()
    done = replay_wrapped(
        artifact, frames, clock, jitter(clock, 10, 0),
        lambda: (clock.work(10), memory.grow(10**6)), memory,
    )  # fmt: skip
    assert refused(done) == ["memory_growth_mb"]
    assert done.refusals[0].value == pytest.approx(1.0, abs=0.01)


def test_real_memory_is_told_apart_by_side(artifact: Path, frames: Path) -> None:
    """In the memory of this process: the side that keeps 1 MB a frame is the one that is told."""
    kept: list[Any] = []
    with (
        Wrapped(artifact, lambda: kept.append(np.ones(10**6, np.uint8))) as leaking,
        load(artifact, "onnxruntime", "cpu") as sound,
    ):
        done = compare_here(
            open_source(frames),
            (sound, describe_side(artifact, sound)),
            (leaking, describe_side(artifact, leaking)),
            RUNS,
        )
    assert "memory_growth_mb" in refused(done, ReplayBars(latency_ratio=None))
    old, new = (find_slope(side.memory_mib) for side in (done.old, done.new))
    assert old is not None
    assert new is not None
    assert old < new  # by how full the heap is, the sound side needs a little too


def test_one_wrong_convolution_is_refused(artifact: Path, frames: Path, tmp_path: Path) -> None:
    wrong = load_model("csfcn_nano:camvid")
    convolutions = [m for m in wrong.network.modules() if isinstance(m, torch.nn.Conv2d)]
    with torch.no_grad():
        middle = convolutions[len(convolutions) // 2]
        middle.weight.copy_(middle.weight.flip(0))
    (made,) = export(wrong, to="onnx", size=SIZE, out=tmp_path)
    done = replay(str(frames), str(made.path), str(artifact), ReplayConfig(runs=2), MASKS_ONLY)
    assert "agreement" in refused(done, MASKS_ONLY)
    assert done.masks.worst
    assert done.masks.worst[0].figures.agreement == done.masks.frame_agreement


def test_another_resize_is_refused(
    artifact: Path, frames: Path, tmp_path: Path, nano: Model
) -> None:
    (made,) = export(nano, to="onnx", size=(96, 192), out=tmp_path)
    done = replay(str(frames), str(made.path), str(artifact), ReplayConfig(runs=2), MASKS_ONLY)
    assert {"agreement", "border_agreement"} <= set(refused(done, MASKS_ONLY))


def test_a_recorded_baseline_stands_for_the_old_side(
    artifact: Path, frames: Path, tmp_path: Path
) -> None:
    baseline = tmp_path / "baseline"
    for _ in range(2):  # the second one takes the first one's place
        record(str(frames), str(artifact), baseline, ReplayConfig(runs=RUNS))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["baseline"]
    done = replay(str(frames), str(artifact), str(baseline), ReplayConfig(runs=2), MASKS_ONLY)
    assert refused(done, MASKS_ONLY) == []
    assert not done.interleaved
    assert done.old.digest == digest_of(artifact)


def test_a_baseline_with_uneven_times_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_baseline(recorded_side([[10.0, 10.1]] * 10), tmp_path, as_json=False)
    told = capsys.readouterr()
    assert "p50 10" in told.out.replace("\n", " ")
    assert "latency_ratio" not in told.err
    report_baseline(recorded_side([[10.0], [30.0]] * 5), tmp_path, as_json=False)
    assert "wider than the default latency_ratio, 1.1" in capsys.readouterr().err.replace("\n", " ")


def test_other_frames_than_the_baseline_s_are_refused(
    artifact: Path, frames: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    for number in range(2):
        write_png(log / f"{number}.png", scene(SIZE, number))
    record(str(log), str(artifact), tmp_path / "baseline", ReplayConfig(runs=2))
    write_png(log / "1.png", scene(SIZE, 7))
    again = str(log), str(artifact), str(tmp_path / "baseline"), ReplayConfig(runs=2), MASKS_ONLY
    assert refused(replay(*again), MASKS_ONLY)[0] == "input_frames"
    write_png(log / "2.png", scene(SIZE, 2))
    with pytest.raises(UsageError, match="record the baseline again"):
        replay(*again)


def test_a_folder_that_is_no_baseline_is_left_alone(
    artifact: Path, frames: Path, tmp_path: Path
) -> None:
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        record(str(frames), str(artifact), tmp_path, ReplayConfig(runs=2))
    assert [each.name for each in tmp_path.iterdir()] == ["diary.txt"]
    with pytest.raises(UsageError, match="holds no baseline"):
        replay(str(frames), str(artifact), str(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [{"rounds": []}, {"rounds": [["x"]]}, {"size": 3}, {"size": [float("inf"), 1]}, {"new": 1}],
)
def test_a_damaged_baseline_is_refused_in_one_line(
    artifact: Path, frames: Path, tmp_path: Path, damage: dict[str, object]
) -> None:
    record(str(frames), str(artifact), tmp_path / "baseline", ReplayConfig(runs=2))
    path = tmp_path / "baseline" / "replay.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "side": facts["side"] | damage}))
    with pytest.raises(UsageError, match="holds no baseline, or a damaged one"):
        replay(str(frames), str(artifact), str(path.parent))


def test_a_fallen_certified_share_is_refused(artifact: Path, frames: Path) -> None:
    clock = Clock()
    same = jitter(clock, 10, 0)
    done = replay_wrapped(artifact, frames, clock, same, same, Memory())
    done.old.certified, done.new.certified = [0.97, 0.95], [0.93, 0.91]
    assert refused(done) == ["certified_drop"]
    done.new.certified = None
    assert refused(done) == []


def test_another_machine_s_times_are_not_judged(artifact: Path, frames: Path) -> None:
    clock = Clock()
    old, new = jitter(clock, 10, 0), jitter(clock, 30, 1)
    done = replay_wrapped(artifact, frames, clock, old, new, Memory())
    done.old.machine = "another"
    assert refused(done) == []
    check = next(each for each in done.checks if each.bar == "latency_ratio")
    assert check.passed is None
    assert "another machine" in check.text


@pytest.fixture
def other_python(tmp_path: Path) -> str:
    """An interpreter that is called otherwise; its environment is this one."""
    path = tmp_path / "other-python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_another_interpreter_takes_turns_with_this_one(
    artifact: Path, frames: Path, other_python: str, tmp_path: Path, rtseg: Run
) -> None:
    (bars := tmp_path / "bars.yaml").write_text("latency_ratio: null\nmemory_growth_mb: null\n")
    command = "replay", frames, "--model", artifact, "--runs", 30, "--bars", bars, "--json"
    facts = as_json(rtseg(*command, "--against-python", other_python))
    assert facts["passed"]
    assert (facts["agreement"], facts["interleaved"], facts["frames"]) == (1, True, FRAMES)
    assert facts["old"]["runs"] == facts["new"]["runs"] >= 30


def test_another_interpreter_that_fails_is_told_in_its_words(
    artifact: Path, frames: Path, other_python: str
) -> None:
    given = str(frames), str(artifact)
    with pytest.raises(UsageError, match="no interpreter runs as /no/python"):
        replay_elsewhere("/no/python", *given, str(artifact))
    with pytest.raises(BackendError, match=r"replay failed: .*no artifact at /no/net\.onnx"):
        replay_elsewhere(other_python, *given, "/no/net.onnx")
    with pytest.raises(BackendError, match="replay failed"):
        replay_elsewhere("/bin/false", *given, str(artifact))


def test_bounds_of_another_backend_are_named(artifact: Path, frames: Path) -> None:
    with load(artifact, "onnxruntime", "cpu") as segmenter:
        proof = segmenter.card.proof
        assert proof is not None
        others = tuple(each.model_copy(update={"arithmetic": "tpu"}) for each in proof.bounds)
        proof = proof.model_copy(update={"bounds": others})
        segmenter.card = segmenter.card.model_copy(update={"proof": proof})
        side = describe_side(artifact, segmenter)
    assert "its error is known in tpu, not in onnxruntime cpu fp32" in side.uncertified


def test_the_command_refuses_by_name_and_reports(
    artifact: Path, frames: Path, tmp_path: Path, nano: Model, rtseg: Run
) -> None:
    (made,) = export(nano, to="onnx", size=(96, 192), out=tmp_path)
    out = tmp_path / "report"
    done = rtseg(
        "replay", frames, "--model", made.path, "--against", artifact, "--runs", 2, "-o", out
    )
    assert done.returncode == 1
    assert "the update is refused: agreement: pixels with the old label" in done.stderr
    assert sorted(os.listdir(out)) == [
        "report.json", "report.md", *(f"worst_{place}.png" for place in (1, 2, 3)),
    ]  # fmt: skip
    facts = json.loads((out / "report.json").read_text())
    assert "agreement" in facts["refused"]
    page = (out / "report.md").read_text()
    assert "REFUSED" in page
    assert "![frame, old, new, difference](worst_1.png)" in page
    assert "agreement" in page
    assert rtseg("replay", frames, "--model", artifact).returncode == 2
    done = rtseg("replay", frames, "--model", artifact, "--against", artifact, "--runs", 2)
    assert "was held against itself: equal masks say nothing" in done.stderr


def test_bars_are_read_and_wrong_ones_named(tmp_path: Path) -> None:
    (path := tmp_path / "bars.yaml").write_text("agreement: 0.9\np99_ratio: 1.3\n")
    assert read_bars(path) == ReplayBars(agreement=0.9, p99_ratio=1.3)
    for text, match in (
        ("agreemnt: 0.9", "no bar is called 'agreemnt'"),
        ("agreement: high", "is a number"),
        ("class_share: null", "is a number"),
        ("- 1", "should have lines"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=match):
            read_bars(path)


def test_a_single_step_of_memory_is_no_growth() -> None:
    assert find_slope([0.0] * 10 + [50.0] * 30) == 0
    assert find_slope([0.0] * 19) is None


def test_quantiles_beyond_the_runs_are_left_out(artifact: Path, frames: Path) -> None:
    clock = Clock()
    same = jitter(clock, 10, 0)
    done = replay_wrapped(artifact, frames, clock, same, same, Memory())
    assert list(find_quantiles(done.old)) == ["p50"]
    done.old.rounds *= 50
    found = find_quantiles(done.old)
    assert list(found) == ["p50", "p99", "p99.9"]
    assert all(low <= value <= high for value, low, high in found.values())


def test_energy_is_the_sum_of_the_packages(tmp_path: Path) -> None:
    for number, joules in enumerate((3, 4)):
        (zone := tmp_path / f"intel-rapl:{number}").mkdir()
        (zone / "energy_uj").write_text(f"{joules}000000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the first
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("1000000\n")
    assert (read_energy_j(tmp_path) or 0) >= 7
