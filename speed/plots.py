"""The speed table as pictures: speed against accuracy, and latency histograms."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingPackage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Machines = Sequence[Mapping[str, Any]]
# Told apart by color-blind readers too (Okabe and Ito).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLUMNS = 2
SHOWN = 8  # histograms, the networks that come first in the table


def _grid(lines: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """(figure, axes line by line)."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingPackage('plots need matplotlib: pip install "rtseg[train]"') from error
    figure = Figure(figsize=size, layout="constrained")
    # Without pyplot, which keeps every figure and looks for a display.
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(lines, columns, squeeze=False).flat)


def accuracy_plot(machines: Machines) -> bytes | None:
    """A PNG: frames a second at 1024x2048, end to end, against mIoU on Cityscapes val as published;
    a color a machine, hollow for PyTorch eager. None where no row has a published mIoU."""
    series = [(value["title"], _points(value["rows"])) for value in machines]
    if not any(points for _, points in series):
        return None
    figure, grid = _grid(1, 1, (8, 5))
    axes = grid[0]
    for (title, points), color in zip(series, _colors(len(series)), strict=True):
        for place, (model, miou, fps, eager_fps) in enumerate(points):
            axes.scatter(fps, miou, color=color, label=title if place == 0 else None, zorder=3)
            axes.annotate(model, (fps, miou), (4, 4), textcoords="offset points", fontsize=8)
            if eager_fps:
                axes.plot([eager_fps, fps], [miou, miou], color=color, lw=0.8, alpha=0.5)
                axes.scatter(eager_fps, miou, facecolors="none", edgecolors=color, zorder=3)
    _log_scale(axes)
    axes.set_xlabel("frames a second, end to end, batch 1, 1024x2048 (hollow: PyTorch eager)")
    axes.set_ylabel("mIoU on Cityscapes val as published, %")
    axes.margins(x=0.16)  # for the names
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    return _png(figure)


def reported_miou(model: str) -> float | None:
    """% on Cityscapes val at a single scale, as its authors report it; None where they do not."""
    from ..models.registry import VARIANTS
    from ..models.variant import CITYSCAPES

    scores = VARIANTS[model].scores if model in VARIANTS else ()
    return next((score.single for score in scores if score.data == CITYSCAPES), None)


def _points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, float | None]]:
    """(model, mIoU, FPS of the fastest of ours, FPS of eager) at 1024x2048, where mIoU is known."""
    points = []
    for model in dict.fromkeys(row["model"] for row in rows):
        miou = reported_miou(model)
        here = [r for r in rows if r["model"] == model and list(r["size"]) == [1024, 2048]]
        ours = [row["frame_to_labels"]["fps"] for row in here if not row["peer"]]
        eager = [row["frame_to_labels"]["fps"] for row in here if row["backend"] == "eager"]
        if ours and miou is not None:
            points.append((model, miou, max(ours), eager[0] if eager else None))
    return points


def latency_plot(machines: Machines) -> bytes | None:
    """A PNG: histograms of frame to labels, in a burst and from a camera, of the fastest row of the
    first networks at each machine's smallest size. None where no row has a histogram."""
    picked = [(value["title"], row) for value in machines for row in _fastest(value["rows"])]
    if not picked:
        return None
    lines = -(-len(picked) // COLUMNS)
    figure, grid = _grid(lines, COLUMNS, (9, 2.1 * lines))
    for axes in grid[len(picked) :]:
        axes.set_visible(False)
    for axes, (title, row) in zip(grid, picked, strict=False):
        _histogram(axes, title, row)
    return _png(figure)


def _histogram(axes: Axes, title: str, row: Mapping[str, Any]) -> None:
    for name, color in (("burst", COLORS[0]), ("camera", COLORS[1])):
        found = row["histograms"].get(name)
        if found:
            counts = np.asarray(found["counts"]) / max(1, sum(found["counts"]))
            axes.stairs(counts, found["edges_ms"], color=color, fill=True, alpha=0.5, label=name)
    _log_scale(axes)
    height, width = row["size"]
    axes.set_title(
        f"{row['model']} {height}x{width} {row['backend']} {row['precision']}\n{title}", fontsize=8
    )
    axes.set_xlabel("ms, from frame in or from when it was due, to labels out", fontsize=7)
    axes.legend(fontsize=7)


def _log_scale(axes: Axes) -> None:
    """Logarithmic in x, with plain numbers: all ticks have one within a decade, else 1, 2 and 5."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    shown = "125" if high > 10 * low else "123456789"
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in shown else "")
    axes.tick_params(which="both", labelsize=7)


def _fastest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, object]]:
    from .table import fastest_of_ours

    sizes = sorted({tuple(row["size"]) for row in rows})
    models = list(dict.fromkeys(row["model"] for row in rows))[:SHOWN]
    found = [fastest_of_ours(rows, model, sizes[0]) for model in models] if sizes else []
    return [row for row in found if row is not None and row.get("histograms")]


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()
