"""The example planner: distances by hand, zones, and what it makes of a missing mask."""

from __future__ import annotations

import numpy as np
import pytest
from rtseg.data.classes import CAMVID, CITYSCAPES
from rtseg.demo.braking import Advice, BrakingPlanner, CameraView, free_space_m, zone
from rtseg.runtime import Result, Status, StatusKind

VIEW = CameraView(focal_px=500, height_m=1.5, horizon_row=100)
ROAD, CAR = CITYSCAPES.names.index("road"), CITYSCAPES.names.index("car")


def street(obstacle_row: int | None = None, left: int = 0, right: int = 640) -> np.ndarray:
    """Road below the horizon, and a car that stands on `obstacle_row`."""
    labels = np.full((400, 640), CITYSCAPES.names.index("sky"), np.uint8)
    labels[100:] = ROAD
    if obstacle_row is not None:
        labels[obstacle_row - 60 : obstacle_row + 1, left:right] = CAR
    return labels


@pytest.mark.parametrize(("row", "distance"), [(200, 7.5), (150, 15.0), (130, 25.0), (350, 3.0)])
def test_a_row_is_a_distance(row: int, distance: float) -> None:
    assert VIEW.distance_m(row) == pytest.approx(distance)
    free = free_space_m(street(row), VIEW, [ROAD])
    assert free == pytest.approx(VIEW.distance_m(row + 1))  # the last free row is the one before


def test_only_the_own_lane_counts() -> None:
    beside = street(200, 0, 320 - 100)  # the lane is 147 pixels wide there
    assert free_space_m(beside, VIEW, [ROAD]) == free_space_m(street(), VIEW, [ROAD])
    ahead = street(200, 320 - 60, 320 + 60)
    assert free_space_m(ahead, VIEW, [ROAD]) == pytest.approx(VIEW.distance_m(201))


def test_the_horizon_is_not_infinitely_far() -> None:
    assert free_space_m(street(), VIEW, [ROAD]) == pytest.approx(VIEW.distance_m(111))
    assert free_space_m(np.full((400, 640), CAR, np.uint8), VIEW, [ROAD]) == 0


@pytest.mark.parametrize(
    ("free", "speed", "expected"),
    [(0, 0, "clear"), (100, 20, "clear"), (80, 20, "slow"), (39, 20, "brake"), (45, 20, "slow")],
)
def test_zones(free: float, speed: float, expected: str) -> None:
    assert zone(free, speed) == expected


def test_the_planner_is_a_sink() -> None:
    told: list[Advice] = []
    planner = BrakingPlanner(VIEW, CITYSCAPES.names, lambda: 5.0, told.append)
    labels = street(200)
    image = np.zeros((*labels.shape, 3), np.uint8)
    planner(Result(7, 7, "", 0, 0, labels, image, "nano", {}, 100.0, 0, 1))
    planner(Status(StatusKind.LATE, "late", "", 0, 0, 8))
    assert told[0].frame_id == 7
    assert told[0].free_m == pytest.approx(VIEW.distance_m(201) - 0.5)  # 0.1 s at 5 m/s
    assert told[0].zone == "clear"
    assert told[1] == Advice("blind", 0.0, 8)


def test_a_class_set_without_a_road_is_refused() -> None:
    BrakingPlanner(VIEW, CAMVID.names, lambda: 0.0, lambda advice: None)
    with pytest.raises(ValueError, match="none of the classes is drivable"):
        BrakingPlanner(VIEW, ("cat", "dog"), lambda: 0.0, lambda advice: None)
    with pytest.raises(ValueError, match="more than 0"):
        CameraView(focal_px=0, height_m=1, horizon_row=1)
