"""The logs of a fleet: their output folders, which are done already, and their reports."""

from __future__ import annotations

import glob
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.files import write_atomically
from ..data.frames import numeric_order
from ..data.limits import read_json_object, read_lines
from ..errors import UsageError
from .workers import Row

REPORT = "log.json"  # written last: a log that has it is done


@dataclass(frozen=True)
class DriveLog:
    """An input and the name of its folder in the output."""

    input: str
    name: str

    def is_done(self, out: Path, job: dict[str, Any]) -> bool:
        """Whether this very input was labeled by the same artifact into the same form."""
        facts = read_json_object(out / self.name / REPORT)
        # Another artifact or form would mix labels of two kinds.
        return bool(facts.get("job") == job and facts.get("input") == self.input)


def find_logs(inputs: Sequence[str]) -> list[DriveLog]:
    """A log for every folder, video or image; a glob gives one for each match, `@FILE` one for
    each line of that file.

    Raises:
        UsageError: if there are none.
    """
    paths: list[Path] = []
    for each in inputs:
        if each.startswith("@"):
            paths += map(Path, read_lines(Path(each[1:])))
        elif glob.has_magic(each) and not Path(each).exists():
            paths += sorted((Path(p) for p in glob.glob(each, recursive=True)), key=numeric_order)
        else:
            paths.append(Path(each))  # a missing one is reported as a bad log
    if nameless := [path for path in paths if "\0" in str(path)]:
        raise UsageError(f"{str(nameless[0])!r} holds a zero byte, as no name does: correct it")
    if not paths:
        raise UsageError(f"no logs at {', '.join(inputs)}: give folders, videos or quoted globs")
    paths = [Path(os.path.abspath(path)) for path in dict.fromkeys(paths)]  # `..` is no name
    stems = [path.stem for path in paths]
    return [DriveLog(str(path), _name(path, stems.count(path.stem) > 1)) for path in paths]


def _name(path: Path, shared: bool) -> str:
    if not shared:
        return path.stem
    return f"{path.stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


@dataclass
class LogProgress:
    """What came back of a log so far."""

    log: DriveLog
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    error: str = ""
    expected: int = -1

    def add(self, row: Row) -> None:
        if row["error"]:
            self.error = self.error or str(row["error"])
        elif row["skipped"]:
            self.skipped.append(str(row["skipped"]))
        elif row["end"] >= 0:
            self.expected = int(row["end"])
        else:
            self.rows.append(row)

    @property
    def complete(self) -> bool:
        return not self.error and self.expected == len(self.rows)

    def write(self, out: Path, job: dict[str, object], classes: Sequence[str]) -> dict[str, object]:
        """The log's labels, if they are runs, and its report; gives the report."""
        # Rows come in any order, from several workers.
        self.rows.sort(key=lambda row: row["index"])
        if not self.rows:
            self.error = "no frame could be read" + "".join(f"; {s}" for s in self.skipped[:1])
            return self.facts(job, classes)
        folder = out / self.log.name
        if job["form"] == "rle":
            write_atomically(folder / "labels.parquet", _parquet(self.rows))
        facts = self.facts(job, classes)
        write_atomically(folder / REPORT, (json.dumps(facts, indent=2) + "\n").encode())
        return facts

    def facts(self, job: dict[str, object], classes: Sequence[str]) -> dict[str, object]:
        """Frames, times, and the share of pixels that each class has."""
        pixels = np.sum([row["pixels"] for row in self.rows], axis=0) if self.rows else np.zeros(1)
        total = max(1, int(np.sum(pixels)))
        times = [row["ms"] for row in self.rows] or [0.0]
        return {
            "input": self.log.input,
            "job": job,
            "frames": len(self.rows),
            "skipped": self.skipped,
            "mean_ms": round(float(np.mean(times)), 3),
            "p99_ms": round(float(np.percentile(times, 99)), 3),
            "classes": {
                name: round(float(count) / total, 6)
                for name, count in zip(classes, pixels, strict=False)
            },
        }


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet as parquet

    table = pyarrow.table(
        {
            "index": [int(row["index"]) for row in rows],
            "name": [str(row["name"]) for row in rows],
            "height": [int(row["height"]) for row in rows],
            "width": [int(row["width"]) for row in rows],
            "values": pyarrow.array(
                [np.frombuffer(row["values"], np.uint8) for row in rows],
                pyarrow.list_(pyarrow.uint8()),
            ),
            "lengths": pyarrow.array(
                [np.frombuffer(row["lengths"], np.uint32) for row in rows],
                pyarrow.list_(pyarrow.uint32()),
            ),
        }
    )
    file = io.BytesIO()
    parquet.write_table(table, file, compression="zstd")
    return file.getvalue()
