"""A drive's report as a page to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MOST_ROWS = 12  # of memory over time


def to_markdown(facts: dict[str, Any]) -> str:
    """facts: the report, with what `rtseg drive` adds to it."""
    parts = [f"# {_headline(facts)}", _run(facts), _table(("sink", *COUNTS), _sinks(facts))]
    if "injected" in facts:
        parts += ["## Faults on purpose", _verdict(facts["injected"]), _faults(facts["injected"])]
    if facts["level_changes"]:
        steps = [(c["at_s"], c["from"], c["to"], c["why"]) for c in facts["level_changes"]]
        parts += ["## Levels", _table(("at s", "from", "to", "why"), steps)]
    parts += ["## States", _table(("at s", "state", "reasons"), _states(facts))]
    parts += ["## Memory and handles", _table(USAGE, _usage(facts["usage"]))]
    return "\n\n".join(parts) + "\n"


COUNTS = ("delivered", "dropped", "failed", "withheld", "unflushed")
USAGE = ("at s", "MiB, the drive", "MiB, its workers", "open handles")


def _headline(facts: dict[str, Any]) -> str:
    return f"A drive of {facts['seconds']:.0f} s: {facts['ended']}, {facts['state']}"


def _run(facts: dict[str, Any]) -> str:
    """What ran, and what became of its frames."""
    frames, age, latency = facts["frames"], facts["age_ms"], facts["latency_ms"]
    engines = facts["engines"].items()
    rows = [
        ("machine", facts.get("machine", "")),
        ("source", f"{facts['source']}, a frame every {facts['period_ms']:.1f} ms"),
        *((role, "; ".join(_engine(engine))) for role, engine in engines),
        ("frames", f"{frames['captured']} captured, {frames['published']} answered"),
        ("dropped, by cause", _counts(frames["dropped"])),
        ("unaccounted", str(frames["open"])),
        ("age at publication", _spread(age)),
        ("of that, inference and transfer", _spread(latency)),
        ("statuses", _counts(facts["statuses"])),
        ("answered by", _counts(facts["results_by_level"])),
        ("workers replaced", str(facts["replaced_workers"])),
        ("source opened again", str(facts["reopened_source"])),
        ("from the signal to the end", f"{facts['end_s']:.2f} s"),
    ]
    return _table(("", ""), rows)


def _engine(facts: dict[str, Any]) -> Iterable[str]:
    for level, backend, ms in zip(
        facts["levels"], facts["backends"], facts["baselines_ms"], strict=True
    ):
        yield f"{level} ({backend}), p95 {ms:.1f} ms at the start"


def _spread(times: dict[str, float]) -> str:
    return f"p50 {times['p50']:.1f} ms, p95 {times['p95']:.1f}, p99 {times['p99']:.1f}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def _sinks(facts: dict[str, Any]) -> Iterable[Sequence[object]]:
    return ((sink["name"], *(sink[name] for name in COUNTS)) for sink in facts["sinks"])


def _verdict(injected: dict[str, Any]) -> str:
    outcome = "All were noticed and overcome" if injected["passed"] else "NOT PASSED"
    return (
        f"{outcome}; {injected['crashes']} crashes, "
        f"{injected['unaccounted_frames']} frames unaccounted for."
    )


def _faults(injected: dict[str, Any]) -> str:
    head = ("at s", "fault", "lasts s", "state", "why", "noticed after s", "running again after s")
    keys = ("noticed_after_s", "running_again_after_s")
    rows = (
        (
            *(row[key] for key in ("at_s", "fault", "seconds", "state")),
            "; ".join(row["reasons"]),
            *("never" if row[key] is None else row[key] for key in keys),
        )
        for row in injected["faults"]
    )
    return _table(head, rows)


def _states(facts: dict[str, Any]) -> Iterable[Sequence[object]]:
    return ((s["at_s"], s["state"], "; ".join(s["reasons"])) for s in facts["states"])


def _usage(samples: Sequence[dict[str, Any]]) -> Iterable[Sequence[object]]:
    step = -(-len(samples) // MOST_ROWS)
    shown = [*samples[:-1:step], *samples[-1:]]
    keys = ("at_s", "resident_mib", "workers_mib", "handles")
    return ([sample[key] for key in keys] for sample in shown)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
