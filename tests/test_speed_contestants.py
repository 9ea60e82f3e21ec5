"""What is timed of an artifact, and where its stages end."""

from __future__ import annotations

import pytest
from rtseg.runtime import Segmenter
from rtseg.speed import contestant as contestants
from rtseg.speed.contestant import ArtifactContestant, Laps
from rtseg.speed.result import STAGES
from speed_parts import CARD, Clock, FakeBackend, frames_of


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


def test_an_artifact_is_timed_through_its_segmenter(backend):
    contestant = ArtifactContestant(Segmenter(backend), frames_of((9, 7)), "fake.onnx")
    backend.log.clear()
    assert contestant.frame_to_labels().shape == (9, 7)
    assert backend.log == ["upload", "compute", "download"]
    backend.log.clear()
    contestant.network()
    assert backend.log == ["compute", "synchronize"]
    backend.log.clear()
    contestant.take_noise()
    assert backend.log == ["upload", "synchronize"]
    backend.log.clear()
    contestant.run_queued(2)
    assert backend.log == ["compute", "compute", "synchronize"], "no upload in the timed part"
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
    monkeypatch.setattr(FakeBackend, "synchronize", lambda self: clock.work(1))
    contestant = ArtifactContestant(Segmenter(backend), frames_of((4, 8)))
    contestant.time_stages()
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
