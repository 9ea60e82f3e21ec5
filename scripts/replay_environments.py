"""Updates between two environments: equal ones, and with each of four planted faults.

The old side runs in another environment's interpreter, which has this package and another version
of the runtime; the new one runs here. Both label the same file, block by block in turns.

    python scripts/replay_environments.py camvid/val --python old/bin/python --backend openvino
"""

from __future__ import annotations

import argparse
import json
import mmap
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import psutil
import torch
from rtseg.data.files import write_atomically
from rtseg.data.frames import open_source
from rtseg.errors import RtsegError
from rtseg.export import export
from rtseg.models.loading import load_model
from rtseg.reporting import Table
from rtseg.runtime import Segmenter, load
from rtseg.speed import replay as replay_module
from rtseg.speed.replay import ReplayConfig, ReplayResult
from rtseg.speed.replay_elsewhere import replay_elsewhere

Call = Callable[[Any], Any]
NETWORK = "csfcn_nano:camvid"
EVERY = 4  # of the folder's frames, so that a replay takes a minute
SLOWER = 0.2
KEPT = 10**6  # bytes a frame


@dataclass(frozen=True)
class Update:
    """One replay: what was planted, the bars that were missed or not decided, and the ratio of the
    times with its interval. busy: processes of the machine that wanted a core at its end."""

    backend: str
    old: str
    new: str
    planted: str
    refused: tuple[str, ...]
    undecided: tuple[str, ...]
    ratio: tuple[float, float, float]
    agreement: float
    memory: float | None
    runs: int
    busy: float

    @property
    def outcome(self) -> str:
        return "refused" if self.refused else "not decided" if self.undecided else "passed"


def plant_latency(call: Call) -> Call:
    """Each call by SLOWER longer, in work of this thread like the rest of it."""

    def slower(frame: Any) -> Any:
        start = cv2.getTickCount()
        labels = call(frame)
        end = cv2.getTickCount()
        while cv2.getTickCount() - end < SLOWER * (end - start):
            pass
        return labels

    return slower


def plant_memory(call: Call) -> Call:
    """KEPT bytes more a frame, mapped anew: what an earlier update gave back to this process' heap
    would take them without growing."""
    kept: list[mmap.mmap] = []

    def growing(frame: Any) -> Any:
        kept.append(mmap.mmap(-1, KEPT))
        kept[-1].write(b"1" * KEPT)
        return call(frame)

    return growing


def plant_resize(call: Call, size: tuple[int, int]) -> Call:
    """The frame brought to the network's size by its nearest pixels."""

    def nearest(frame: Any) -> Any:
        height, width = frame.shape[:2]
        small = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_NEAREST)
        return cv2.resize(call(small), (width, height), interpolation=cv2.INTER_NEAREST)

    return nearest


class Planted(Segmenter):
    """An artifact whose calls go through a fault."""

    def __init__(self, sound: Segmenter, plant: Callable[[Call], Call]):
        super().__init__(sound.backend)
        self.faulty = plant(super().__call__)

    def __call__(self, frame: Any) -> Any:
        return self.faulty(frame)


@contextmanager
def planted(plant: Callable[[Call], Call]) -> Any:
    """Every artifact that a replay loads here has the fault."""
    opened: Callable[..., Segmenter] = lambda *given: Planted(load(*given), plant)  # noqa: E731
    with mock.patch.object(replay_module, "load", opened):
        yield


