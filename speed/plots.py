"""The speed table as pictures: speed against accuracy, and latency histograms."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MissingPackage
from .result import fastest_of_ours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..models.variant import Score
    from .frontier import Frontier

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


def frontier_plot(frontier: Frontier) -> bytes:
    """A PNG: published mIoU against the time of a frame over the reference's; hollow where scores
    are of the test set, a line along the front."""
    figure, (axes,) = _grid(1, 1, (10, 6.5))
    names: list[tuple[float, float, str]] = []
    for point in frontier.points:
        if point.miou is None:
            continue
        color = COLORS[1] if point.front else COLORS[0]
        face = color if point.on_val else "none"
        axes.scatter(point.ratio, point.miou, s=28, facecolors=face, edgecolors=color, zorder=3)
        names.append((point.ratio, point.miou, point.model))
    front = [(point.ratio, point.miou or 0.0) for point in frontier.points if point.front]
    axes.plot([x for x, _ in front], [y for _, y in front], color=COLORS[1], lw=1, alpha=0.6)
    _log_scale(axes)
    sizes = " and ".join(dict.fromkeys("{}x{}".format(*point.size) for point in frontier.points))
    axes.set_xlabel(f"time of a frame at {sizes}, over {frontier.reference}'s in the same rounds")
    axes.set_ylabel("mIoU on Cityscapes val as published, % (hollow: test)")
    axes.set_title(f"{frontier.title}, end to end, batch 1; only the speed is measured", fontsize=9)
    axes.margins(x=0.12, y=0.08)
    axes.grid(alpha=0.3, which="both")
    _place_names(figure, axes, names)
    return _png(figure)


def _place_names(figure: Figure, axes: Axes, names: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's (x, y) name near it, where it covers no other name and no point."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()  # so that the axes have their place
    canvas: Any = figure.canvas
    renderer = canvas.get_renderer()
    dots = [axes.transData.transform((x, y)) for x, y, _ in names]
    taken = [Bbox.from_bounds(x - 6, y - 6, 12, 12) for x, y in dots]
    for x, y, name in sorted(names):
        best: Bbox | None = None
        for away in (6, 14, 24, 36, 50, 66):
            for right, up in ((1, 0.5), (1, -1), (-1, 0.5), (-1, -1), (0, 1), (0, -1.5)):
                text = axes.annotate(
                    name, (x, y), (right * away, up * away), textcoords="offset points",
                    fontsize=8, ha=("right", "center", "left")[right + 1], va="center",
                    arrowprops={"arrowstyle": "-", "lw": 0.5, "alpha": 0.5, "shrinkB": 3},
                )  # fmt: skip
                # Without the line to its point, which an annotation's own extent has too.
                text.update_positions(renderer)
                box = Text.get_window_extent(text, renderer).padded(1)
                inside = axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max)
                if inside and not any(box.overlaps(other) for other in taken):
                    best = box
                    break
                text.remove()
            if best is not None:
                taken.append(best)
                break


def reported_score(model: str) -> Score | None:
    """On Cityscapes at a single scale, as its authors report it: of the validation set, else of the
    test set; None where they report neither."""
    from ..models.registry import VARIANTS
    from ..models.variant import CITYSCAPES, CITYSCAPES_TEST

    scores = VARIANTS[model].scores if model in VARIANTS else ()
    found = {score.data: score for score in scores if score.single}
    return found.get(CITYSCAPES) or found.get(CITYSCAPES_TEST)


def _points(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, float, float, float | None]]:
    """(model, mIoU, FPS of the fastest of ours, FPS of eager) at 1024x2048, where mIoU is known."""
    points = []
    for model in dict.fromkeys(row["model"] for row in rows):
        score = reported_score(model)
        here = [r for r in rows if r["model"] == model and list(r["size"]) == [1024, 2048]]
        ours = [row["frame_to_labels"]["fps"] for row in here if not row["peer"]]
        eager = [row["frame_to_labels"]["fps"] for row in here if row["backend"] == "eager"]
        if ours and score and score.single and score.data.endswith("val"):
            points.append((model, score.single, max(ours), eager[0] if eager else None))
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
