"""Report of a drive: a snapshot while it runs, and at its end JSON, Markdown and tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...data.files import write_atomically
from ...reporting import Table
from ...system import read_system
from ...usage import UsageSample
from ..sinks.queue import SinkCounts
from .certified_share import CertifiedSummary
from .continuous_proof import ProofCounts
from .faults import IN_WORKER, Fault, FaultPlan
from .health import History, StateChange, assess_health
from .loop import Loop
from .messages import State
from .quality import LevelChange
from .stats import FrameCounts, TimeSummary
from .steady_masks import HeldSummary
from .supervisor import EngineFailure

MOST_ROWS = 12  # of memory over time
OF_THE_WHOLE = (  # fields that a camera's own part leaves out
    "artifacts",
    "machine",
    "began_ns",
    "end_s",
    "engines",
    "engine_failures",
    "realtime",
    "usage",
    "replaced_workers",
    "proof",
    "cameras",
)
SIGNS = {  # a word of the reason that the state must give for an injected fault
    "camera_stall": "silent",
    "camera_cut": "lost",
    "corrupt_frames": "corrupt",
    "backend_error": "backend",
    "backend_hang": "stuck",
    "worker_death": "worker process",
    "sink_block": "blocked",
    "sink_error": "failed",
}


@dataclass(frozen=True, kw_only=True)
class DriveSnapshot:
    """State, counters and times of a drive at one moment.

    Attributes:
        state: a `State`, with `reasons` of one sentence each.
        at_wall_ns: the moment since 1970; seconds: since the start.
        level: the artifact that serves, of `levels`, largest first.
        age_ms: from capture to publication; latency_ms: of that, inference and publishing.
        age_source: what the newest mask's age counts from; age_sources: masks by what theirs did.
        stages_ms: the stages of the age, as far as the source tells them.
        certified: shares of certified pixels; None where they were not asked for.
        held: of pixels that were held steady; None where that was not asked for.
        ended: why the drive ended; "" while it runs.
        proof: of the proof that goes on, where there is one.
        cameras: of a drive of several, each one's own, by its name; all else is then of the whole,
            counters and times of all together. `level` is the smallest that one is at, `period_ms`
            the shortest.
    """

    state: str = "starting"
    reasons: Sequence[str] = ()
    at_wall_ns: int = 0
    seconds: float = 0.0
    level: str | None = None
    levels: Sequence[str] = ()
    period_ms: float = 0.0
    deadline_ms: float | None = None
    max_age_ms: float | None = None
    deadline_misses: int = 0
    frames: FrameCounts = field(default_factory=FrameCounts)
    statuses: Mapping[str, int] = field(default_factory=dict)
    age_ms: TimeSummary = field(default_factory=TimeSummary)
    latency_ms: TimeSummary = field(default_factory=TimeSummary)
    age_source: str = ""
    age_sources: Mapping[str, int] = field(default_factory=dict)
    stages_ms: Mapping[str, TimeSummary] = field(default_factory=dict)
    sinks: Sequence[SinkCounts] = ()
    replaced_workers: int = 0
    reopened_source: int = 0
    certified: CertifiedSummary | None = None
    held: HeldSummary | None = None
    ended: str = ""
    proof: ProofCounts | None = None
    cameras: Mapping[str, DriveSnapshot] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The values that JSON has; `cameras` only where they have names, and without what is of
        the whole drive."""
        values = asdict(replace(self, cameras={}))
        each = {name: camera.to_dict() for name, camera in self.cameras.items()}
        values["cameras"] = {
            name: {key: value for key, value in facts.items() if key not in OF_THE_WHOLE}
            for name, facts in each.items()
        }
        if not self.cameras:
            del values["cameras"]
        return values


@dataclass(frozen=True)
class FaultOutcome:
    """What a drive made of an injected fault, times in seconds.

    Attributes:
        state: the one that showed it, with its reasons; None if it went unnoticed.
        noticed_after_s: from the fault to that state.
        running_again_after_s: from the fault's end; None if it was not overcome.
    """

    at_s: float
    fault: str
    seconds: float
    state: str | None
    reasons: Sequence[str]
    noticed_after_s: float | None
    running_again_after_s: float | None


@dataclass(frozen=True)
class InjectionReport:
    """Whether every injected fault was noticed and overcome, nothing crashed, and every frame is
    accounted for. crashes: engines that failed though no fault was meant to cost them."""

    passed: bool
    crashes: int
    unaccounted_frames: int
    faults: Sequence[FaultOutcome]


