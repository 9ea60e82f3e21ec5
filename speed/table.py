"""The speed table: every real-time network at three sizes, measured cell by cell."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..data.classes import CITYSCAPES
from ..data.files import write_atomically
from ..errors import RtsegError
from ..runtime.packages import slug, writable_cache
from ..system import SystemInfo, read_system
from .bench import bench
from .pages import FORMAT
from .published import REAL_TIME, SIZES
from .sheet import utc_now

Size = tuple[int, int]
Progress = Callable[[str, float], None]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Wanted:
    """What a table measures. precisions: () for each backend's own choice; other fields as of
    `bench`."""

    models: Sequence[str] = REAL_TIME
    sizes: Sequence[Size] = SIZES
    backends: Sequence[str] = ()
    precisions: Sequence[str] = ()
    peers: Sequence[str] = ()
    seconds: float = 5.0
    runs: int = 100
    threads: int | None = None
    camera_hz: float | None = 10.0
    calib: Path | None = None
    device: str | None = None

    def key(self, here: SystemInfo) -> dict[str, Any]:
        """What a cell has to agree in to be taken for measured already."""
        value = asdict(self) | {"calib": str(self.calib), "machine": str(here)}
        packages = dict(here.packages) | {"rtseg": __version__}
        kept = {name: each for name, each in value.items() if name not in ("models", "sizes")}
        kept |= {"packages": packages}
        cleaned: dict[str, Any] = json.loads(json.dumps(kept))
        return cleaned


def measure(wanted: Wanted, folder: Path, progress: Progress = lambda step, share: None) -> Path:
    """Measures what is not measured yet, a (model, size) at a time, and writes this machine's file
    into `folder`: a run that was stopped goes on where it was.

    What cannot be exported or run is listed in the file under `absent`, with the reason.
    """
    here = read_system()
    cells, key = writable_cache("table") / slug(str(here)), wanted.key(here)
    path = folder / f"{slug(_short(here))}.json"
    pairs = [(model, size) for size in wanted.sizes for model in wanted.models]
    rows: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    for done, (model, size) in enumerate(pairs):
        title = f"{Path(model).stem} {size[0]}x{size[1]}"
        progress(f"{title}, {done + 1} of {len(pairs)}", done / len(pairs))
        try:
            rows += _cell(cells / f"{title.replace(' ', '_')}.json", key, model, size, wanted)
        except (RtsegError, RuntimeError) as error:
            absent[title] = str(error).splitlines()[0][:300]
        _save(path, here, key, rows, absent)
    return path


def _save(
    path: Path,
    here: SystemInfo,
    key: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    absent: Mapping[str, str],
) -> None:
    """The machine's file, with what is measured so far."""
    value = {
        "format": FORMAT,
        "machine": asdict(here),
        "title": _short(here),
        "measured": utc_now(),
        "settings": dict(key),
        "absent": dict(absent),
        "rows": list(rows),
    }
    write_atomically(path, (json.dumps(_merged(path, value), indent=1) + "\n").encode())


def _merged(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """With the rows of the file's earlier run that this one did not measure."""
    try:
        before = json.loads(path.read_text())["rows"]
    except (OSError, ValueError, KeyError):
        return value
    measured = {(row["model"], tuple(row["size"])) for row in value["rows"]}
    kept = [row for row in before if (row["model"], tuple(row["size"])) not in measured]
    return value | {"rows": [*kept, *value["rows"]]}


def _cell(
    path: Path, key: Mapping[str, Any], model: str, size: Size, wanted: Wanted
) -> list[dict[str, Any]]:
    """The rows of one network at one size, from an earlier run that was asked the same, or new."""
    try:
        kept = json.loads(path.read_text())
        if kept["key"] == key:
            return list(kept["rows"])
    except (OSError, ValueError, KeyError):
        pass
    report = bench(
        [model],
        [size],
        wanted.backends,
        wanted.precisions,
        seconds=wanted.seconds,
        runs=wanted.runs,
        threads=wanted.threads,
        peers=wanted.peers,
        camera_hz=wanted.camera_hz,
        roofline=True,
        calib=wanted.calib,
        classes=None if Path(model).exists() else CITYSCAPES,
        device=wanted.device,
    )
    rows = [compact(row.facts()) for row in report.rows]
    write_atomically(path, json.dumps({"key": dict(key), "rows": rows}).encode())
    return rows


def compact(row: Row) -> dict[str, Any]:
    """A row of a report without what all rows of a machine share."""
    kept = {name: row[name] for name in ROW if name in row}
    return kept | {"others": (row.get("noise") or {}).get("others")}


ROW = (
    "model", "size", "precision", "backend", "backend_version", "device", "threads", "weights",
    "trained", "peer", "macs", "papers", "network", "frame_to_labels", "camera", "against",
    "roofline", "gpu", "histograms",
)  # fmt: skip


def _short(here: SystemInfo) -> str:
    """A machine's name for a heading: its GPU, or its processor and cores."""
    if here.gpus:
        return " + ".join(dict.fromkeys(here.gpus))
    best = [name for name in ("amx_int8", "avx512", "avx2", "i8mm", "neon")
            if name in here.instruction_sets]  # fmt: skip
    name = re.sub(r"\((R|TM)\)", "", here.cpu)
    cores = f"{here.cores} core{'s' if here.cores > 1 else ''}"
    return " ".join(f"{name}, {cores} {best[0] if best else ''}".split())
