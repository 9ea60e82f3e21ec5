"""Measuring: turns and warm-up on a clock of our own, then the whole benchmark on a tiny frame."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rtseg.runtime import ArtifactError, Card, Segmenter
from rtseg.runtime.backend import Info, InTurn
from rtseg.speed import bench as bench_function
from rtseg.speed import contestants, machine, memory, plan
from rtseg.speed.clock import Lane, Limits, Ratio, WarmUp, race, ratio, warm_up
from rtseg.speed.contestants import Artifact, Laps
from rtseg.speed.machine import Machine, Noise, Watch
from rtseg.speed.result import STAGES, Report, Result, Speedup, Subject, Timing

bench_module = sys.modules["rtseg.speed.bench"]
SIZE = (64, 128)


class Clock:
    """Time that passes only when work is done."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns

    def work(self, ms: float) -> None:
        self.ns += round(ms * 1e6)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_warm_up_ends_once_the_median_is_stable(clock):
    times = iter([400, 200, 90, 40, 20, *[10] * 100])
    warmed = warm_up(lambda: clock.work(next(times)), clock)
    assert warmed.steady
    assert 10 <= warmed.runs <= 20  # the slow starts have left both windows
    assert warmed.last_ms == 10


def test_warm_up_gives_up_on_times_that_never_settle(clock):
    growing = iter(range(10, 10_000, 10))
    warmed = warm_up(lambda: clock.work(next(growing)), clock, patience_s=2)
    assert not warmed.steady
    assert warmed.seconds == pytest.approx(2, abs=0.3)


def lane_of(clock: Clock, whole_ms: float, network_ms: float, log: list[str], name: str) -> Lane:
    def call(what: str, ms: float):
        def run() -> None:
            log.append(f"{name} {what}")
            clock.work(ms)

        return run

    calls = {"whole": call("whole", whole_ms), "network": call("network", network_ms)}
    return Lane(calls, aside=call("aside", whole_ms))


def test_every_lane_has_one_turn_a_round_until_the_slowest_has_enough(clock):
    log: list[str] = []
    lanes = [lane_of(clock, 10, 8, log, "fast"), lane_of(clock, 500, 400, log, "slow")]
    race(lanes, Limits(runs=12, seconds=100, rounds=5, block_ms=100), clock)
    for lane, count in zip(lanes, (9, 1), strict=True):  # the fast one's first run is not counted
        assert [len(turn) for turn in lane.rounds["whole"]] == [count] * 12
        assert len(lane.rounds["network"]) == 12
    assert set(lanes[0].times("whole")) == {10}
    assert set(lanes[1].times("network")) == {400}
    assert log.count("fast aside") == log.count("slow aside") == 12
    order = [line.split()[0] for line in log if line.endswith("aside")]
    assert order[:2] != order[2:4] or order[2:4] != order[4:6]  # shuffled


def test_a_race_ends_after_its_seconds_but_never_before_its_rounds(clock):
    lanes = [lane_of(clock, 100, 100, [], "one")]
    race(lanes, Limits(runs=1000, seconds=2, rounds=5, block_ms=50), clock)
    assert len(lanes[0].times("whole")) == 20
    race(lanes, Limits(runs=1000, seconds=0.1, rounds=5, block_ms=50), clock)
    assert len(lanes[0].times("whole")) == 5


def test_the_cold_first_run_of_a_turn_is_not_counted(clock):
    running: list[str] = []

    def call(name: str):
        def run() -> None:
            cold = running[-1:] != [name]
            running.append(name)
            clock.work(50 if cold else 10)

        return run

    lanes = [Lane({"whole": call("a")}), Lane({"whole": call("b")})]
    race(lanes, Limits(runs=30, seconds=100, block_ms=100), clock, seed=3)
    for lane in lanes:
        assert all(max(turn) == 10 for turn in lane.rounds["whole"])


def test_progress_goes_from_nothing_to_all(clock):
    shares: list[float] = []
    race([lane_of(clock, 10, 10, [], "one")], Limits(runs=50), clock, progress=shares.append)
    assert shares[0] == 0
    assert shares[-1] == 1
    assert shares == sorted(shares)


def test_limits_refuse_what_cannot_be_measured():
    with pytest.raises(ValueError, match="seconds > 0"):
        Limits(seconds=0)


