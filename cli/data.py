"""`rtseg data`: data sets, checked and packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ._console import JobFailed, note, show, steps
from ._options import Classes, Json, Split, complete_data


def check_data(
    root: Annotated[Path, Argument(help="The data set's folder.")],
    dataset: Annotated[
        str, Option("--as", help="camvid, cityscapes, folder, ...", autocompletion=complete_data)
    ] = "folder",
    split: Split = "train",
    classes: Classes = None,
    sheet: Annotated[Path | None, Option("--sheet", help="Contact sheet to write, a PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Read every file of a split and report what is wrong.

    The exit code is 1 if anything is.

    rtseg data check data/camvid --as camvid --split train --sheet camvid.png
    """
    from ..api import open_dataset
    from ..data.check import check as run
    from ..data.check import contact_sheet
    from ..data.images import write_png
    from ..reporting import Table

    data = open_dataset(dataset, root, split, classes)
    with steps("check", len(data)) as advance:
        found = run(data, seen=advance)
    if sheet:
        write_png(sheet, contact_sheet(data))
    facts = found.as_dict()
    rows = [
        (name, f"{100 * row['frequency']:.2f}", row["images"])
        for name, row in facts["classes"].items()
    ]
    table = Table(("class", "frequency %", "images"), rows, title=f"{found.images} images")
    show(json.dumps(facts), table, as_json)
    if found.absent:
        note(f"classes in no image: {', '.join(found.absent)}")
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
    quality: Annotated[int, Option(min=1, max=100, help="JPEG quality.")] = 90,
    as_json: Json = False,
) -> None:
    """Pack street frames and their labels as one small data set.

    Soft labels are included; it is meant for training on another machine.

    rtseg data pack data/camvid data/street19 -o data/streets19
    """
    from ..data.classes import load_class_set
    from ..data.pack import pack_streets

    with steps("pack", None) as advance:
        packed = pack_streets(
            camvid, street19, folder, load_class_set(classes), quality, seen=advance
        )
    facts = {"out": str(folder), "frames": packed.frames, "bytes": packed.bytes}
    counts = ", ".join(f"{split} {count}" for split, count in packed.frames.items())
    show(json.dumps(facts), f"{folder}: {counts}; {packed.bytes / 1e6:.1f} MB", as_json)
