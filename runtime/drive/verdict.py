"""Whether a drive noticed the faults that were brought about, and overcame them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .faults import IN_WORKER, Fault, FaultPlan

Fate = dict[str, Any]
SIGNS = {  # a word of the reason that the state must give
    "camera_stall": "silent",
    "camera_cut": "lost",
    "corrupt_frames": "corrupt",
    "backend_error": "backend",
    "backend_hang": "stuck",
    "worker_death": "worker process",
    "sink_block": "blocked",
    "sink_error": "failed",
}


def verdict(plan: FaultPlan, report: dict[str, Any]) -> dict[str, Any]:
    """What the drive made of the plan, times in seconds.

    For each fault: when the state first gave its reason, and when it was `running` again, counted
    from the fault's end; what strikes a worker ends when it struck, since the worker is replaced.
    crashes: engines lost that no fault was meant to cost. passed: every fault was noticed and
    overcome, nothing crashed, and every frame is accounted for.
    """
    ahead_s = (plan.start_ns - report["began_ns"]) / 1e9
    faults = [replace(each, at=max(0.0, each.at + ahead_s)) for each in plan.faults]
    rows = [_fate(fault, faults, report["states"]) for fault in faults]
    struck = [fault for fault in faults if fault.fault in IN_WORKER]
    crashes = max(0, report["replaced_workers"] - len(struck))
    open_frames = report["frames"]["open"]
    overcome = all(row["running_again_after_s"] is not None for row in rows)
    passed = overcome and not crashes and open_frames == 0
    return {
        "passed": passed,
        "crashes": crashes,
        "unaccounted_frames": open_frames,
        "faults": rows,
    }


def _fate(fault: Fault, faults: Sequence[Fault], states: Sequence[dict[str, Any]]) -> Fate:
    """states: as the report has them; each lasts until the next."""
    ends = [*(entry["at_s"] for entry in states[1:]), math.inf]
    lasting = list(zip(states, ends, strict=True))
    of_kind = (each.at for each in faults if each.fault == fault.fault and each.at > fault.at)
    limit = min(of_kind, default=math.inf)  # from there on, it is the next one's reason
    over = fault.at if fault.fault in IN_WORKER else fault.at + fault.seconds
    seen = next(
        (e for e, until in lasting if fault.at < until and e["at_s"] < limit and _tells(e, fault)),
        None,
    )
    noticed_s = max(fault.at, seen["at_s"]) if seen else None
    back_s = next(
        (
            max(entry["at_s"], over)
            for entry, until in lasting
            if seen and entry["state"] == "running" and entry["at_s"] > seen["at_s"]
            if until > over
        ),
        None,
    )
    return {
        "at_s": round(fault.at, 3),
        "fault": fault.fault,
        "seconds": fault.seconds,
        "state": seen["state"] if seen else None,
        "reasons": list(seen["reasons"]) if seen else [],
        "noticed_after_s": None if noticed_s is None else round(noticed_s - fault.at, 3),
        "running_again_after_s": None if back_s is None else round(back_s - over, 3),
    }


def _tells(entry: dict[str, Any], fault: Fault) -> bool:
    wrong = entry["state"] != "running"
    return wrong and any(SIGNS[fault.fault] in reason for reason in entry["reasons"])