def test_the_ratio_is_of_the_medians_and_its_interval_holds_it():
    ours, theirs = [[10.0, 11, 12]] * 6, [[30.0, 33, 36]] * 6
    assert ratio(ours, theirs) == Ratio(3, 3, 3)
    generator = np.random.default_rng(0)
    noisy = [list(generator.normal(10, 1, 20)) for _ in range(12)]
    found = ratio(noisy, [[2 * t for t in turn] for turn in noisy[::-1]])
    assert found.low < found.value < found.high
    assert found.low < 2 < found.high


def test_a_machine_that_slows_down_for_all_does_not_widen_the_ratio():
    load = [1.0, 1.1, 1.5, 2.0, 1.2, 1.0, 3.0, 1.0]
    ours = [[10 * slow] * 5 for slow in load]
    theirs = [[40 * slow] * 5 for slow in load]
    found = ratio(ours, theirs)
    assert found.high - found.low < 0.01
    assert ratio(ours, theirs[::-1]).high - ratio(ours, theirs[::-1]).low > 0.5


def test_the_ratio_counts_rounds_rather_than_runs():
    """A thousand runs in four turns that differ by turn are four facts, not a thousand."""
    ours = [[float(slow)] * 250 for slow in (10, 20, 10, 20)]
    assert ratio(ours, [[10.0]] * 4).low <= 0.5
    assert ratio(ours, [[10.0]] * 4).high >= 1


def test_turns_of_different_races_are_refused():
    with pytest.raises(ValueError, match="one race"):
        ratio([[1.0]], [[1.0], [1.0]])


def test_timing_is_of_all_runs():
    timing = Timing.of(np.arange(1.0, 102))
    assert timing.runs == 101
    assert (timing.mean_ms, timing.p50_ms, timing.p90_ms, timing.max_ms) == (51, 51, 91, 101)
    assert timing.p99_ms == 100
    assert timing.std_ms == pytest.approx(29.1548)
    assert timing.fps == pytest.approx(1000 / 51, abs=1e-3)


CARD = Card(
    model="csfcn_nano",
    size=(4, 8),
    precision="fp32",
    outputs=("labels",),
    classes=("road", "car"),
    palette=((0, 0, 0), (1, 1, 1)),
    class_set="two",
    mean=(0, 0, 0),
    std=(1, 1, 1),
    weights="0123456789abcdef",
    weights_from="nowhere",
    trained=False,
    macs=5_000_000,
    params=7,
    tools={},
)


class FakeBackend(InTurn):
    card = CARD
    info = Info("fake", "1.0", "cpu", 2, "fp32", (("hint", "latency"),))

    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed = False

    def upload(self, image):
        assert image.shape == (1, 4, 8, 3)
        self.log.append("upload")

    def compute(self):
        self.log.append("compute")

    def download(self):
        self.log.append("download")
        return np.ones((1, 4, 8), np.uint8)

    def synchronise(self):
        self.log.append("synchronise")

    def logits(self):
        return None

    def close(self):
        self.closed = True


