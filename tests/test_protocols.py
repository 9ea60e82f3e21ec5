"""A camera's pace on a clock of our own, pipelined streams, and MLPerf's load generator."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from rtseg.errors import MissingPackage
from rtseg.runtime import Segmenter
from rtseg.speed import scenarios as protocols
from rtseg.speed.bench import Setup
from rtseg.speed.camera_rate import Pace, Shot, Stalled, answered_ms, play
from rtseg.speed.config import BenchConfig
from rtseg.speed.contestant import ArtifactContestant
from rtseg.speed.host import Host, Opened
from rtseg.speed.timing import WarmUp
from speed_parts import MACHINE, Clock, FakeBackend, frames_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


def played(clock: Clock, ms: list[float], rate_hz: float) -> tuple[list[Shot], list[int]]:
    """(shots, indices that were labeled) of frames whose calls take `ms` in turn."""
    taken: list[int] = []

    def label(index: int) -> None:
        clock.work(ms[len(taken)])
        taken.append(index)

    return play(label, len(ms), rate_hz, clock, clock.sleep), taken


def test_frames_in_time_start_when_they_are_due(clock):
    shots, taken = played(clock, [5.0] * 4, 100)
    assert taken == [0, 1, 2, 3]
    assert [(shot.started_ns - shots[0].due_ns) / 1e6 for shot in shots] == [0, 10, 20, 30]
    assert list(answered_ms(shots)) == [5] * 4


def test_the_newest_frame_is_taken_and_those_between_are_dropped(clock):
    shots, taken = played(clock, [35.0, 5, 5, 5, 5, 5], 100)  # due at 0, 10, 20, 30, 40, 50 ms
    assert taken == [0, 3, 4, 5]
    assert [shot.ended_ns is None for shot in shots] == [False, True, True, False, False, False]
    # Labels as new as frames 1 and 2 lie ready when frame 3 is done, at 40 ms.
    assert list(answered_ms(shots)) == [35, 30, 20, 10, 5, 5]
    pace = Pace.of(shots, 100)
    assert (pace.frames, pace.dropped, pace.missed, pace.deadline_ms) == (6, 2, 3, 10)
    assert pace.service.max_ms == 35
    assert Pace.of(shots, 100, deadline_ms=25).missed == 2


def test_the_last_frame_is_never_dropped(clock):
    shots, taken = played(clock, [500.0, 5, 5, 5], 100)
    assert taken == [0, 3]
    assert shots[-1].ended_ns is not None


def test_a_camera_needs_a_rate(clock):
    with pytest.raises(ValueError, match="above 0 Hz"):
        play(lambda index: None, 3, 0, clock, clock.sleep)


def test_a_stall_shows_in_the_camera_s_tail_and_not_in_a_burst_s(clock):
    """100 ms every 10 s, in calls of 5 ms: one of 2,000 calls in a burst."""

    def call(index: int) -> None:
        clock.work(5)

    burst = Stalled(call, 100, 10, clock, clock.sleep)
    times = []
    for index in range(10_000):
        before = clock()
        burst(index)
        times.append((clock() - before) / 1e6)
    assert np.percentile(times, 99.9) == 5
    assert max(times) == 105
    # Frames that come within the stall and wait longer than a period for newer labels.
    for rate_hz, missed in ((10.0, 1), (17.0, 1), (30.0, 3), (60.0, 6)):
        stalled = Stalled(call, 100, 10, clock, clock.sleep)
        shots = play(stalled, round(60 * rate_hz), rate_hz, clock, clock.sleep)
        pace = Pace.of(shots, rate_hz)
        assert pace.from_due.p99_9_ms > 95, rate_hz
        assert pace.from_due.p50_ms == 5
        assert pace.missed >= 5 * missed


def test_streams_run_at_the_same_time():
    """Two calls that wait for each other end only if they overlap."""
    both = threading.Barrier(2, timeout=20)
    streams = [
        SimpleNamespace(frame_to_labels=both.wait, subject=SimpleNamespace(threads=1))
        for _ in range(2)
    ]
    flow = protocols.measure_pipelined(streams, 0.0)
    assert (flow.streams, flow.frames, flow.threads) == (2, 2, 1)


def test_a_stream_that_fails_fails_the_measurement():
    def broken() -> None:
        raise RuntimeError("out of memory")

    stream = SimpleNamespace(frame_to_labels=broken, subject=SimpleNamespace(threads=1))
    with pytest.raises(RuntimeError, match="out of memory"):
        protocols.measure_pipelined([stream], 0.0)


def setup_of(backend: FakeBackend) -> Setup:
    """A Setup whose one contest has one fake entry."""
    contestant = ArtifactContestant(Segmenter(backend), frames_of((4, 8)), "fake.onnx")
    opened = Opened(contestant, WarmUp(6, 0.1, True, 0.05), None, None)
    config = BenchConfig(["any"], runs=5, seconds=0.2, device="cpu")
    host = Host(config, MACHINE, 2, lambda line, share: None)
    entry = SimpleNamespace(
        title="fake", runner="fake", open=lambda frames, threads, device: contestant
    )
    contest = SimpleNamespace(
        title="any", card=backend.card, entries=[entry], scenes=lambda: frames_of((4, 8), (4, 8))
    )

    @contextmanager
    def open_fake(contest):
        yield [opened]

    object.__setattr__(host, "open_all", open_fake)
    return Setup(host, [contest], [], "2030-01-01T00:00:00+00:00")


def test_fixed_rate_reports_every_rate():
    sheet = protocols.fixed_rate(setup_of(FakeBackend()), [50.0, 100.0])
    value = json.loads(sheet.to_json())
    assert value["protocol"] == "fixed-rate"
    assert [row["rate_hz"] for row in value["rows"]] == [50, 100]
    assert [row["frames"] for row in value["rows"]] == [10, 20]
    assert {"missed", "miss_ratio", "dropped", "from_due", "service"} <= set(value["rows"][0])
    assert sheet.to_markdown().count("| csfcn_nano | 4x8 | fake fp32 |") == 2


def test_throughput_has_a_row_a_number_of_streams():
    sheet = protocols.throughput(setup_of(FakeBackend()), [1, 2])
    rows = json.loads(sheet.to_json())["rows"]
    assert [row["streams"] for row in rows] == [1, 2]
    assert all(row["fps"] > 0 for row in rows)


def test_throughput_has_a_row_for_frames_in_flight_where_there_are_lanes():
    class Laned(FakeBackend):
        def open_lanes(self, count):
            self.lanes = [FakeBackend() for _ in range(count)]
            return self.lanes

    backend = Laned()
    rows = json.loads(protocols.throughput(setup_of(backend), [1]).to_json())["rows"]
    assert [(row["streams"], row["in_flight"]) for row in rows] == [(1, 1), (1, 2)]
    frames = [lane.log.count("compute") for lane in backend.lanes]
    assert sum(frames) == rows[1]["frames"] > 1
    assert abs(frames[0] - frames[1]) <= 1
    assert rows[1]["gain"] == pytest.approx(rows[1]["fps"] / rows[0]["fps"], abs=1e-3)


def test_loadgen_asks_one_query_after_another_and_its_summary_is_kept(tmp_path):
    pytest.importorskip("mlperf_loadgen")
    asked: list[int] = []
    found = protocols.single_stream(asked.append, 3, tmp_path / "logs", 0.01, 70, 0.05)
    summary = (tmp_path / "logs" / protocols.SUMMARY).read_text()
    assert "SingleStream" in summary
    assert f"Result is : {found.result}" in summary
    assert found.queries == len(asked) >= 70
    assert set(asked) == {0, 1, 2}
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms <= found.p99_9_ms
    nanoseconds = next(line for line in summary.splitlines() if line.startswith("90.00 perc"))
    assert found.p90_ms == pytest.approx(int(nanoseconds.split(":")[1]) / 1e6, abs=1e-4)


def test_a_query_that_fails_is_raised_not_timed(tmp_path):
    pytest.importorskip("mlperf_loadgen")

    def broken(index: int) -> None:
        raise ValueError("wrong size")

    with pytest.raises(ValueError, match="wrong size"):
        protocols.single_stream(broken, 2, tmp_path, 0.01, 5, 1.0)


def test_the_mlperf_protocol_keeps_a_folder_a_row(tmp_path):
    pytest.importorskip("mlperf_loadgen")
    sheet = protocols.mlperf(setup_of(FakeBackend()), tmp_path)
    (row,) = json.loads(sheet.to_json())["rows"]
    assert (tmp_path / "csfcn_nano_4x8_fake_fp32" / protocols.SUMMARY).is_file()
    assert row["result"] in ("VALID", "INVALID")


def test_without_loadgen_its_install_line_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingPackage, match=r"pip install .*\[mlperf\]"):
        protocols.single_stream(lambda index: None, 1, tmp_path, 0.1, 1, 1.0)


def test_a_summary_without_its_figures_is_refused():
    with pytest.raises(ValueError, match="percentile"):
        protocols.read_summary("Result is : VALID", 3)
