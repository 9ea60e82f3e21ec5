"""What a mask's age counts from and is made of, and that everyone who gets a mask is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_messages import result
from rtseg.data.frames import AGE_SOURCES, Frame
from rtseg.runtime.drive.age import split_age
from rtseg.runtime.drive.report import build_report, take_snapshot
from rtseg.runtime.sinks.ros_topics import describe_state
from rtseg.runtime.sinks.shared_memory import Ring, RingReader
from simulated import SECOND, SimulatedEngine, Simulation

MS = 1_000_000
PERIOD = 0.1


def steady(latency_s: float) -> Any:
    return lambda clock: [lambda: SimulatedEngine(clock, lambda level: latency_s)]


def give(drive: Simulation, at_s: float, **facts: Any) -> None:
    """A frame at that time; `*_ago_ms` facts become times before it."""

    def show() -> None:
        now, index = drive.clock.now, drive.clock.now // MS
        times = {
            name.replace("_ago_ms", "_ns"): now - int(ms * MS)
            for name, ms in facts.items()
            if name.endswith("_ago_ms")
        }
        others = {name: value for name, value in facts.items() if not name.endswith("_ago_ms")}
        image = np.full((4, 6, 3), index % 251, np.uint8)
        drive.capture.accept(Frame(image, index, **{"captured_ns": now} | times | others))

    drive.clock.after(at_s, show)


def drive_of(**facts: Any) -> Simulation:
    """Ten frames that each know `facts` of themselves."""
    drive = Simulation(steady(0.03))
    for number in range(10):
        give(drive, number * PERIOD, **facts)
    drive.run(2)
    return drive


def test_the_stages_add_up_to_the_age() -> None:
    drive = drive_of(captured_ago_ms=70, sent_ago_ms=50, received_ago_ms=20, age_source="exposure")
    for _, each in drive.results:
        assert each.stages_ms == pytest.approx(
            {
                "camera": 20,
                "transport": 30,
                "decode": 20,
                "waiting": 0,
                "inference": 30,
                "publishing": 0,
            }
        )
        assert sum(each.stages_ms.values()) == pytest.approx(each.age_ms) == pytest.approx(100)
        assert each.age_source == "exposure"


def test_a_stage_that_the_source_does_not_tell_counts_in_the_next() -> None:
    (_, first), *_ = drive_of(captured_ago_ms=70, age_source="driver").results
    assert first.stages_ms == pytest.approx(
        {"transport": 70, "waiting": 0, "inference": 30, "publishing": 0}
    )


def test_times_in_the_wrong_order_are_no_negative_stage() -> None:
    frame = Frame(np.zeros((4, 6, 3), np.uint8), 0, 100 * MS, sent_ns=90 * MS, received_ns=80 * MS)
    stages = split_age(frame, 95 * MS, 110 * MS, 5.0, 120 * MS)
    assert stages == pytest.approx({"waiting": 10, "inference": 5, "publishing": 5})


def test_a_source_of_ages_that_nobody_knows_is_refused() -> None:
    drive = drive_of(age_source="guess")
    assert drive.frames["dropped"] == {"corrupt": 10}
    assert "exposure, driver, sender" in drive.statuses[0][1].text


def test_health_report_and_diagnostics_tell_the_source() -> None:
    drive = drive_of(captured_ago_ms=70, sent_ago_ms=50, age_source="sender")
    snapshot = take_snapshot(drive.loop)
    facts = json.loads(json.dumps(snapshot.to_dict()))
    assert (facts["age_source"], facts["age_sources"]) == ("sender", {"sender": 10})
    assert facts["stages_ms"]["camera"]["p50"] == pytest.approx(20, rel=0.01)
    values = describe_state(snapshot, None, "camera", "nano").values
    assert values["age source"] == "sender"
    assert float(values["age, transport p99 ms"]) == pytest.approx(50, rel=0.01)
    page = build_report(drive.loop, drive.history, snapshot).to_markdown()
    assert "| age counts from | 10 sender |" in page
    assert "| of that, camera | p50 " in page


@pytest.mark.parametrize("source", AGE_SOURCES)
def test_the_ring_tells_the_source(tmp_path: Path, source: str) -> None:
    path = tmp_path / "labels.ring"
    ring = Ring(path)
    ring(replace(result(3, SECOND), age_source=source, level="x" * 100))
    entry = RingReader(path).latest()
    assert entry is not None
    assert (entry.age_source, entry.text) == (source, "x" * 47)


def test_json_has_the_source() -> None:
    facts = json.loads(json.dumps(replace(result(), age_source="driver").facts()))
    assert facts["age_source"] == "driver"