def frames_of(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [np.zeros((*size, 3), np.uint8) for size in sizes]


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def test_an_artifact_is_timed_through_its_segmenter(backend):
    contestant = Artifact(Segmenter(backend), frames_of((9, 7)), "fake.onnx")
    backend.log.clear()
    assert contestant.frame_to_labels().shape == (9, 7)
    assert backend.log == ["upload", "compute", "download"]
    backend.log.clear()
    contestant.network()
    assert backend.log == ["compute", "synchronise"]
    subject = contestant.subject
    assert (subject.model, subject.weights, subject.macs) == ("csfcn_nano", CARD.weights, 5_000_000)
    assert (subject.backend, subject.version, subject.threads) == ("fake", "1.0", 2)
    contestant.close()
    assert backend.closed


def test_stages_end_where_the_work_of_each_has_ended(backend, monkeypatch, clock):
    monkeypatch.setattr(contestants.time, "perf_counter_ns", clock)
    for name, ms in (("upload", 2), ("compute", 30), ("download", 4)):
        step = getattr(FakeBackend, name)

        def slow(self, *arguments, step=step, ms=ms):
            clock.work(ms)
            return step(self, *arguments)

        monkeypatch.setattr(FakeBackend, name, slow)
    monkeypatch.setattr(FakeBackend, "synchronise", lambda self: clock.work(1))
    contestant = Artifact(Segmenter(backend), frames_of((4, 8)))
    contestant.staged()
    assert contestant.laps == [
        {
            "preprocess": 0,
            "host_to_device": 3,
            "compute": 31,
            "device_to_host": 4,
            "post": 0,
        }
    ]


def test_a_stage_that_comes_twice_adds_up(monkeypatch, clock):
    monkeypatch.setattr(contestants.time, "perf_counter_ns", clock)
    laps = Laps()
    for stage in ("preprocess", "compute", "preprocess"):
        clock.work(5)
        laps.lap(stage)
    assert laps.times["preprocess"] == 10
    assert list(laps.times) == list(STAGES)


MACHINE = Machine(
    "Some CPU", 4, ("avx2", "vnni"), 16.0, "Linux 6 x86_64", "3.11.7", (), {"rtseg": "0.1.0"}
)


def result_of(backend: str, ms: float, against: Speedup | None) -> Result:
    subject = Subject(
        "csfcn_nano", "0123456789abcdef", False, SIZE, "fp32", backend, "1", "cpu", 4, {}, 10**9, ""
    )
    timing = Timing.of(np.full(5, ms))
    stages = dict.fromkeys(STAGES, ms / 5)
    warmed, noise = WarmUp(6, 0.1, True, ms), Noise(0.0, 0.0, 0.5)
    return Result(subject, timing, timing, stages, 12.0, None, warmed, against, noise, MACHINE)


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
    assert markdown.count("| csfcn_nano | 64x128 | openvino fp32 |") == 2
    assert "| 4.00 | 3.50-4.50 |" in markdown
    assert "Some CPU, 4 cores (avx2 vnni)" in markdown
    assert "csfcn_nano 0123456789ab (random)" in markdown
    assert "the machine was busy" in markdown
    console = Console(width=160, file=io.StringIO())
    console.print(report.table())
    text = console.file.getvalue()
    assert "3.50-4.50" in text
    assert "eager fp32" in text


X86 = """processor : 0
model name\t: Fast CPU
flags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16

processor : 1
flags : none"""
ARM = "processor : 0\nFeatures : fp asimd asimddp i8mm bf16"


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        (X86, ("avx2", "avx512", "vnni", "amx_bf16")),
        (ARM, ("bf16", "neon", "dotprod", "i8mm")),
        ("", ()),
    ],
)
def test_instruction_sets_are_read_from_the_kernel(monkeypatch, text, sets):
    monkeypatch.setattr(machine, "_text", lambda path: text if path == "/proc/cpuinfo" else "")
    here = machine.machine()
    assert here.instruction_sets == sets
    assert here.cpu == "Fast CPU" if text == X86 else here.cpu


def linux_of(monkeypatch, cpus: int, files: dict[str, str]) -> None:
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setattr(machine, "_usable_cpus", lambda: list(range(cpus)))
    monkeypatch.setattr(machine, "_text", lambda path: files.get(path, ""))


def test_two_threads_of_a_core_count_once(monkeypatch):
    name = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    linux_of(monkeypatch, 4, {name.format(cpu): f"{cpu % 2},{cpu % 2 + 2}" for cpu in range(4)})
    assert machine.usable_cores() == 2


def test_a_container_may_grant_less_than_all_cores(monkeypatch):
    linux_of(monkeypatch, 8, {"/sys/fs/cgroup/cpu.max": "150000 100000"})
    assert machine.usable_cores() == 2
    linux_of(monkeypatch, 8, {"/sys/fs/cgroup/cpu.max": "max 100000"})
    assert machine.usable_cores() == 8


def test_noise_is_what_others_did_while_we_ran(monkeypatch):
    processors = iter([(100.0, 0.0, 1000.0), (116.0, 2.0, 1020.0)])
    own = iter([50.0, 60.0])
    monkeypatch.setattr(machine, "_processor_seconds", lambda: next(processors))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    noise = Watch().noise()
    assert (noise.others, noise.stolen) == (0.3, 0.1)
    assert not noise.quiet
    assert "30%" in (noise.warning() or "")


