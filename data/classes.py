"""Class sets: what the numbers in a label map mean, and how they are coloured."""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]  # red, green, blue, 0..255
IGNORE = 255  # in training labels: a pixel that counts for nothing


@dataclass(frozen=True)
class ClassSet:
    """Names and colours by class id.

    `label_ids`: the ids that the data set's own files and test server use for the classes, where
    these differ from 0, 1, 2, ...
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    label_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what in (self.palette, self.label_ids):
            if what is not None and len(what) != len(self.names):
                raise ValueError(
                    f"class set {self.name!r} has {len(self.names)} names but {len(what)} "
                    "colours or label ids: give one for each"
                )

    def __len__(self) -> int:
        return len(self.names)


def _class_set(name: str, rows: str) -> ClassSet:
    """From lines `class name: red green blue [label id]`."""
    names, palette, label_ids = [], [], []
    for row in rows.strip().splitlines():
        title, numbers = row.split(":")
        red, green, blue, *label_id = map(int, numbers.split())
        names.append(title.strip())
        palette.append((red, green, blue))
        label_ids += label_id
    return ClassSet(name, tuple(names), tuple(palette), tuple(label_ids) or None)


CITYSCAPES = _class_set(
    "cityscapes",
    """
    road: 128 64 128 7
    sidewalk: 244 35 232 8
    building: 70 70 70 11
    wall: 102 102 156 12
    fence: 190 153 153 13
    pole: 153 153 153 17
    traffic light: 250 170 30 19
    traffic sign: 220 220 0 20
    vegetation: 107 142 35 21
    terrain: 152 251 152 22
    sky: 70 130 180 23
    person: 220 20 60 24
    rider: 255 0 0 25
    car: 0 0 142 26
    truck: 0 0 70 27
    bus: 0 60 100 28
    train: 0 80 100 31
    motorcycle: 0 0 230 32
    bicycle: 119 11 32 33
    """,
)
CAMVID = _class_set(
    "camvid",
    """
    sky: 128 128 128
    building: 128 0 0
    pole: 192 192 128
    road: 128 64 128
    pavement: 60 40 222
    tree: 128 128 0
    sign: 192 128 128
    fence: 64 64 128
    car: 64 0 128
    pedestrian: 64 64 0
    bicyclist: 0 128 192
    """,
)
CLASS_SETS = {each.name: each for each in (CITYSCAPES, CAMVID)}
