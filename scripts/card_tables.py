"""Measures weights in every form on a labeled data set, and prints the tables of a model card.

python scripts/card_tables.py csfcn_tiny:camvid camvid --root data/camvid --export-frames train
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rtseg.api import evaluate
from rtseg.export import export
from rtseg.models.loading import Model, load_model
from rtseg.train.evaluate import Evaluation

NAMES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
PLAIN = ("fp32", "fp16")
INT8 = ("onnxruntime", "openvino")


def percent(share: float | None) -> str:
    """Such as 63.78; "not there" of a class that never occurs."""
    return "not there" if share is None else f"{100 * share:.2f}"


def write_table(words: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [words, ["---"] * len(words), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def describe_network(found: Evaluation) -> str:
    """mIoU, classes, corruptions and flicker of the network itself."""
    facts = found.as_dict()
    classes = zip(found.classes.names, found.confusion.iou(), strict=True)
    corrupted = [("none", found.confusion.miou()), *found.corruptions.items()]
    flicker = "" if found.flicker is None else f"Flicker: {percent(found.flicker.share)} %.\n"
    return "\n".join(
        [
            f"**mIoU {percent(found.confusion.miou())} %**, pixel accuracy "
            f"{percent(found.confusion.pixel_accuracy())} %, {facts['images']} frames.\n",
            write_table(
                ("class", "IoU %"),
                [(name, percent(None if iou != iou else iou)) for name, iou in classes],
            ),
            write_table(("corruption", "mIoU %"), [(n, percent(v)) for n, v in corrupted]),
            flicker,
        ]
    )


def export_forms(model: Model, frames: Path, folder: Path) -> Iterator[tuple[Path, str, str]]:
    """(file, backend, what int8's ranges are of) of every form, proven on `frames`."""
    for precision in PLAIN:
        made = export(
            model, to=("onnx", "openvino"), precision=precision, frames=frames, out=folder
        )
        for each in made:
            yield each.path, "openvino" if each.target == "openvino" else "onnxruntime", ""
    for each in export(model, to=INT8, precision="int8", out=folder / "int8"):
        yield each.path, each.target, ", by the ranges that ship"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print, each table when it is known."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="weights that ship, such as csfcn_tiny:camvid")
    parser.add_argument("data")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--export-frames", required=True, help="folder in it to prove files on")
    options = parser.parse_args(arguments)
    model = load_model(options.model)
    temporal = options.data == "camvid"  # whose val is labeled frame after frame
    found = evaluate(model, options.data, options.root, corrupt=True, temporal=temporal)
    print(describe_network(found), flush=True)
    rows = [
        ("PyTorch fp32", percent(found.confusion.miou()), percent(found.confusion.pixel_accuracy()))
    ]
    with TemporaryDirectory() as folder:
        frames = options.root / options.export_frames
        for path, backend, note in export_forms(model, frames, Path(folder)):
            found = evaluate(path, options.data, options.root, backend=backend)
            form = f"{NAMES[found.backend]} {found.precision}{note}"
            counts = found.confusion
            rows.append((form, percent(counts.miou()), percent(counts.pixel_accuracy())))
            print(rows[-1], flush=True)
    print(write_table(("form", "mIoU", "pixel accuracy"), rows))


if __name__ == "__main__":
    main()
