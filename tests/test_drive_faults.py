"""Injected faults: plans, what they do to a drive, and the report on it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rtseg import usage
from rtseg.runtime.drive.faults import KINDS, Fault, FaultPlan, read_plan
from rtseg.runtime.drive.health import History, StateChange
from rtseg.runtime.drive.messages import Health, State
from rtseg.runtime.drive.quality import LevelChange
from rtseg.runtime.drive.report import (
    MOST_ROWS,
    SIGNS,
    DriveReport,
    InjectionReport,
    judge_faults,
)
from rtseg.runtime.drive.stats import FrameCounts, TimeSummary
from rtseg.runtime.drive.supervisor import EngineFailure
from rtseg.runtime.sinks.queue import SinkCounts
from rtseg.usage import Usage, UsageLog, UsageSample, read_usage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {at: 3, fault: flood}", "no fault is called 'flood'"),
        ("- {at: 3}", "an entry has `at`, `fault` and `seconds`"),
        ("at: 3", "should be a list"),
        ("- {at: -1, fault: camera_cut}", "are 0 to"),
        ("- {at: .nan, fault: camera_cut}", "are 0 to"),
        ("- [", "is not valid YAML"),
    ],
)
def test_plans_of_faults_that_are_none(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_plan(path)


WHY = {
    "camera_stall": "the camera is silent",
    "backend_error": "backend: out of memory",
    "backend_hang": "the fallback serves: inference has been stuck for 2000 ms",
    "corrupt_frames": "corrupt: damaged",
}


def report(*states: tuple[float, str, str], lost: int = 0, still_open: int = 0) -> DriveReport:
    return DriveReport(
        frames=FrameCounts(open=still_open),
        states=[StateChange(at, state, (why,) if why else ()) for at, state, why in states],
        replaced_workers=lost,
    )


PLAN = FaultPlan([Fault(10, "camera_stall", 2), Fault(20, "backend_error")], start_ns=0)
GOOD = (
    (1, "running", ""),
    (11, "stale", WHY["camera_stall"]),
    (12.5, "running", ""),
    (20.5, "degraded", WHY["backend_error"]),
    (23, "running", ""),
)


def test_faults_that_were_overcome() -> None:
    facts = judge_faults(PLAN, report(*GOOD, lost=1))
    assert (facts.passed, facts.crashes) == (True, 0)
    assert [row.noticed_after_s for row in facts.faults] == [1, 0.5]
    assert [row.running_again_after_s for row in facts.faults] == [0.5, 3]
    assert facts.faults[0].reasons == (WHY["camera_stall"],)


@pytest.mark.parametrize(
    "changed",
    [
        {"states": GOOD[:4]},  # it lasts
        {"states": GOOD[:3]},  # it went unnoticed
        {"states": (*GOOD[:3], (20.5, "degraded", WHY["corrupt_frames"]), GOOD[4])},  # mistaken
        {"lost": 2},  # a worker that no fault was meant to cost
        {"still_open": 1},
    ],
)
def test_faults_that_were_not(changed: dict[str, Any]) -> None:
    options = {"states": GOOD, "lost": 1} | changed
    states = options.pop("states")
    assert not judge_faults(PLAN, report(*states, **options)).passed


def test_a_worker_s_fault_ends_when_it_struck() -> None:
    """However long the dead worker would have hung; and what runs already runs at its end."""
    plan = FaultPlan([Fault(10, "backend_hang", 30), Fault(50, "camera_stall", 9)], start_ns=0)
    states = (
        (1, "running", ""),
        (12, "degraded", WHY["backend_hang"]),
        (15, "running", ""),
        (51, "stale", WHY["camera_stall"]),
        (52, "running", ""),  # reopened while the first thread still hangs
    )
    rows = judge_faults(plan, report(*states, lost=1)).faults
    assert [row.running_again_after_s for row in rows] == [5, 0]


def test_two_faults_of_a_kind_are_noticed_each() -> None:
    plan = FaultPlan([Fault(10, "camera_stall", 1), Fault(20, "camera_stall", 1)], start_ns=0)
    once = (1, "running", ""), (20.5, "stale", WHY["camera_stall"]), (21, "running", "")
    rows = judge_faults(plan, report(*once)).faults
    assert [row.noticed_after_s for row in rows] == [None, 0.5]


def test_every_kind_has_a_sign() -> None:
    assert SIGNS.keys() == KINDS.keys()


def test_history_tells_new_reasons_but_not_new_numbers() -> None:
    history, degraded = History(), State.degraded
    changes = [
        history.note(1.0, Health(State.running)),
        history.note(2.0, Health(degraded, ("late: 502 ms",))),
        history.note(3.0, Health(degraded, ("late: 519 ms",))),
        history.note(4.0, Health(degraded, ("corrupt: damaged",))),
        history.note(5.0, Health(State.running)),
    ]
    assert changes == [True, True, False, False, True]
    assert [entry.at_s for entry in history.entries] == [1.0, 2.0, 4.0, 5.0]


def test_usage_of_a_long_run_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "read_usage", lambda process=None: Usage(10.0, 5))
    log = UsageLog()
    for second in range(0, 30_000, 2):
        log.note(second, [7, 8])
    times = [sample.at_s for sample in log.samples]
    assert UsageLog.MOST / 3 < len(times) <= UsageLog.MOST
    assert times[0] == 0
    assert times[-1] > 29_000
    assert {sample.workers_mib for sample in log.samples} == {20.0}


def test_usage_of_another_process() -> None:
    own = read_usage(os.getpid())
    assert own.handles
    assert own.resident_mib == pytest.approx(read_usage().resident_mib, rel=0.1)
    assert read_usage(2**22 + 1) == Usage(None, None)  # beyond the largest id


REPORT = DriveReport(
    seconds=60.0,
    ended="duration",
    state="running",
    source="camvid/val",
    period_ms=66.7,
    engines={"primary": {"levels": ["nano"], "backends": ["ort"], "baselines_ms": [19.0]}},
    frames=FrameCounts(9, 7, {"late": 2}),
    age_ms=TimeSummary(7, 21.0, 20.0, 30.0, 41.0, 45.0),
    age_sources={"sender": 7},
    stages_ms={"waiting": TimeSummary(7, 1.0, 1.0, 2.0, 3.0, 4.0)},
    statuses={"LATE": 2},
    results_by_level={"nano": 7},
    replaced_workers=1,
    sinks=[SinkCounts("a|b")],
    level_changes=[LevelChange(3 * 10**9, "large", "nano", "3 of 20")],
    engine_failures=[EngineFailure(20 * 10**9, "primary", "backend", "out of memory")],
    usage=[UsageSample(10.0 * i, 90.0, 12, 300.0) for i in range(100)],
)


def test_the_page_tells_what_the_report_does() -> None:
    done = replace(REPORT, states=report(*GOOD).states)
    done = replace(done, injected=judge_faults(PLAN, done))
    page = done.to_markdown()
    assert "| age at publication | p50 20.0 ms, p95 30.0, p99 41.0 |" in page
    assert "| of that, waiting | p50 1.0 ms, p95 2.0, p99 3.0 |" in page
    assert "| age counts from | 7 sender |" in page
    assert "| dropped, by cause | 2 late |" in page
    assert "All were noticed and overcome; 0 crashes, 0 frames unaccounted for." in page
    assert "| camera_stall | 10.0 | 2 | stale | the camera is silent | 1.0 | 0.5 |" in page
    assert "| 3.0 | large | nano | 3 of 20 |" in page
    assert "| 20.0 | primary | out of memory |" in page
    assert "a\\|b" in page  # a bar in a name does not end its cell
    rows = page.partition("## Memory and handles")[2].count("\n| ") - 2
    assert MOST_ROWS / 2 < rows <= MOST_ROWS + 1
    assert "| 990.0 | 90.0 | 300.0 | 12 |" in page  # the last one is always there
    missed = replace(done, injected=judge_faults(PLAN, report(*GOOD[:3])))
    assert "NOT PASSED" in missed.to_markdown()
    assert "never" in missed.to_markdown()
    values = json.loads(json.dumps(done.to_dict()))
    assert values["level_changes"][0]["at_s"] == 3.0
    assert values["injected"]["passed"]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"ended": "source lost", "reasons": ["unplugged"]}, "the source is lost: unplugged"),
        ({"frames": FrameCounts(3, 0, {"starting": 3})}, "no frame was answered"),
        (
            {"frames": FrameCounts(), "ended": "duration", "reasons": ["not ready yet"]},
            "no frame was answered: not ready yet; a first start compiles and can take minutes",
        ),
        ({"injected": InjectionReport(False, 0, 0, ())}, "a fault went unnoticed"),
        ({"sinks": [SinkCounts("page", failed=2, last_error="no viewer")]}, ""),
        (
            {"sinks": [SinkCounts("video", failed=2, last_error="No space", records=True)]},
            "video failed 2 times: No space",
        ),
    ],
)
def test_a_drive_that_did_not_do_its_work_says_why(changed: dict[str, Any], why: str) -> None:
    assert replace(REPORT, **changed).failure().startswith(why)
    assert bool(replace(REPORT, **changed).failure()) == bool(why)