def test_noise_is_not_claimed_where_nobody_can_tell(monkeypatch):
    monkeypatch.setattr(machine, "_processor_seconds", lambda: None)
    noise = Watch().noise()
    assert noise.others is None
    assert noise.warning() is None
    assert not noise.quiet
    assert Noise(0.01, 0.0, 0.1).quiet


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set's peak")
def test_peak_memory_is_of_what_ran_meanwhile():
    peak = memory.PeakMemory()
    block = np.ones(64 * 2**20, np.uint8)
    assert block.any()
    del block
    assert 60 < (peak.host_mib() or 0) < 90
    assert (memory.PeakMemory().host_mib() or 0) < 30


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the resident set's peak")
def test_memory_that_an_earlier_contestant_freed_is_counted_for_the_next():
    blocks = [bytes(60_000) for _ in range(1000)]  # too small to be mapped on their own
    last = blocks[-1]
    del blocks
    peak = memory.PeakMemory()
    blocks = [bytes(60_000) for _ in range(1000)]
    assert (peak.host_mib() or 0) > 40
    assert len(last) == len(blocks[0])


def onnx_with_card(folder: Path, card: Card = CARD) -> Path:
    from rtseg.runtime.card import append_card

    path = folder / "some.onnx"
    path.write_bytes(append_card(b"model", card))
    return path


def planned(models, sizes=(), backends=(), precisions=()):
    return plan.plan([str(m) for m in models], sizes, backends, precisions, "cpu", lambda *_: None)


def test_an_artifact_is_measured_in_every_backend_that_reads_it(tmp_path):
    path = onnx_with_card(tmp_path)
    (contest,), absent = planned([path])
    assert {entry.backend for entry in contest.entries} <= {"openvino", "onnxruntime"}
    assert contest.title == "csfcn_nano 4x8"
    assert not any(entry.asked_for for entry in contest.entries)
    assert absent == []


def test_artifacts_of_one_network_and_size_meet_in_one_contest(tmp_path):
    paths = []
    for name, size in (("a", (4, 8)), ("b", (4, 8)), ("c", (8, 16))):
        (tmp_path / name).mkdir()
        paths.append(onnx_with_card(tmp_path / name, CARD.model_copy(update={"size": size})))
    contests, _ = planned(paths, backends=["onnxruntime"])
    assert [len(contest.entries) for contest in contests] == [2, 1]


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"sizes": [(8, 8)]}, "takes 4x8 only, .* name csfcn_nano"),
        ({"precisions": ["fp16"], "backends": ["onnxruntime"]}, "is fp32 and does not run as fp16"),
        ({"backends": ["cuda"]}, "no backend is called 'cuda': choose from"),
        ({"backends": ["torch"]}, "torch cannot load some.onnx"),
    ],
)
def test_a_wish_that_an_artifact_cannot_fulfil_is_refused(tmp_path, wish, message):
    if "torch" in wish.get("backends", ()):
        pytest.importorskip("torch")
    with pytest.raises(ValueError, match=message):
        planned([onnx_with_card(tmp_path)], **wish)


def test_an_engine_without_a_gpu_is_refused_before_it_is_built(monkeypatch):
    monkeypatch.setattr(plan, "installed", lambda backend: True)
    monkeypatch.setattr(plan, "gpus", list)
    with pytest.raises(ArtifactError, match="none answers here: measure with openvino"):
        planned(["csfcn_nano"], backends=["tensorrt"])


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="name a variant"):
        planned([])


def test_bf16_is_for_backends_that_compute_in_it(tmp_path):
    pytest.importorskip("openvino")
    path = onnx_with_card(tmp_path)
    backends = ["openvino", "onnxruntime"]
    (contest,), absent = planned([path], backends=backends, precisions=["fp32", "bf16"])
    assert [(e.backend, e.hint) for e in contest.entries] == [
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("onnxruntime", None),
    ]
    assert absent == ["onnxruntime bf16 left out: only openvino computes in it"]


def test_an_absent_package_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setattr(plan, "installed", lambda backend: False)
    with pytest.raises(ArtifactError, match=r'pip install "rtseg\[openvino\]"'):
        planned(["csfcn_nano"], backends=["openvino"])


