"""Settings of a benchmark."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..data.classes import ClassSet, load_class_set
from ..data.frames import read_folder
from ..errors import UsageError
from .contestant import Frames
from .peers import check_peers
from .timing import Limits

if TYPE_CHECKING:
    from ..models import Network
    from ..models.loading import Model

    Measurable = str | Path | Network | Model  # what `load_model` takes, or an artifact's path

Size = tuple[int, int]
T = TypeVar("T")


@dataclass(frozen=True)
class BenchConfig:
    """What to measure, against what and for how long.

    Attributes:
        models: paths of artifacts, which have one size and precision each; names of variants,
            checkpoints and networks, which are exported first.
        sizes: (height, width) in pixels; by default each model's own.
        batch: frames that a call takes, of what is exported first; artifacts have theirs.
        backends: by default the fastest installed ones; precisions: by default each backend's own.
        peers: others' ways to run the network, names of `peers.PEERS` or "all".
        eager: with the row of the plain PyTorch network.
        seconds, runs: each row is measured for the one or the other, whichever ends first.
        threads: on the CPU, by default `system.usable_cores()`, as the runtime's backends take.
        device: "cpu" or "cuda[:N]"; by default each backend's own.
        frames: (H, W, 3) uint8 BGR of any size, or a folder of images; by default drawn scenes of
            the model's size.
        camera_hz: rate of the camera that every row is shown too; None for none.
        deadline_ms: from when a frame was due until it is missed, by default a period.
        stall_ms: frames are held up that long every 10 s at the camera's pace, as a check.
        roofline: whether to measure the machine's ceilings as well.
        calib: folder of frames that int8 is calibrated on.
        weights: checkpoint of the model, for a variant that is named and for the eager row.
        classes: of networks that are exported, or what `load_class_set` takes; by default their
            own.

    Raises:
        UsageError: if values do not fit each other, or the folder holds no image.
        MissingPackage: if a peer that is named is not installed.
    """

    models: Sequence[Measurable]
    sizes: Sequence[Size] = ()
    backends: Sequence[str] = ()
    precisions: Sequence[str] = ()
    peers: Sequence[str] = ()
    eager: bool = True
    seconds: float = 5.0
    runs: int = 100
    threads: int | None = None
    device: str | None = None
    frames: Frames | str | os.PathLike[str] | None = None
    camera_hz: float | None = 10.0
    deadline_ms: float | None = None
    stall_ms: float = 0.0
    roofline: bool = False
    calib: Path | None = None
    weights: Path | None = None
    classes: ClassSet | str | os.PathLike[str] | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("nothing to measure: name a variant, a checkpoint or an artifact")
        if self.weights and len(self.models) > 1:
            raise UsageError("--weights are one model's: name that model alone")
        # Before anything is exported: a missing package would else be found an export later.
        check_peers(self.peers)
        Limits(self.runs, self.seconds)  # checks itself
        # Read once, here: `replace` makes these settings anew for every row of a table.
        if isinstance(self.frames, (str, os.PathLike)):
            images = [image for _, image in read_folder(Path(self.frames))]
            object.__setattr__(self, "frames", images)
        if isinstance(self.classes, (str, os.PathLike)):
            object.__setattr__(self, "classes", load_class_set(os.fspath(self.classes)))

    @property
    def limits(self) -> Limits:
        return Limits(self.runs, self.seconds)

    def refuse_batch(self, what: str) -> None:
        """Raises UsageError if `what`, which compares single frames, is asked for a batch."""
        if self.batch not in (None, 1):
            raise UsageError(f"{what} compares networks on single frames: leave --batch out")

    def only(self, model: Measurable, size: Size, **changes: object) -> BenchConfig:
        """These settings for one model at one size."""
        return replace(self, models=(model,), sizes=(size,), **changes)  # type: ignore[arg-type]


def as_list(values: T | Iterable[T]) -> list[T]:
    """One value or several as a list; text, paths, sizes and networks are one value."""
    # A pair of numbers is one size.
    if isinstance(values, (list, tuple)) and not all(isinstance(v, int) for v in values):
        return list(values)
    if isinstance(values, tuple) and not values:
        return []
    return [values]  # type: ignore[list-item]
