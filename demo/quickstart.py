"""The whole pipeline once, for someone who has just installed the package."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console, RenderableType

from ..data.files import write_atomically
from ..data.frames import SHIPPED_FRAMES, read_folder
from ..data.images import blend, draw_legend
from ..export import Artifact, export
from ..export.artifacts import build_table
from ..export.job import TARGETS
from ..models.loading import Model, load_model
from ..reporting import Progress
from ..runtime import load
from ..runtime.backends.backend import is_installed
from ..runtime.preflight import check
from ..speed import bench
from ..speed.doctor import examine

SCALES = (2 / 3, 1, 4 / 3)  # of the training's size: no network is shown where it fails
WIDTH = 640  # pixels of a picture in the report


@dataclass(frozen=True)
class QuickstartResult:
    """What a run showed: tables to print, lines to print after them, and the report's path."""

    tables: list[RenderableType]
    notes: list[str]
    report: Path


def run(
    folder: Path, model: str, frames: Path | None, seconds: float, step: Progress
) -> QuickstartResult:
    """Export a network at three sizes, prove it, build engines, measure, and segment frames.

    Args:
        folder: for everything that is made, with `report.html` over it.
        model: what `load_model` takes.
        frames: a folder of images, by default three frames of a motorway that ship.
        seconds: of measuring for each table row.
        step: called with a line before each step.
    """
    step("looking at this machine", 0.0)
    machine = examine()
    source = load_model(model)
    pictures = read_folder(frames or SHIPPED_FRAMES)
    sizes = choose_sizes(source, pictures[0][1].shape)
    artifacts = _export(source, sizes, pictures, folder / "artifacts", step)
    step("measuring", 0.0)
    # The forms made for this machine; ONNX files only where there are none.
    runnable = [str(a.path) for a in artifacts if a.target != "onnx" and check(a.path).ok]
    runnable = runnable or [str(a.path) for a in artifacts if a.target == "onnx"]
    speed = bench(
        runnable,
        seconds=seconds,
        frames=[image for _, image in pictures],
        progress=lambda line, share: step(f"measuring: {line}", share),
    )
    write_atomically(folder / "bench.json", speed.to_json().encode())
    step("segmenting frames", 0.0)
    shown = _segment(pictures, _best(artifacts, sizes[1]), folder / "frames")
    tables = [machine.table(), build_table(artifacts), speed.table()]
    notes = _notes(source, frames, artifacts, folder)
    report = folder / "report.html"
    write_atomically(report, _report(tables, notes, shown, source).encode())
    return QuickstartResult(tables, notes, report)


def choose_sizes(model: Model, frame: tuple[int, ...]) -> list[tuple[int, int]]:
    """(height, width) near those of the training, of the frames' aspect: (H, W, 3) is `frame`."""
    step, height = model.network.info.multiple, model.trained_size[0]
    return [
        (
            max(step, round(height * scale / step) * step),
            max(step, round(height * scale * frame[1] / frame[0] / step) * step),
        )
        for scale in SCALES
    ]


def _export(
    source: Model,
    sizes: list[tuple[int, int]],
    pictures: list[tuple[str, NDArray[np.uint8]]],
    out: Path,
    step: Progress,
) -> list[Artifact]:
    """For CPUs in the default precision, for TensorRT in half; targets whose package is absent
    go."""
    common: dict[str, Any] = {
        "out": out,
        "frames": pictures[:2],
        "progress": step,
    }
    on_cpu = [t for t in ("onnx", "openvino") if is_installed(TARGETS[t][1])]
    artifacts = export(source, sizes, on_cpu, **common)
    if is_installed("tensorrt"):
        artifacts += export(source, sizes, ["tensorrt"], "fp16", **common)
    return artifacts


def _best(artifacts: list[Artifact], size: tuple[int, int]) -> Artifact:
    """The artifact to show frames with: the fastest of `size` that runs here."""
    able = [a for a in artifacts if a.card.size == size and check(a.path).ok]
    return min(able, key=lambda a: ("tensorrt", "openvino", "onnx").index(a.target))


def _segment(
    pictures: list[tuple[str, NDArray[np.uint8]]], artifact: Artifact, out: Path
) -> list[Path]:
    """Overlays beside their frames, with a legend, as files."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    with load(artifact.path) as segmenter:
        for name, frame in pictures:
            over = blend(frame, segmenter(frame), segmenter.card.palette, 0.55)
            high = round(WIDTH * frame.shape[0] / frame.shape[1])
            small = [
                cv2.resize(each, (WIDTH, high), interpolation=cv2.INTER_AREA)
                for each in (frame, over)
            ]
            strip = draw_legend(segmenter.card.class_table, 2 * WIDTH)
            path = out / f"{name.replace(' ', '_')}.jpg"
            encoded = cv2.imencode(".jpg", np.vstack([np.hstack(small), strip]))[1]
            write_atomically(path, encoded.tobytes())
            written.append(path)
    return written


def _notes(
    source: Model, frames: Path | None, artifacts: list[Artifact], folder: Path
) -> list[str]:
    notes = [f"{source.network.info.name}, weights: {source.weights_from}"]
    if not source.trained:
        notes.append("These weights are random: speed and parity are real, the pictures are not.")
    if frames is None:
        # The streets weights learned from frames of this very video, these three among them.
        seen = " that the weights were trained on" if "_streets." in source.weights_from else ""
        notes.append(
            f"The frames are of a motorway (Udacity, MIT License){seen}: see how it does on your "
            "own, rtseg quickstart --frames FOLDER"
        )
    if source.classes.name == "camvid":
        notes.append("The weights were trained on CamVid, streets of one town; see the model card.")
    engines = [a for a in artifacts if a.target == "tensorrt"]
    if engines and engines[0].status != "proven":
        notes.append(
            f"{len(engines)} TensorRT engines are built and will be proven on the first GPU "
            "that loads them."
        )
    notes.append(f"Artifacts, frames and bench.json: {folder}")
    return notes


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>rtseg quickstart</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem;
  color: #222; background: #fff }}
pre {{ font: 13px/1.25 ui-monospace, monospace; overflow-x: auto; background: #f6f6f6;
  padding: 1rem }}
img {{ max-width: 100%; display: block; margin: 0 0 1rem }}
</style></head><body>
<h1>{title}</h1>
<ul>{notes}</ul>
<h2>Frames, left, and what the network sees in them</h2>
{pictures}
{tables}
</body></html>
"""


def _report(
    tables: list[RenderableType], notes: list[str], shown: list[Path], source: Model
) -> str:
    return PAGE.format(
        title=html.escape(f"rtseg quickstart: {source.network.info.name}"),
        notes="".join(f"<li>{html.escape(note)}</li>" for note in notes),
        pictures="".join(
            f'<img src="frames/{html.escape(path.name)}" alt="{html.escape(path.stem)}">'
            for path in shown
        ),
        tables="".join(_as_html(table) for table in tables),
    )


def _as_html(table: RenderableType) -> str:
    console = Console(record=True, file=io.StringIO(), width=150)
    console.print(table)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")
