"""The curves of a run as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def draw_curves(rows: Iterable[dict[str, Any]], path: Path) -> Path:
    """Loss, learning rate and validation mIoU over iterations, from the rows of a log, as PNG."""
    rows = list(rows)
    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate, miou = figure.subplots(3, sharex=True)
    for axes, key, title in ((loss, "loss", "training loss"), (rate, "rate", "learning rate")):
        points = [(row["iteration"], row[key]) for row in rows if key in row]
        axes.plot(*zip(*points, strict=True) if points else ((), ()))
        axes.set_ylabel(title)
    points = [(row["iteration"], 100 * row["val"]["miou"]) for row in rows if "val" in row]
    miou.plot(*zip(*points, strict=True) if points else ((), ()), marker=".")
    miou.set_ylabel("mIoU on val, %")
    miou.set_xlabel("iteration")
    for axes in (loss, rate, miou):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    return path
