"""A fleet's workers: readers that yield frames, and actors that label them.

Rows travel between them as dicts. A row with `error` reports a log that failed, one with `skipped`
a frame that could not be read, one with `end` the last frame of a log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.frames import Frame, Unreadable, open_source
from ..data.images import write_png
from ..data.mcap_reader import McapLog
from ..runtime import Segmenter
from .run_lengths import encode

Row = dict[str, Any]


def read_log(job: Row) -> Iterator[Row]:
    """All frames of the log `job`, one row each, and a last row with their number."""
    sent = 0
    try:
        for item in _frames(job["input"]):
            if isinstance(item, Frame):
                yield _row(job, item.name or f"{sent:06d}", item.index, item.image)
                sent += 1
            else:
                yield _row(job, item.name) | {"skipped": item.reason}
    except Exception as error:  # one bad log must not end the others
        yield _row(job) | {"error": f"{type(error).__name__}: {error}"}
        return
    yield _row(job) | {"end": sent}


def _frames(where: str) -> Iterable[Frame | Unreadable]:
    return McapLog(Path(where)) if where.endswith(".mcap") else open_source(where)


def _row(job: Row, name: str = "", index: int = -1, image: NDArray[np.uint8] | None = None) -> Row:
    """All rows have all columns: a block of them is a table. Images travel as bytes, since logs
    differ in size."""
    height, width = image.shape[:2] if image is not None else (0, 0)
    return {
        "log": job["log"],
        "name": name,
        "index": index,
        "height": height,
        "width": width,
        "image": image.tobytes() if image is not None else b"",
        "skipped": "",
        "error": "",
        "end": -1,
    }


def _picture(row: Row) -> NDArray[np.uint8]:
    size = int(row["height"]), int(row["width"])
    return np.frombuffer(row["image"], np.uint8).reshape(*size, 3)


class Labeler:
    """An actor: holds a Segmenter, takes batches of frames, writes or returns their labels.

    out: folder of the logs' folders; form: "png" writes `LOG/labels/NAME.png`, "rle" returns runs.
    """

    def __init__(self, opener: Callable[[], Segmenter], out: str, form: str):
        self.segment, self.out, self.form = opener(), Path(out), form
        self.classes = len(self.segment.card.classes)

    def __call__(self, batch: dict[str, NDArray[np.generic]]) -> dict[str, list[object]]:
        rows = [{key: batch[key][i] for key in batch} for i in range(len(batch["log"]))]
        answers: list[Row] = []
        labels = self._stream(rows)
        for row in rows:
            answers.append(self.answer(row, labels))
            if row["image"] and answers[-1]["error"]:  # which ends a stream
                labels = self._stream(rows[len(answers) :])
        return {key: [answer[key] for answer in answers] for key in answers[0]}

    def _stream(self, rows: Iterable[Row]) -> Iterator[NDArray[np.uint8]]:
        return self.segment.stream_pictures(_picture(row) for row in rows if row["image"])

    def answer(self, row: Row, labels: Iterator[NDArray[np.uint8]] | None = None) -> Row:
        """`row` without its image, with its labels' figures. labels: a stream in which they are
        next, by default of this row alone. began_at: seconds since 1970."""
        answer = {key: row[key] for key in row if key != "image"}
        answer |= {"ms": 0.0, "pixels": [0] * self.classes, "values": b"", "lengths": b""}
        answer["began_at"] = time.time()
        if not row["image"]:
            return answer
        try:
            return answer | self._label(row, labels or self._stream([row]))
        except Exception as error:  # of one log; the others go on
            return answer | {"error": f"{row['name']}: {type(error).__name__}: {error}"}

    def _label(self, row: Row, stream: Iterator[NDArray[np.uint8]]) -> Row:
        began = time.perf_counter()
        labels = next(stream)
        ms = (time.perf_counter() - began) * 1000
        pixels = np.bincount(labels.reshape(-1), minlength=self.classes)[: self.classes].tolist()
        if self.form == "rle":
            values, lengths = encode(labels)
            return {
                "ms": ms,
                "pixels": pixels,
                "values": values.tobytes(),
                "lengths": lengths.tobytes(),
            }
        path = self.out / row["log"] / "labels" / f"{row['name']}.png"
        write_png(path, labels)
        return {"ms": ms, "pixels": pixels}