class FakeEntry:
    title = "fake"

    def __init__(self, backend: FakeBackend | None, asked_for: bool = False):
        self.fake, self.asked_for, self.backend = backend, asked_for, "fake"

    def open(self, frames, threads, device):
        if self.fake is None:
            raise ArtifactError("does not run here")
        return Artifact(Segmenter(self.fake), frames)


def bench_of(monkeypatch, entries: list[FakeEntry], **options) -> Report:
    contest = plan.Contest(CARD, entries)  # type: ignore[arg-type]
    monkeypatch.setattr(bench_module, "plan", lambda *_: ([contest], ["as planned"]))
    short = {"seconds": 0.01, "runs": 5, "eager": False, **options}
    return bench_function(["any"], frames=frames_of((4, 8)), **short)


def test_a_default_backend_that_does_not_load_is_left_out_and_named(monkeypatch, backend):
    monkeypatch.setattr(bench_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    report = bench_of(monkeypatch, [FakeEntry(None), FakeEntry(backend)])
    assert len(report.rows) == 1
    assert report.warnings[:2] == ["as planned", "fake left out: does not run here"]
    assert backend.closed


def few_rounds(lanes: list[Lane]) -> None:
    race(lanes, Limits(runs=5, seconds=0.01, rounds=2, block_ms=1))


def test_a_backend_asked_for_by_name_has_to_load(monkeypatch, backend):
    with pytest.raises(ArtifactError, match="does not run here"):
        bench_of(monkeypatch, [FakeEntry(backend), FakeEntry(None, asked_for=True)])
    assert backend.closed


def test_without_pytorch_the_eager_row_is_missed_aloud(monkeypatch, backend):
    monkeypatch.setattr(bench_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
    monkeypatch.setattr(bench_module.importlib.util, "find_spec", lambda name: None)
    report = bench_of(monkeypatch, [FakeEntry(backend)], eager=True)
    assert report.warnings[1] == bench_module.NO_TORCH
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
        patch.setattr(bench_module, "race", lambda lanes, *_, **__: few_rounds(lanes))
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
    eager = contest.eager("cpu").open(frames, 1, None)
    labels, expected = ours.frame_to_labels(), eager.frame_to_labels()
    assert labels.shape == expected.shape == frame
    assert (labels == expected).mean() > 0.99
    ours.close()


def test_eager_is_not_made_to_wait_for_a_core_that_another_program_holds(measured, monkeypatch):
    (contest,), _ = planned(["csfcn_nano"], [SIZE], ["torch"])
    eager = contest.eager("cpu").open(frames_of(SIZE), 1, None)
    clock = Clock()
    monkeypatch.setattr(contestants.time, "perf_counter_ns", clock)
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
    unsteady = Result(**{**vars(row), "warm_up": WarmUp(200, 10.0, False, 40.0)})
    doubts = bench_module._doubts([unsteady], threads=8)
    assert any("did not settle" in line for line in doubts)
    assert any("faster on 4 thread" in line for line in doubts)
    assert bench_module._doubts([row], threads=4) == []
    loud = [Result(**{**vars(row), "noise": Noise(share, 0.0, 1.0)}) for share in (0.2, 0.4)]
    (line,) = bench_module._doubts(loud, threads=4)
    assert "40%" in line


def test_the_model_of_a_name_is_the_artifact_for_its_backend(measured, monkeypatch):
    monkeypatch.setattr(plan, "_usual_size", lambda source: SIZE)
    path = plan.exported_model("csfcn_nano", "torch", lambda line: None)
    assert path.name == "csfcn_nano_64x128_fp32.safetensors"
    assert plan.is_artifact(str(path))
    assert not plan.is_artifact("csfcn_nano")


def test_on_a_gpu_the_backends_built_for_it_are_measured(monkeypatch):
    gpu = object()
    monkeypatch.setattr(plan, "gpus", lambda: [gpu])
    monkeypatch.setattr(plan, "installed", lambda backend: True)
    monkeypatch.setattr(plan, "_uses_gpu", lambda backend: backend != "onnxruntime")
    wish = plan._Wish([], [], [], None, lambda *_: None)
    assert (wish.usual_backends(), wish.usual_graph) == (["tensorrt", "torch"], "fp16")
    on_cpu = plan._Wish([], [], [], "cpu", lambda *_: None)
    assert (on_cpu.usual_backends(), on_cpu.usual_graph) == (["openvino", "onnxruntime"], "fp32")
