"""Report of a replay: one page with its figures and the frames whose masks differ most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.classes import Color
from ..data.files import write_atomically
from ..data.images import add_title, arrange, blend, write_png
from ..data.lettering import Picture
from ..reporting import Table, format_figure
from .replay import ReplayResult
from .replay_figures import WorstFrame, compare_latency, find_quantiles, find_slope
from .replay_side import ReplaySide

WIDTH = 480  # pixels of each of a frame's pictures
DIFFERS = (255, 0, 255)


def list_tables(done: ReplayResult) -> list[Table]:
    """The bars, the two sides, and the classes."""
    passed = {True: "passed", False: "REFUSED", None: "not judged"}
    bars = [
        ("NOT DECIDED" if each.undecided else passed[each.passed], each.bar, each.text)
        for each in done.checks
    ]
    sides = [_list_facts(side) for side in (done.old, done.new)]
    rows = [(name, sides[0][name], sides[1][name]) for name in sides[0]]
    shares = done.masks.class_shares()
    classes = [
        (name, f"{iou:.2%}", f"{shares[name]:.2%}") for name, iou in done.masks.class_ious().items()
    ]
    words = ("", "old", "new")
    return [
        Table(("", "bar", "figure"), bars, "Bars", names=2, words=("figure",)),
        Table(words, rows, f"{len(done.masks.frames)} frames of {done.log}", words=words),
        Table(("class", "IoU of old and new", "share"), classes, "Classes"),
    ]


def _list_facts(side: ReplaySide) -> dict[str, str]:
    slope, share = find_slope(side.memory_mib), side.certified
    times = {
        f"{name} ms": f"{format_figure(value)} ({format_figure(low)} to {format_figure(high)})"
        for name, (value, low, high) in find_quantiles(side).items()
    }
    quantiles = {f"{name} ms": "too few runs" for name in ("p50", "p99", "p99.9")} | times
    energy = side.energy_j
    return {
        "artifact": f"{side.file} ({side.digest[:12]})",
        "runs in": f"{side.backend} {side.version}, {side.precision}, {side.device}",
        "environment": f"Python {side.python}",
        "timed frames": str(side.runs),
        **quantiles,
        "memory, MB a frame": "too few frames" if slope is None else f"{slope:.3f}",
        "energy, J a frame": "not readable here"
        if energy is None
        else f"{energy / max(1, side.runs):.3f} (of the whole machine)",
        "certified": f"{float(np.mean(share)):.2%}" if share else side.uncertified or "no bounds",
    }


def describe_replay(done: ReplayResult) -> dict[str, Any]:
    """The values that JSON has; `docs/howto/replay.md` says what they are."""
    masks, same = done.masks, done.old.machine == done.new.machine
    found = compare_latency(done.old, done.new, done.interleaved) if same else None
    return {
        "log": done.log,
        "passed": not (done.refusals or done.undecided),
        "refused": [each.bar for each in done.refusals],
        "undecided": [each.bar for each in done.undecided],
        "bars": [each.to_dict() for each in done.checks],
        "frames": len(masks.frames),
        "skipped": done.skipped,
        "interleaved": done.interleaved,
        "agreement": masks.agreement,
        "frame_agreement": masks.frame_agreement,
        "border_agreement": masks.border_agreement,
        "class_iou": masks.class_ious(),
        "latency_ratio": [found.value, found.low, found.high] if found else None,
        "worst_frames": [each.figures.frame for each in masks.worst],
        "old": _describe_side(done.old),
        "new": _describe_side(done.new),
    }


def _describe_side(side: ReplaySide) -> dict[str, Any]:
    share, energy = side.certified, side.energy_j
    return {
        **{
            name: getattr(side, name)
            for name in ("model", "file", "digest", "precision", "size", "backend", "version")
        },
        **{name: getattr(side, name) for name in ("device", "threads", "machine", "python")},
        "runs": side.runs,
        "latency_ms": find_quantiles(side),
        "memory_mb_a_frame": find_slope(side.memory_mib),
        "energy_j_a_frame": None if energy is None else energy / max(1, side.runs),
        "certified": float(np.mean(share)) if share else None,
    }


def write_report(done: ReplayResult, folder: Path) -> None:
    """Write `report.md`, `report.json` and a picture of each of the worst frames.

    Args:
        done: the replay.
        folder: that they are written to.

    Raises:
        WriteError: the disk does not take them.
    """
    verdict = "Every bar that was judged holds."
    if done.refusals or done.undecided:
        words = [f"{each.bar}: {each.text}" for each in done.undecided]
        verdict = f"Refused: {done.failure()}" if done.refusals else "; ".join(words)
    parts = [f"# Update to {done.new.file}", verdict]
    parts += [table.markdown() for table in list_tables(done)]
    for place, worst in enumerate(done.masks.worst, 1):
        name = f"worst_{place}.png"
        write_png(folder / name, _draw(worst, done.palette))
        text = f"{worst.figures.frame}: {worst.figures.agreement:.3%} of pixels have the old label"
        parts.append(f"{text}\n\n![frame, old, new, difference]({name})")
    write_atomically(folder / "report.md", ("\n\n".join(parts) + "\n").encode())
    facts = json.dumps(describe_replay(done), indent=2)
    write_atomically(folder / "report.json", (facts + "\n").encode())


def _draw(worst: WorstFrame, palette: Sequence[Color]) -> Picture:
    differs = np.where(worst.old == worst.new, 255, 0).astype(np.uint8)
    pictures = {
        "frame": worst.image,
        "old": blend(worst.image, worst.old, palette),
        "new": blend(worst.image, worst.new, palette),
        "difference": blend(worst.image, differs, [DIFFERS], 0.8),
    }
    return arrange([add_title(each, title, WIDTH) for title, each in pictures.items()], 2)