@dataclass(frozen=True, kw_only=True)
class DriveReport(DriveSnapshot):
    """A whole drive: its last snapshot, and everything that changed during it.

    Attributes:
        source, artifacts, machine: what ran, as `rtseg drive` names it.
        began_ns: the start, monotonic; seconds elsewhere count from there.
        end_s: from the end of the loop to that of the last sink.
        engines: what each engine said of itself when it became ready, by its role.
        realtime: what was asked of the operating system, and what was granted.
        injected: the outcome of injected faults, if there were any.
    """

    source: str = ""
    artifacts: Sequence[str] = ()
    machine: str = ""
    began_ns: int = 0
    end_s: float = 0.0
    results_by_level: Mapping[str, int] = field(default_factory=dict)
    level_changes: Sequence[LevelChange] = ()
    engine_failures: Sequence[EngineFailure] = ()
    states: Sequence[StateChange] = ()
    engines: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    realtime: Mapping[str, str] = field(default_factory=dict)
    usage: Sequence[UsageSample] = ()
    injected: InjectionReport | None = None
    cameras: Mapping[str, DriveReport] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The values that JSON has; `injected` only where faults were."""
        values = super().to_dict()
        for row in (*values["level_changes"], *values["engine_failures"]):
            row["at_s"] = self._at_s(row["at_ns"])
        if self.injected is None:
            del values["injected"]
        return values

    def failure(self) -> str:
        """Why the drive did not do its work, at one of its cameras even; "" if it did."""
        each = {name: camera.failure() for name, camera in self.cameras.items()}
        if whys := [f"camera {name}: {why}" for name, why in each.items() if why]:
            of_all = len(set(each.values())) == 1
            return next(iter(each.values())) if of_all else "; ".join(whys)
        if self.ended == "source lost":
            return f"the source is lost: {'; '.join(self.reasons)}"
        if not self.frames.published:
            early = self.ended == "duration" and not self.frames.captured
            hint = "; a first start compiles and can take minutes: let it last longer" * early
            return f"no frame was answered: {'; '.join(self.reasons)}{hint}"
        if self.injected is not None and not self.injected.passed:
            return "a fault went unnoticed or lasted, or a frame is not accounted for"
        if broken := [sink for sink in self.sinks if sink.records and sink.failed]:
            return "; ".join(f"{s.name} failed {s.failed} times: {s.last_error}" for s in broken)
        return ""

    def to_markdown(self) -> str:
        """A page to read."""
        parts = [f"# A drive of {self.seconds:.0f} s: {self.ended}, {self.state}"]
        for table in self.tables():
            parts += [f"## {table.title}"] if table.title else []
            if table.title == "Injected faults" and self.injected is not None:
                parts.append(_verdict(self.injected))
            parts.append(replace(table, title="").markdown())
        return "\n\n".join(parts) + "\n"

    def tables(self, history: bool = True) -> list[Table]:
        """What ran, and the outcome.

        Args:
            history: with states and memory over time.
        """
        found = [
            Table(("", ""), list(self._summary()), words=("",)),
        ]
        if self.cameras:
            each = [_camera_row(name, camera) for name, camera in self.cameras.items()]
            found.append(_table("Cameras", _CAMERAS, each))
        if self.sinks:
            found.append(_table("Sinks", _COUNTS, (_row(sink, _COUNTS) for sink in self.sinks)))
        if self.injected is not None:
            found.append(_table("Injected faults", _FATES, map(_fate, self.injected.faults)))
        for title, rows in (("Levels", self.level_changes), ("Failures", self.engine_failures)):
            names = ("before", "after", "why") if title == "Levels" else ("engine", "reason")
            cells = ([self._at_s(row.at_ns), *_row(row, names)] for row in rows)
            found += [_table(title, ("at s", *names), cells)] if rows else []
        if history:
            states = ((s.at_s, s.state, "; ".join(s.reasons)) for s in self.states)
            found.append(_table("States", ("at s", "state", "reasons"), states))
            found.append(_table("Memory and handles", _USAGE, self._usage()))
        return found

    def _summary(self) -> Iterator[tuple[str, str]]:
        yield "ended", f"{self.ended} after {self.seconds:.1f} s, {self.state}"
        yield "machine", self.machine
        yield "source", f"{self.source}, a frame every {self.period_ms:.1f} ms"
        for role, engine in self.engines.items():
            yield role, "; ".join(_engine_lines(engine))
        yield "frames", f"{self.frames.captured} captured, {self.frames.published} answered"
        yield "dropped, by cause", _counts(self.frames.dropped)
        yield "unaccounted", str(self.frames.open)
        yield "age at publication", str(self.age_ms)
        yield "age counts from", _counts(self.age_sources)
        for stage, times in self.stages_ms.items():
            yield f"of that, {stage}", str(times)
        yield "statuses", _counts(self.statuses)
        if self.certified is not None:
            yield "certified", str(self.certified)
        if self.held is not None:
            yield "held steady", str(self.held)
        yield "answered by", _counts(self.results_by_level)
        if self.proof is not None:
            yield "proof that goes on", str(self.proof)
        yield "workers replaced", str(self.replaced_workers)
        yield "source opened again", str(self.reopened_source)
        yield "to end it took", f"{self.end_s:.2f} s"
        yield from self.realtime.items()

    def _usage(self) -> Iterator[tuple[object, ...]]:
        step = -(-len(self.usage) // MOST_ROWS) or 1
        for sample in (*self.usage[:-1:step], *self.usage[-1:]):
            yield sample.at_s, sample.resident_mib, sample.workers_mib, sample.handles

    def _at_s(self, nanoseconds: int) -> float:
        return round((nanoseconds - self.began_ns) / 1e9, 3)


_COUNTS = ("name", "delivered", "dropped", "failed", "withheld", "unflushed", "last_error")
_CAMERAS = ("camera", "source", "state", "captured", "answered", "dropped", "age", "opened again")
_USAGE = ("at s", "MiB, the drive", "MiB, its workers", "open handles")
_FATES = (
    "fault",
    "at s",
    "lasts s",
    "state",
    "reasons",
    "noticed after s",
    "running again after s",
)
_WORDS = ("why", "reason", "reasons", "last_error", "before", "after", "state")


def _table(title: str, header: Sequence[str], rows: Any) -> Table:
    return Table(header, list(rows), title, words=_WORDS)


def _row(item: object, names: Sequence[str]) -> list[object]:
    return [getattr(item, name) for name in names]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _engine_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    named = zip(facts["levels"], facts["backends"], facts["baselines_ms"], strict=True)
    for level, backend, ms in named:
        yield f"{level} ({backend}), p95 {ms:.1f} ms at the start"


def _verdict(injected: InjectionReport) -> str:
    outcome = "All were noticed and overcome" if injected.passed else "NOT PASSED"
    unaccounted = f"{injected.unaccounted_frames} frames unaccounted for"
    return f"{outcome}; {injected.crashes} crashes, {unaccounted}."


def _camera_row(name: str, camera: DriveReport) -> list[object]:
    counts, state = (
        camera.frames,
        ": ".join(filter(None, (camera.state, "; ".join(camera.reasons)))),
    )
    times = str(camera.age_ms)
    return [
        name,
        camera.source,
        state,
        counts.captured,
        counts.published,
        _counts(counts.dropped),
        times,
        camera.reopened_source,
    ]


def _fate(row: FaultOutcome) -> list[object]:
    times = (row.noticed_after_s, row.running_again_after_s)
    told = ["never" if each is None else each for each in times]
    return [row.fault, row.at_s, row.seconds, row.state, "; ".join(row.reasons), *told]


def end_snapshot(last: DriveSnapshot, why: str) -> DriveSnapshot:
    """The last one of a drive, once it is over: `ended`, and why."""
    cameras = {name: end_snapshot(each, each.ended or why) for name, each in last.cameras.items()}
    before = last.reasons if last.state != State.running.value else ()
    return replace(
        last, state=State.ended.value, reasons=(why, *before), ended=why, cameras=cameras
    )


def take_snapshot(loop: Loop) -> DriveSnapshot:
    """State, counters and times now; cheap, and safe from any thread."""
    health = assess_health(loop)
    serving = loop.supervisor.serving()
    level = loop.ladder.name if loop.ladder else None
    if serving is not None and serving.engine and serving is not loop.supervisor.primary:
        level = serving.engine.levels[0]
    return DriveSnapshot(
        state=health.state.value,
        reasons=health.reasons,
        at_wall_ns=loop.clock.wall_ns(),
        seconds=round((loop.clock.now_ns() - loop.began_ns) / 1e9, 3),
        level=level,
        levels=loop.ladder.names if loop.ladder else (),
        period_ms=round(loop.period_ms, 3),
        deadline_ms=loop.limits.deadline_ms,
        max_age_ms=loop.limits.max_age_ms,
        deadline_misses=loop.misses,
        frames=loop.counters.counts(),
        statuses=dict(loop.statuses),
        age_ms=loop.ages.summary(),
        latency_ms=loop.latencies.summary(),
        age_source=loop.age_record.source,
        age_sources=dict(loop.age_record.sources),
        stages_ms=loop.age_record.summaries(),
        sinks=[queue.counts() for queue in loop.queues],
        replaced_workers=loop.supervisor.failure_count,
        reopened_source=loop.capture.reopened,
        proof=loop.proof.counts() if loop.proof is not None else None,
        certified=loop.certified.summary() if loop.certified is not None else None,
        held=loop.steady.summary() if loop.steady is not None else None,
    )


def build_report(loop: Loop, history: History, last: DriveSnapshot, **facts: Any) -> DriveReport:
    """The report of a loop that ended.

    Args:
        loop: after its last step.
        history: an entry is a change of state or of its reasons.
        last: taken before the end; its state is the one that counts.
        facts: further fields of the report.
    """
    final = replace(take_snapshot(loop), state=last.state, reasons=last.reasons, ended=last.ended)
    return DriveReport(
        **vars(final),
        began_ns=loop.began_ns,
        results_by_level=dict(loop.levels),
        level_changes=[*loop.changes],
        engine_failures=[*loop.supervisor.failures],
        states=[*history.entries],
        engines=loop.supervisor.facts(),
        **facts,
    )


def describe_job(source: str | None, artifacts: Sequence[Path]) -> dict[str, Any]:
    """Fields of the report on what ran. source: None of several, which the report has already."""
    return ({} if source is None else {"source": shorten_place(source)}) | {
        "artifacts": [path.name for path in artifacts],
        "machine": str(read_system()),
    }


def shorten_place(source: str) -> str:
    """A recording's path without the folders above its own: they say nothing to another machine."""
    where = Path(source)
    return "/".join(where.absolute().parts[-2:]) if where.exists() else source


