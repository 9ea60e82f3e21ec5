"""Shares of the GPU suite: how much of the machine's ceilings its rows reached.

The ceilings are measured by a step that comes after others, so the shares are added as the results
are written. No package is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def add_shares(rows: Sequence[dict[str, Any]]) -> None:
    """Add shares in place, where the ceilings are among the rows.

    A row with "bytes_per_s" gets "of_bandwidth"; one with "work" gets "roofline": the shortest time
    that the ceilings allow, what limits it, and that time over the network's by the wall's clock
    ("reached") and by the GPU's ("reached_on_device").
    """
    ceilings = next((row for row in rows if "macs_per_s" in row), None)
    if ceilings is None:
        return
    for row in rows:
        if row is ceilings:
            continue
        if row.get("bytes_per_s"):
            row["of_bandwidth"] = round(row["bytes_per_s"] / ceilings["bytes_per_s"], 4)
        if "work" in row and row["work"]["arithmetic"] in ceilings["macs_per_s"]:
            row["roofline"] = _roofline(row, ceilings)


def _roofline(row: dict[str, Any], ceilings: dict[str, Any]) -> dict[str, Any]:
    """As `speed.roofline.share` has it, which needs a network at hand."""
    work = row["work"]
    bounds = {
        "arithmetic": 1e3 * work["macs"] / ceilings["macs_per_s"][work["arithmetic"]],
        "bandwidth": 1e3 * work["minimal_bytes"] / ceilings["bytes_per_s"],
    }
    limit = max(bounds, key=lambda name: bounds[name])
    reached = {"reached": row["network"]["p50_ms"], "reached_on_device": row.get("device_ms")}
    return {
        "limit_ms": round(bounds[limit], 4),
        "limited_by": limit,
        **{name: round(bounds[limit] / ms, 4) for name, ms in reached.items() if ms},
    }
