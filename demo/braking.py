"""An example of a consumer: how far the road ahead is free, and which braking zone that means.

A drive's sink that plans from labels alone. The camera looks ahead over a flat road, so each row of
the picture is a distance: at a height h over the road, with the horizon in row v0 and a focal
length of f pixels, row v shows the road h * f / (v - v0) meters ahead.

    rtseg.runtime.Drive(camera, "artifacts/csfcn_512x1024_fp16.engine", [BrakingPlanner(view)])

It is an example, not a safety function: it knows no slopes, no obstacles' speeds and no bends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..runtime.drive.messages import Message, Result

DRIVABLE = ("road", "lane marking")
FREE_SHARE = 0.8  # of a row's lane that must be road
COMFORT_MS2, HARD_MS2 = 2.5, 6.0  # decelerations
REACTION_S = 0.3


@dataclass(frozen=True)
class CameraView:
    """How the camera looks: focal_px in pixels, height_m over the road, horizon_row of the
    picture, lane_m: the width that the vehicle needs.

    Raises:
        UsageError: if it is no camera.
    """

    focal_px: float
    height_m: float
    horizon_row: float
    lane_m: float = 2.2

    def __post_init__(self) -> None:
        if min(self.focal_px, self.height_m, self.lane_m) <= 0:
            raise UsageError("focal_px, height_m and lane_m are more than 0")

    def distance_m(self, row: float) -> float:
        """Of the road that a row below the horizon shows."""
        return self.height_m * self.focal_px / max(row - self.horizon_row, 1e-6)

    def lane_columns(self, row: int, width: int) -> slice:
        """Of the vehicle's own lane, straight ahead, in that row."""
        half = self.lane_m / 2 * self.focal_px / self.distance_m(row)
        # One column at least: far away the lane is narrower than a pixel.
        return slice(max(0, round(width / 2 - half)), min(width, round(width / 2 + half)) or 1)


@dataclass(frozen=True)
class Advice:
    """free_m: how far ahead the lane is road; zone: "clear", "slow", "brake" or, where no mask can
    be trusted, "blind"."""

    zone: str
    free_m: float
    frame_id: int | None


def free_space_m(labels: NDArray[np.uint8], view: CameraView, drivable: Collection[int]) -> float:
    """How far ahead the vehicle's lane is drivable, in meters.

    labels (H, W) uint8 class ids; drivable: the ids of road. Rows are taken from the bumper on; the
    first that is not road ends the free space. Rows so near the horizon that one of them spans a
    tenth of its distance are not believed.
    """
    height, width = labels.shape
    road = np.isin(labels, list(drivable))
    free_m = 0.0
    # Upwards from the bumper. Ten rows below the horizon a row spans a tenth of its distance.
    for row in range(height - 1, max(-1, int(view.horizon_row) + 10), -1):
        if road[row, view.lane_columns(row, width)].mean() < FREE_SHARE:
            break
        free_m = view.distance_m(row)
    return free_m


def zone(free_m: float, speed_ms: float) -> str:
    """ "clear" if the vehicle can stop gently within the free space, "slow" if only firmly, else
    "brake"."""
    reaction_m = speed_ms * REACTION_S
    if free_m >= reaction_m + speed_ms**2 / (2 * COMFORT_MS2):
        return "clear"
    if free_m >= reaction_m + speed_ms**2 / (2 * HARD_MS2):
        return "slow"
    return "brake"


class BrakingPlanner:
    """A sink: advice for every result, and "blind" for every status, since an old mask is none.

    classes: names by id, as the artifact's card has them; speed: asked for at each frame, in m/s.

    Raises:
        UsageError: if none of the classes is a road.
    """

    name = "braking planner"
    capacity = 1  # only the newest result matters

    def __init__(
        self,
        view: CameraView,
        classes: Sequence[str],
        speed: Callable[[], float],
        tell: Callable[[Advice], None],
    ):
        self.drivable = [i for i, name in enumerate(classes) if name in DRIVABLE]
        if not self.drivable:
            raise UsageError(f"none of the classes is drivable: {', '.join(classes)}")
        self.view, self.speed, self.tell = view, speed, tell

    def __call__(self, message: Message) -> None:
        if not isinstance(message, Result):
            self.tell(Advice("blind", 0.0, message.frame_id))
            return
        free_m = free_space_m(message.labels, self.view, self.drivable)
        # The vehicle has gone on since the frame was captured.
        free_m = max(0.0, free_m - self.speed() * message.age_ms / 1000)
        self.tell(Advice(zone(free_m, self.speed()), free_m, message.frame_id))