def write_report(path: Path, report: DriveReport) -> None:
    """Write the report as JSON, and beside it a page to read."""
    write_atomically(path, (json.dumps(report.to_dict(), indent=2) + "\n").encode())
    write_atomically(path.with_suffix(".md"), report.to_markdown().encode())


def judge_faults(plan: FaultPlan, report: DriveReport) -> InjectionReport:
    """What the drive made of the plan.

    For each fault: when the state first gave its reason, and when it was `running` again, counted
    from the fault's end; what strikes a worker ends when it struck, since the worker is replaced.
    """
    ahead_s = (plan.start_ns - report.began_ns) / 1e9
    faults = [replace(each, at=max(0.0, each.at + ahead_s)) for each in plan.faults]
    rows = [_outcome(fault, faults, report.states) for fault in faults]
    struck = sum(fault.fault in IN_WORKER for fault in faults)
    # Below 0 where a drive ended before the plan's last fault struck.
    crashes = max(0, report.replaced_workers - struck)
    overcome = all(row.running_again_after_s is not None for row in rows)
    passed = overcome and not crashes and report.frames.open == 0
    return InjectionReport(passed, crashes, report.frames.open, rows)


def _outcome(fault: Fault, faults: Sequence[Fault], states: Sequence[StateChange]) -> FaultOutcome:
    """states: each lasts until the next."""
    ends = [*(entry.at_s for entry in states[1:]), math.inf]
    lasting = list(zip(states, ends, strict=True))
    of_kind = (each.at for each in faults if each.fault == fault.fault and each.at > fault.at)
    limit = min(of_kind, default=math.inf)  # from there on, it is the next one's reason
    over = fault.at if fault.fault in IN_WORKER else fault.at + fault.seconds
    seen = next(
        (e for e, until in lasting if fault.at < until and e.at_s < limit and _tells(e, fault)),
        None,
    )
    noticed_s = back_s = None
    if seen is not None:
        noticed_s = round(max(fault.at, seen.at_s) - fault.at, 3)
        again = (
            max(entry.at_s, over)
            for entry, until in lasting
            if entry.state == "running" and entry.at_s > seen.at_s and until > over
        )
        back_s = next((round(at_s - over, 3) for at_s in again), None)
    state, reasons = (seen.state, seen.reasons) if seen else (None, ())
    at_s = round(fault.at, 3)
    return FaultOutcome(at_s, fault.fault, fault.seconds, state, reasons, noticed_s, back_s)


def _tells(entry: StateChange, fault: Fault) -> bool:
    wrong = entry.state != "running"
    return wrong and any(SIGNS[fault.fault] in reason for reason in entry.reasons)
