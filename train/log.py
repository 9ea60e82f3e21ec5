"""Logs of a run: JSON lines for machines, a bar and curves for people, optionally TensorBoard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.files import LineLog, write_atomically
from ..errors import MissingPackage


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL log; a last line cut short by a crash is left out."""
    if not path.is_file():
        return
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


class TrainingLog:
    """Rows appended to a JSONL file; on resume, rows after the resumed iteration are dropped."""

    def __init__(self, path: Path, iteration: int = 0, tensorboard: bool = False):
        # Rows after the state that is resumed will come again.
        rows = [row for row in read_log(path) if row["iteration"] <= iteration]
        self.file = LineLog(path, (json.dumps(row) for row in (rows if iteration else [])))
        self.board = _tensorboard(path.parent) if tensorboard else None

    def write(self, iteration: int, **values: object) -> None:
        self.file.append(json.dumps({"iteration": iteration, **values}))
        if self.board is not None:
            for name, value in values.items():
                if isinstance(value, float):
                    self.board.add_scalar(name, value, iteration)

    def close(self) -> None:
        self.file.close()
        if self.board is not None:
            self.board.close()


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackage("tensorboard: true needs `pip install tensorboard`") from error
    return SummaryWriter(str(folder / "tensorboard"))


class TrainingBar:
    """Iterations done, loss, mIoU, images a second and the time that is left, on the terminal."""

    def __init__(self, total: int, done: int, show: bool):
        self.total = total
        self.progress = Progress(
            TextColumn("{task.completed}/{task.total}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  mIoU {task.fields[miou]}"),
            TextColumn("{task.fields[speed]} images/s"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[word]}"),
            console=Console(stderr=True),
            disable=not show,
        )
        self.task = self.progress.add_task(
            "train", total=total, completed=done, loss="-", miou="-", speed="-", word="left"
        )

    def __enter__(self) -> TrainingBar:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def show(self, iteration: int, **fields: Any) -> None:
        word = "left" if iteration < self.total else "taken"
        self.progress.update(self.task, completed=iteration, word=word, **fields)


def draw_curves(rows: Iterable[dict[str, Any]], path: Path) -> Path:
    """Loss, learning rate and validation mIoU over iterations, from the rows of a log, as PNG."""
    rows = list(rows)
    figure = Figure(figsize=(8, 9), layout="constrained")
    # Without pyplot, which keeps every figure and looks for a display.
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
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    write_atomically(path, content.getvalue())
    return path
