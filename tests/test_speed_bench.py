"""The whole benchmark, on a fake backend and on a tiny frame."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rtseg.data.classes import CITYSCAPES
from rtseg.data.images import write_png
from rtseg.errors import ArtifactError, UsageError
from rtseg.install import localize
from rtseg.models import digest, save_checkpoint
from rtseg.models.loading import load_model
from rtseg.runtime import Segmenter
from rtseg.speed import bench as bench_function
from rtseg.speed import plan
from rtseg.speed.config import BenchConfig, as_list
from rtseg.speed.contestant import ArtifactContestant
from rtseg.speed.result import BenchResult, Report
from rtseg.speed.timing import Lane, Limits, WarmUp, race
from rtseg.usage import Noise
from speed_parts import (
    CARD,
    MACHINE,
    SIZE,
    Clock,
    FakeBackend,
    frames_of,
    onnx_with_card,
    planned,
    result_of,
)

bench_module = sys.modules["rtseg.speed.bench"]
eager_module = sys.modules["rtseg.speed.baselines"]
host_module = sys.modules["rtseg.speed.host"]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


class FakeEntry:
    title = runner = "fake"

    def __init__(self, backend: FakeBackend | None, asked_for: bool = False):
        self.fake, self.asked_for, self.backend = backend, asked_for, "fake"

    def open(self, frames, threads, device):
        if self.fake is None:
            raise ArtifactError("does not run here")
        return ArtifactContestant(Segmenter(self.fake), frames)


def bench_of(monkeypatch, entries: list[FakeEntry], **options) -> Report:
    contest = plan.Contest(CARD, entries, None, plan.NO_TORCH)  # type: ignore[arg-type]
    monkeypatch.setattr(bench_module, "plan", lambda *_, **__: ([contest], ["as planned"]))
    short = {"seconds": 0.01, "runs": 5, "eager": False, "camera_hz": None, **options}
    return bench_function(["any"], **{"frames": frames_of((4, 8)), **short})


def test_frames_and_classes_are_read_where_their_place_is_given(tmp_path, monkeypatch, backend):
    """As the command line takes them, and before anything is exported."""
    seen = []
    monkeypatch.setattr(host_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    write_png(tmp_path / "a.png", np.full((4, 8, 3), 7, np.uint8))
    entry = FakeEntry(backend)
    opened = entry.open
    monkeypatch.setattr(entry, "open", lambda frames, *a: seen.append(frames) or opened(frames, *a))
    bench_of(monkeypatch, [entry], frames=str(tmp_path))
    assert [frame.tolist() for frame in seen[0]] == [np.full((4, 8, 3), 7).tolist()]
    assert BenchConfig(["any"], classes="cityscapes").classes == CITYSCAPES
    with pytest.raises(UsageError, match="no class set is called"):
        BenchConfig(["any"], classes="citiscapes")
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match=str(tmp_path)):
        BenchConfig(["any"], frames=tmp_path)


def test_a_default_backend_that_does_not_load_is_left_out_and_named(monkeypatch, backend):
    monkeypatch.setattr(host_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    report = bench_of(monkeypatch, [FakeEntry(None), FakeEntry(backend)])
    assert len(report.rows) == 1
    assert report.warnings[0] == "as planned"
    assert [(each.runner, each.why) for each in report.absent] == [("fake", "does not run here")]
    assert "| csfcn_nano | 4x8 | fake | does not run here |" in report.to_markdown()
    assert json.loads(report.to_json())["absent"][0]["why"] == "does not run here"
    assert backend.closed


@pytest.mark.parametrize("on_gpu", [True, False])
def test_a_clock_that_is_not_locked_is_told_before_anything_is_timed(
    on_gpu, monkeypatch, backend, caplog
):
    """Once, whatever the number of rows, and not for rows on a CPU."""
    asked, timed = [], []

    class AtRest:
        @classmethod
        def read(cls, index):
            asked.append(index)
            return cls()

        def find_lock_missing(self):
            assert "compute" in backend.log  # warm
            return "the clock is not locked: lock it"

    def time_few(lanes, *_, **__):
        timed.append([record.message for record in caplog.records])
        few_rounds(lanes)

    threads = None if on_gpu else 2
    monkeypatch.setattr(FakeBackend, "info", replace(FakeBackend.info, threads=threads))
    monkeypatch.setattr(bench_module, "ClockAtRest", AtRest)
    monkeypatch.setattr(host_module, "race", time_few)
    monkeypatch.setattr(host_module, "watch_gpu", lambda *_: None)
    report = bench_of(monkeypatch, [FakeEntry(backend), FakeEntry(FakeBackend())], device="cuda:1")
    expected = ["the clock is not locked: lock it"] * on_gpu
    assert timed == [expected]
    assert [line for line in report.warnings if "clock" in line] == expected
    assert asked == [1]


def test_a_cpu_s_bench_asks_no_gpu(monkeypatch, backend):
    monkeypatch.setattr(host_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    monkeypatch.setattr(bench_module, "ClockAtRest", None)
    assert bench_of(monkeypatch, [FakeEntry(backend)], device="cpu").warnings[0] == "as planned"


def few_rounds(lanes: list[Lane]) -> None:
    race(lanes, Limits(runs=5, seconds=0.01, rounds=2, block_ms=1))


def test_a_backend_asked_for_by_name_has_to_load(monkeypatch, backend):
    with pytest.raises(ArtifactError, match="does not run here"):
        bench_of(monkeypatch, [FakeEntry(backend), FakeEntry(None, asked_for=True)])
    assert backend.closed


def test_without_pytorch_the_eager_row_is_missed_aloud(monkeypatch, backend):
    monkeypatch.setattr(host_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    report = bench_of(monkeypatch, [FakeEntry(backend)], eager=True)
    (absent,) = report.absent
    assert (absent.runner, absent.why) == ("PyTorch eager on cpu", localize(plan.NO_TORCH))
    assert report.rows[0].against_eager is None


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of our own, so that exports are made here and left to nobody."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def measured(cache) -> Report:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")  # imported by every export; none is made of this one
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
        return bench_function(["csfcn_nano"], [SIZE], ["torch"], seconds=0.1, runs=3, threads=1)


def test_a_variant_is_exported_and_measured_beside_eager(measured):
    ours, eager = measured.rows
    assert ours.subject.backend == "torch"
    assert eager.subject.backend == "eager"
    assert ours.subject.weights == eager.subject.weights
    assert ours.subject.size == eager.subject.size == SIZE
    assert ours.subject.threads == eager.subject.threads == 1
    assert eager.against_eager is None
    assert ours.against_eager is not None
    assert ours.against_eager.frame_to_labels.value > 0
    for row in (ours, eager):
        assert row.stages["compute"] > 0
        assert row.subject.macs > 10**7


def test_a_variant_is_exported_once(measured, cache, monkeypatch):
    files = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(files) == 1
    (contest,), _ = planned(["csfcn_nano"], [SIZE], ["torch"])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == files
    assert contest.entries[0].path in files


def test_artifacts_of_older_code_leave_the_cache(measured, cache, monkeypatch):
    (folder,) = (path.parent for path in cache.rglob("*.safetensors"))
    stale = folder.with_name(folder.name.rsplit("-", 1)[0] + "-00000000")
    stale.mkdir()
    planned(["csfcn_nano"], [SIZE], ["torch"])
    assert folder.exists()
    assert not stale.exists()


@pytest.mark.parametrize("frame", [SIZE, (90, 150)])
def test_eager_does_the_same_job_as_the_artifact(measured, frame):
    """What it is compared with has to give the same labels, for frames of other sizes too."""
    from rtseg.data.scenes import scenes

    (contest,), _ = planned(["csfcn_nano"], [SIZE], ["torch"])
    frames = scenes(1, frame)
    ours = contest.entries[0].open(frames, 1, "cpu")
    eager = contest.peer("eager", "cpu").open(frames, 1, None)
    labels, expected = ours.frame_to_labels(), eager.frame_to_labels()
    assert labels.shape == expected.shape == frame
    assert (labels == expected).mean() > 0.99
    ours.close()


def test_eager_is_not_made_to_wait_for_a_core_that_another_program_holds(measured, monkeypatch):
    (contest,), _ = planned(["csfcn_nano"], [SIZE], ["torch"])
    eager = contest.peer("eager", "cpu").open(frames_of(SIZE), 1, None)
    clock = Clock()
    monkeypatch.setattr(eager_module.time, "perf_counter_ns", clock)
    monkeypatch.setattr(
        eager, "frame_to_labels", lambda: clock.work(40 if eager.threads == 1 else 900)
    )
    eager.threads = 2
    eager.keep_faster_thread_count()
    assert eager.subject.threads == 1
    monkeypatch.setattr(eager, "frame_to_labels", lambda: clock.work(60 / eager.threads))
    eager.threads = 2
    eager.keep_faster_thread_count()
    assert eager.subject.threads == 2


def test_a_row_that_was_not_measured_as_asked_says_so():
    row = result_of("eager", 40, None)
    unsteady = BenchResult(**{**vars(row), "warm_up": WarmUp(200, 10.0, False, 40.0)})
    doubts = unsteady.doubts(threads=8)
    assert any("did not settle" in line for line in doubts)
    assert any("faster on 4 thread" in line for line in doubts)
    assert row.doubts(threads=4) == []


def test_the_loudest_moment_is_told(monkeypatch, backend):
    monkeypatch.setattr(host_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    noises = iter([Noise(0.4, 0.0, 1.0), Noise(0.2, 0.0, 1.0)])  # while timing, while loading
    monkeypatch.setattr(host_module.NoiseWatch, "noise", lambda self: next(noises))
    report = bench_of(monkeypatch, [FakeEntry(backend)])
    assert any("40%" in line for line in report.warnings)


@pytest.mark.parametrize(
    ("given", "values"),
    [
        ("csfcn", ["csfcn"]),
        ((512, 1024), [(512, 1024)]),
        ([(512, 1024), (4, 8)], [(512, 1024), (4, 8)]),
        ((), []),
    ],
)
def test_one_value_or_several(given, values):
    assert as_list(given) == values


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": []}, "nothing to measure"),
        ({"models": ["a", "b"], "weights": "c.pth"}, "--weights are one model's"),
        ({"models": ["a"], "runs": 0}, "runs >= 1"),
        ({"models": ["a"], "peers": ["mxnet"]}, "no peer is called 'mxnet'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(UsageError, match=message):
        BenchConfig(**fields)


def test_the_eager_row_runs_the_checkpoint_that_was_given(tmp_path, cache):
    """Its weights were random once, while the artifact's were the user's."""
    path = tmp_path / "mine.safetensors"
    mine = load_model("csfcn_nano", classes="cityscapes").network
    with torch.no_grad():
        next(mine.parameters()).add_(1)
    save_checkpoint(mine, path)
    (contest,), absent = planned([f"csfcn_nano:{path}"], [SIZE], ["torch"])
    made = contest.entries[0].path
    assert digest(contest.model.network) == digest(mine) == contest.card.weights
    assert absent == []
    # The artifact's own weights are looked for, and taken where they lie beside it.
    shutil.copy(made, tmp_path)
    (contest,), absent = planned([tmp_path / made.name])
    assert digest(contest.model.network) == contest.card.weights
    assert absent == []
    path.rename(tmp_path / "moved.safetensors")
    (contest,), (line,) = planned([tmp_path / made.name])
    assert "run other weights than its own" in line
    (contest,), absent = planned([tmp_path / made.name], weights=tmp_path / "moved.safetensors")
    assert absent == []


def test_an_artifact_of_a_network_unknown_here_says_why_no_peer_ran(tmp_path, backend):
    path = onnx_with_card(tmp_path, CARD.model_copy(update={"model": "my_unet"}))
    (contest,), _ = planned([path])
    host = host_module.Host(BenchConfig(["any"]), MACHINE, 1, lambda *_: None)
    contest.entries[:] = [FakeEntry(backend)]
    with host.open_all(contest) as opened:
        assert len(opened) == 1
    (absent,) = host.absent
    assert absent.runner == "PyTorch eager on cpu"
    assert absent.why.startswith("my_unet is not in rtseg's zoo")
    assert contest.work().macs == CARD.macs


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("csfcn --runs 5", "latency csfcn --runs 5"),
        ("csfcn --protocol fixed-rate --rate 30", "fixed-rate csfcn --rate 30"),
        ("--protocol=mlperf csfcn", "mlperf csfcn"),
        ("--table --readme R.md", "table --readme R.md"),
        ("csfcn --sequence camvid", "sequence csfcn --sequence camvid"),
    ],
)
def test_the_command_line_of_a_protocol(given, meant):
    """As earlier versions spelled it, too."""
    from rtseg.cli.bench import _named_first

    assert _named_first(given.split()) == meant.split()
