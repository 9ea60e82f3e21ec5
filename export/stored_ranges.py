"""Ranges for int8 that ship with weights, so that int8 needs no frames of the user's.

They are measured once, on real frames of what the weights were trained on, and lie beside the
weights as `NAME_WEIGHTS.int8.json`: the largest magnitude of every tensor that a layer reads, and
the layers that had to stay in float to hold the bar. No picture is stored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data.files import write_atomically
from ..data.limits import read_json_object
from ..errors import ExportError
from ..models import digest
from ..models.loading import PRETRAINED, Model
from ..runtime.artifact import ROUNDED
from .calibrate import Calibration, CalibrationFrames, pick_frames

ENDING = ".int8.json"


@dataclass(frozen=True)
class StoredRanges:
    """What int8 needs to know of one file of weights.

    Attributes:
        weights: digest of the network that was measured.
        size: (height, width) in pixels that it was measured at.
        method: of the ranges, as `Calibration` names it.
        frames: how many were measured; source: what they are of.
        ranges: largest magnitude by the name of the tensor in the float32 graph.
        in_float: names of the layers that stay in float.
    """

    weights: str
    size: tuple[int, int]
    method: str
    frames: int
    source: str
    ranges: dict[str, float]
    in_float: tuple[str, ...]


def find_stored_ranges(model: Model) -> StoredRanges | None:
    """Those that ship with the model's weights; None for weights that do not ship, or that were
    changed since they were loaded.

    Raises:
        ExportError: the file beside the weights is damaged.
    """
    path = (PRETRAINED / Path(model.weights_from).name).with_suffix(ENDING)
    if not path.is_file():
        return None
    stored = read_ranges(path)
    return stored if stored.weights == digest(model.network) else None


def pick_calibration(
    model: Model, precision: str, calibration: Calibration | None
) -> CalibrationFrames | StoredRanges | None:
    """What int8 or fp8 is calibrated by: frames of the user's, or else the ranges that ship with
    the weights; None for other precisions.

    Raises:
        ExportError: there are frames for another precision, none for these, or bad ones.
    """
    if precision not in ROUNDED:
        if calibration is not None:
            raise ExportError(
                f"calibration frames are for int8 and fp8, not for {precision}: "
                "add --precision int8"
            )
        return None
    if calibration is None:
        if stored := find_stored_ranges(model):
            return stored
        raise ExportError(
            f"{precision} is calibrated on real frames, a hundred or more from where the camera "
            "will drive: give their folder (--calib DIR)"
        )
    return pick_frames(calibration)


def read_ranges(path: Path) -> StoredRanges:
    """Stored ranges from their file.

    Raises:
        ExportError: it does not hold what `write_ranges` writes.
    """
    try:
        facts = read_json_object(path)
        return StoredRanges(
            weights=str(facts["weights"]),
            size=(int(facts["size"][0]), int(facts["size"][1])),
            method=str(facts["method"]),
            frames=int(facts["frames"]),
            source=str(facts["source"]),
            ranges={str(name): float(most) for name, most in facts["ranges"].items()},
            in_float=tuple(map(str, facts["in_float"])),
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ExportError(
            f"{path} is damaged: install the package again, or give --calib FOLDER"
        ) from error


def write_ranges(path: Path, stored: StoredRanges) -> None:
    """Write stored ranges as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, (json.dumps(asdict(stored), indent=1) + "\n").encode())
