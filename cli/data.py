"""What is wrong with a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from rich.table import Table
from typer import Argument, Option

from ._console import JobFailed, bar, note, show
from ._options import Classes, Json, class_set


def check_data(
    root: Annotated[Path, Argument(help="The data set's folder.")],
    dataset: Annotated[str, Option("--as", help="camvid, cityscapes, folder, ...")] = "folder",
    split: Annotated[str, Option(help="Which part of it.")] = "train",
    classes: Classes = None,
    sheet: Annotated[Path | None, Option("--sheet", help="Contact sheet to write, a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Read every file of a split and say what is wrong; exit code 1 if anything is.

    rtseg data check data/camvid --as camvid --split train --sheet camvid.png
    """
    from ..data.check import check as run
    from ..data.check import contact_sheet
    from ..data.datasets import open_data
    from ..data.files import write_atomically
    from ..data.images import png

    data = open_data(dataset, root, split, class_set(classes) if dataset == "folder" else None)
    with bar("frames") as steps:
        task = steps.add_task("check", total=len(data))
        found = run(data, seen=lambda index: steps.advance(task))
    if sheet:
        write_atomically(sheet, png(contact_sheet(data)))
    facts = found.as_dict()
    rows = Table("class", "frequency %", "images", title=f"{found.images} images")
    for name, row in facts["classes"].items():
        rows.add_row(name, f"{100 * row['frequency']:.2f}", str(row["images"]))
    show(json.dumps(facts), rows, as_json)
    for kind, lines in found.problems.items():
        note(f"{kind}: {len(lines)}, first {lines[0]}")
    if not found.good:
        raise JobFailed(f"problems: {sum(map(len, found.problems.values()))}")


def pack_data(
    camvid: Annotated[Path, Argument(help="CamVid in SegNet's version.")],
    street19: Annotated[
        Path, Argument(help="Folder with cityscapes/, cityscapes_labels/, highway/ and soft/.")
    ],
    folder: Annotated[Path, Option("-o", "--out", help="The new data set's folder.")],
    classes: Annotated[str, Option(help="cityscapes or camvid.")] = "cityscapes",
    quality: Annotated[int, Option(min=1, max=100, help="Of JPEG.")] = 90,
    as_json: Json = False,
) -> None:
    """Pack street frames, labels and soft labels as one small data set, to train elsewhere.

    rtseg data pack data/camvid data/street19 -o data/streets19
    """
    from ..data.pack import pack_streets

    wanted = class_set(classes)
    assert wanted is not None
    with bar("frames") as steps:
        task = steps.add_task("pack", total=None)
        packed = pack_streets(
            camvid, street19, folder, wanted, quality, seen=lambda: steps.advance(task)
        )
    facts = {"out": str(folder), "frames": packed.frames, "bytes": packed.bytes}
    counts = ", ".join(f"{split} {count}" for split, count in packed.frames.items())
    show(json.dumps(facts), f"{folder}: {counts}; {packed.bytes / 1e6:.1f} MB", as_json)