def export_twice(size: tuple[int, int], folder: Path) -> tuple[Path, Path]:
    """The network as it is, and with the outputs of one convolution in reversed order."""
    (sound,) = export(load_model(NETWORK), to="onnx", size=size, out=folder / "sound")
    wrong = load_model(NETWORK)
    convolutions = [m for m in wrong.network.modules() if isinstance(m, torch.nn.Conv2d)]
    middle = convolutions[len(convolutions) // 2]
    with torch.no_grad():
        middle.weight.copy_(middle.weight.flip(0))
    (made,) = export(wrong, to="onnx", size=size, out=folder / "wrong")
    return Path(sound.path), Path(made.path)


def link_frames(frames: Path, folder: Path) -> Path:
    """A folder of every so many of the frames."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in open_source(frames).paths[::EVERY]:
        link = folder / path.name
        if not link.exists():
            link.symlink_to(path.resolve())
    return folder


def describe(done: ReplayResult, name: str) -> Update:
    from rtseg.speed.replay_report import describe_replay

    facts = describe_replay(done)
    return Update(
        backend=done.new.backend,
        old=done.old.version,
        new=done.new.version,
        planted=name,
        refused=tuple(facts["refused"]),
        undecided=tuple(facts["undecided"]),
        ratio=tuple(round(each, 4) for each in facts["latency_ratio"]),
        agreement=facts["agreement"],
        memory=facts["new"]["memory_mb_a_frame"],
        runs=done.new.runs,
        busy=round(psutil.getloadavg()[0], 1),
    )


def summarize(updates: list[Update]) -> Table:
    """A row a runtime and what was planted."""
    rows = []
    for key in dict.fromkeys((each.backend, each.planted) for each in updates):
        some = [each for each in updates if (each.backend, each.planted) == key]
        outcomes = [each.outcome for each in some]
        ratios = [each.ratio[0] for each in some]
        names = ", ".join(dict.fromkeys(name for each in some for name in each.refused))
        rows.append((
            f"{key[0]}, {some[0].old} to {some[0].new}", key[1], str(len(some)),
            *(str(outcomes.count(name)) for name in ("passed", "not decided", "refused")),
            names or "none", f"{min(ratios):.3f} to {max(ratios):.3f}",
        ))  # fmt: skip
    words = ("runtime", "planted", "updates", "passed", "not decided", "refused", "by", "ratio")
    return Table(words, rows)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("frames", type=Path, help="a folder of pictures")
    parser.add_argument("--python", required=True, help="interpreter of the other environment")
    parser.add_argument("--backend", required=True, choices=("onnxruntime", "openvino"))
    parser.add_argument("--size", default="184x240")
    parser.add_argument("--equal", type=int, default=20, help="equal updates")
    parser.add_argument("--runs", type=int, default=200, help="least timed frames a side")
    parser.add_argument("--faulty", type=int, default=3, help="updates with each fault")
    parser.add_argument("-o", "--out", type=Path, default=Path("replay-environments"))
    given = parser.parse_args(arguments)
    height, width = (int(side) for side in given.size.split("x"))
    made = [given.out / name / f"csfcn_nano_{given.size}_fp32.onnx" for name in ("sound", "wrong")]
    if not all(path.is_file() for path in made):
        made = list(export_twice((height, width), given.out))
    log, (sound, wrong) = link_frames(given.frames, given.out / "log"), made
    kept = given.out / "updates.jsonl"  # an interrupted run goes on from here
    lines = kept.read_text().splitlines() if kept.is_file() else []
    updates = [Update(**json.loads(line)) for line in lines]
    plants: dict[str, Callable[[Call], Call]] = {
        "nothing": lambda call: call,
        "20 % more time": plant_latency,
        "1 MB a frame": plant_memory,
        "another resize": lambda call: plant_resize(call, (height, width)),
        "a wrong convolution": lambda call: call,
    }
    for name, plant in plants.items():
        model = wrong if name == "a wrong convolution" else sound
        had = sum((u.backend, u.planted) == (given.backend, name) for u in updates)
        for _ in range(had, given.equal if name == "nothing" else given.faulty):
            with planted(plant):
                done = replay_elsewhere(
                    *(given.python, str(log), str(model), str(sound)),
                    ReplayConfig(runs=given.runs, backend=given.backend, device="cpu"),
                )
            updates.append(describe(done, name))
            lines.append(json.dumps(asdict(updates[-1])))
            write_atomically(kept, ("\n".join(lines) + "\n").encode())
            sys.stdout.write(f"{lines[-1]}\n")
            sys.stdout.flush()
    sys.stdout.write(summarize(updates).markdown() + "\n")


if __name__ == "__main__":
    try:
        main()
    except (RtsegError, subprocess.SubprocessError) as error:
        sys.exit(str(error))
