"""One side of a replay: an artifact's times, memory and energy over a log, and its recording."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from .. import __version__
from ..data.files import digest_of, write_atomically
from ..data.images import read_gray, write_png
from ..data.letterbox import restore_labels
from ..data.limits import read_json_object
from ..errors import UsageError
from ..runtime import Segmenter
from ..system import MIB, read_system
from .energy import read_energy_j
from .timing import MS, Now

LabelMap = NDArray[np.uint8]  # (H, W)
Picture = NDArray[np.uint8]  # (H, W, 3) BGR
RECORD = "replay.json"
FORMAT = 1


@dataclass
class ReplaySide:
    """An artifact's run over a log.

    Attributes:
        model, file, digest, precision, size, classes: of the artifact; digest: its SHA-256.
        backend, version, device, threads: that ran it.
        machine: the processor, and the Python that ran.
        rounds: ms of each timed frame, in turns.
        memory_mib: by how much its own calls had let this process grow, after each timed frame.
        energy_j: that the machine took during its turns; None where that cannot be read.
        certified: share of the pixels of each frame; None where the file bounds no error.
        uncertified: why there is none.
    """

    model: str
    file: str
    digest: str
    precision: str
    size: tuple[int, int]
    classes: tuple[str, ...]
    backend: str
    version: str
    device: str
    threads: int | None
    machine: str
    python: str
    rounds: list[list[float]] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    energy_j: float | None = None
    certified: list[float] | None = None
    uncertified: str = ""

    @property
    def runs(self) -> int:
        return sum(map(len, self.rounds))

    @property
    def title(self) -> str:
        return f"{self.file}, {self.backend} {self.version} on {self.device}"


def describe_side(path: Path, segmenter: Segmenter) -> ReplaySide:
    """The side of an artifact that is loaded, without a run."""
    card, info, machine = segmenter.card, segmenter.info, read_system()
    certifies = segmenter.bound is not None and segmenter.backend.maker is not None
    return ReplaySide(
        *(card.model, path.name, digest_of(path), info.precision, card.size, card.classes),
        *(info.name, info.version, info.device, info.threads, machine.cpu),
        f"{platform.python_version()}, rtseg {__version__}",
        uncertified="" if certifies else segmenter.why_uncertified(),
    )


def read_resident() -> int:
    """Bytes of this process that are in memory."""
    return int(psutil.Process().memory_info().rss)


class ReplayPlayer:
    """Runs one side's turns.

    Args:
        segmenter: the artifact, loaded.
        side: that its figures go to.
        now: nanoseconds, never going back.
        resident: bytes of this process in memory.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        side: ReplaySide,
        now: Now,
        resident: Callable[[], int] = read_resident,
    ):
        self.segmenter, self.side = segmenter, side
        self._now, self._resident, self._grown = now, resident, 0
        self._certifies = segmenter.bound is not None and segmenter.backend.maker is not None

    def take_turn(self, images: Sequence[Picture]) -> list[LabelMap]:
        """Label frames one after another, timed; returns the label maps, of the frames' sizes."""
        card = self.segmenter.card
        taken = [card.encode(image) for image in images]
        own = (card.camera_size or card.size) if card.takes_camera else None
        # Made and written to before: the labels that are kept are no growth of the artifact's.
        maps = [np.full(own or image.shape[:2], 255, np.uint8) for image in images]
        self.segmenter(taken[0])  # its caches are cold behind the other side's turn
        before_j, turn = read_energy_j(), []
        for given, kept in zip(taken, maps, strict=True):
            before, start = self._resident(), self._now()
            labels = self.segmenter(given)
            turn.append((self._now() - start) * MS)
            kept[:] = labels
            del labels
            self._grown += self._resident() - before
            self.side.memory_mib.append(self._grown / MIB)
        self.side.rounds.append(turn)
        self._add_energy(before_j)
        return [
            restore_labels(kept, image.shape[:2], card.fit) if own else kept
            for kept, image in zip(maps, images, strict=True)
        ]

    def certify(self, image: Picture) -> None:
        """Add the certified share of a frame, where the artifact has bounds; not timed."""
        if self._certifies:
            certified = self.segmenter.details(self.segmenter.card.encode(image)).certified
            if certified is not None:
                self.side.certified = [*(self.side.certified or ()), float(certified.mean())]

    def _add_energy(self, before_j: float | None) -> None:
        after_j = read_energy_j()
        # A counter that began anew has lost what it had: that turn is left out.
        if before_j is not None and after_j is not None and after_j >= before_j:
            self.side.energy_j = (self.side.energy_j or 0.0) + after_j - before_j


def digest_frame(image: Picture) -> str:
    """What tells a frame's pixels from others'."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()[:16]


class ReplayRecorder:
    """Writes a side's label maps into a folder, and its figures at the end.

    Args:
        folder: that becomes the baseline.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._frames: list[dict[str, str]] = []

    def add(self, name: str, image: Picture, labels: LabelMap) -> None:
        """Write a frame's label map."""
        file = f"labels/{len(self._frames):06d}.png"
        write_png(self.folder / file, labels)
        self._frames.append({"name": name, "pixels": digest_frame(image), "labels": file})

    def finish(self, side: ReplaySide) -> None:
        """Write `replay.json`, without which the folder is no baseline."""
        facts = {"format": FORMAT, "side": asdict(side), "frames": self._frames}
        write_atomically(self.folder / RECORD, (json.dumps(facts, indent=1) + "\n").encode())


@dataclass(frozen=True)
class RecordedSide:
    """A baseline that `rtseg replay --record` wrote; frames: name, pixels' digest, labels' file."""

    folder: Path
    side: ReplaySide
    frames: Sequence[dict[str, str]]

    def labels(self, number: int) -> LabelMap:
        """Label map (H, W) of a frame.

        Raises:
            UsageError: the baseline has fewer frames.
            DataError: the file is missing or damaged.
        """
        if number >= len(self.frames):
            raise UsageError(
                f"the log has more frames than the {len(self.frames)} of {self.folder}: record the "
                "baseline again on this log"
            )
        # By its number: a path in a file from elsewhere could lead anywhere.
        return read_gray(self.folder / "labels" / f"{number:06d}.png")


def read_recorded(folder: Path) -> RecordedSide:
    """A recorded baseline.

    Raises:
        UsageError: the folder holds none, or a damaged or newer one.
    """
    facts: dict[str, Any] = read_json_object(folder / RECORD)
    if facts.get("format", FORMAT) != FORMAT:
        raise UsageError(f"{folder} was recorded by another version: record it again")
    try:
        side = ReplaySide(**facts["side"])
        side.size = (int(side.size[0]), int(side.size[1]))
        side.classes = tuple(map(str, side.classes))
        side.rounds = [[float(ms) for ms in turn] for turn in side.rounds if turn]
        side.memory_mib = [float(each) for each in side.memory_mib]
        side.certified = [float(each) for each in side.certified] if side.certified else None
        frames = [{key: str(each[key]) for key in ("name", "pixels")} for each in facts["frames"]]
    except (LookupError, TypeError, ValueError, OverflowError) as error:  # 1e999 is infinite
        raise UsageError(_NO_BASELINE.format(folder=folder)) from error
    if not side.rounds:
        raise UsageError(_NO_BASELINE.format(folder=folder))
    return RecordedSide(folder, side, frames)


_NO_BASELINE = (
    "{folder} holds no baseline, or a damaged one: make one with "
    "`rtseg replay LOG --model OLD --record {folder}`"
)
