"""False alarms and finds of the picture checks on real frames, by day, at night and in tunnels.

Every frame of the folders is judged in several kinds of light, and then with faults put into it:

    python scripts/picture_alarms.py camvid/train camvid/val -o docs/results/picture-faults.md

Prints the tables as Markdown, or writes them; exit code 1 at any false alarm.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rtseg.data.files import write_atomically
from rtseg.data.frames import open_source
from rtseg.data.images import read_image
from rtseg.reporting import Table
from rtseg.runtime.drive.picture_faults import PictureJudge
from rtseg.system import read_system

NOISE = 1.5  # levels, that every darkened picture gets anew, as a sensor's gain gives it
Change = Callable[[Any, Any], Any]  # a picture and the one before it -> the changed one


def in_light(gain: float, offset: float = 0.0) -> Change:
    def change(picture: Any, before: Any) -> Any:
        return noisy(picture.astype(np.float32) * gain + offset, NOISE)

    return change


def noisy(picture: Any, sigma: float) -> Any:
    noise = np.empty((len(picture), picture[0].size), np.float32)
    cv2.randn(noise, np.zeros(1), np.full(1, sigma))
    return cv2.add(noise.reshape(picture.shape), picture, dtype=cv2.CV_8U)


def below(share: float, lower: Change) -> Change:
    """The picture, and `lower` from that share of its height on."""

    def change(picture: Any, before: Any) -> Any:
        row = round(len(picture) * share)
        other = np.broadcast_to(lower(picture, before), picture.shape)
        return np.concatenate([picture[:row], other[row:]])

    return change


LIGHTS: dict[str, Change] = {
    "as it is": lambda picture, before: picture,
    "dusk, 0.5": in_light(0.5),
    "night, 0.25": in_light(0.25),
    "tunnel, 0.1": in_light(0.1),
    "low sun, 1.6": in_light(1.6),
    "haze, 0.4 + 100": in_light(0.4, 100),
}
FAULTS: dict[str, tuple[str, Change]] = {
    "a lens cap": ("black", lambda p, b: noisy(np.zeros(p.shape, np.float32), 3)),
    "exposure 4 times too long": ("overexposed", in_light(4, 80)),
    "mud on the lens": (
        "blocked",
        lambda p, b: noisy(np.full(p.shape, (40, 60, 70), np.float32), 3),
    ),
    "the lower third gray": (
        "half_decoded",
        below(2 / 3, lambda p, b: np.array([128] * 3, np.uint8)),
    ),
    "the lower third green": (
        "half_decoded",
        below(2 / 3, lambda p, b: np.array([0, 135, 0], np.uint8)),
    ),
    "the lower third one row": (
        "half_decoded",
        below(2 / 3, lambda p, b: p[len(p) * 2 // 3][None]),
    ),
    "shifted by 8 pixels": ("torn", below(0.6, lambda p, b: np.roll(p, 8, 1))),
    "shifted by 16 pixels": ("torn", below(0.6, lambda p, b: np.roll(p, 16, 1))),
    "the lower part of the frame before": ("torn", below(0.6, lambda p, b: b)),
}


def measure(folders: Sequence[Path], pairs: int = 20) -> tuple[list[Table], int]:
    """Tables and the number of false alarms. pairs: frames of a folder that get faults."""
    alarms, finds, costs = [], [], []
    wrong = 0
    for folder in folders:
        pictures = [read_image(path) for path in open_source(folder).paths]
        counts: list[object] = []
        for light in LIGHTS.values():
            judge = PictureJudge()
            alarmed = sum(bool(judge.judge(light(picture, None))) for picture in pictures)
            counts.append(alarmed)
            wrong += alarmed
        alarms.append((f"{folder.parent.name}/{folder.name}", len(pictures), *counts))
        costs.append(measure_cost(folder, pictures[0]))
    for name, (cause, change) in FAULTS.items():
        found: Counter[str] = Counter()
        for folder in folders:
            paths = open_source(folder).paths
            for one, other in [*pairwise(paths)][:: -(-len(paths) // pairs)]:
                before, picture = read_image(one), read_image(other)
                if before.shape != picture.shape:
                    continue
                judge = PictureJudge()
                judge.judge(before)
                told = [fault.cause for fault in judge.judge(change(picture, before))]
                found["pictures"] += 1
                found["found"] += cause in told
                found["by another name"] += bool(told) and cause not in told
        row = [found[key] for key in ("pictures", "found", "by another name")]
        finds.append((name, cause, *row))
    return [
        Table(("frames", "number", *LIGHTS), alarms, "False alarms", words=("frames",)),
        Table(
            ("fault", "check", "pictures", "found", "by another name"),
            finds,
            "Faults put into the frames",
            words=("fault", "check"),
        ),
        Table(("picture", "ms of processor time"), costs, "Cost", words=("picture",)),
    ], wrong


def measure_cost(folder: Path, picture: Any) -> tuple[str, float]:
    """The median processor time of judging a picture; what else runs here does not count."""
    judge, times = PictureJudge(), []
    for shift in range(101):
        moved = np.roll(picture, shift, 1)
        began = time.thread_time()
        judge.judge(moved)
        times.append(time.thread_time() - began)
    height, width = picture.shape[:2]
    return f"{height}x{width}, {folder.name}", round(1000 * float(np.median(times)), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", type=Path, help="of real frames")
    parser.add_argument("-o", "--out", type=Path, help="Markdown file")
    parser.add_argument(
        "--cost", metavar="HxW", help="only the cost, with the first frame of each at that size"
    )
    arguments = parser.parse_args()
    if arguments.cost:
        height, width = (int(side) for side in arguments.cost.split("x"))
        for folder in arguments.folders:
            first = read_image(open_source(folder).paths[0])
            picture = cv2.resize(first, (width, height), interpolation=cv2.INTER_CUBIC)
            sys.stdout.write("{}: {} ms\n".format(*measure_cost(folder, picture)))
        return 0
    cv2.setNumThreads(1)
    tables, wrong = measure(arguments.folders)
    command = "python scripts/picture_alarms.py " + " ".join(
        f"{folder.parent.name}/{folder.name}" for folder in arguments.folders
    )
    parts = ["# The picture checks on real frames", f"By `{command}` on {read_system()}."]
    for table in tables:
        parts += [f"## {table.title}", replace(table, title="").markdown()]
    text = "\n\n".join(parts) + "\n"
    if arguments.out:
        write_atomically(arguments.out, text.encode())
    print(text)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
