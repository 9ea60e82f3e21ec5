"""Class sets: names and colors of the numbers in a label map.

Colors of ADE20K, Pascal Context and COCO-Stuff follow the rule of the Pascal VOC devkit, so that
all sets look alike; some tools draw them in palettes of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import UsageError, warn_renamed
from .limits import read_yaml

ADE20K_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
    shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
    bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
    sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool
    table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet,
    flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
    boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
    streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
    bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer
    belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
    lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
    ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
    clock, flag
"""
PASCAL_CONTEXT_NAMES = """
    background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, table, dog,
    horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor, bag, bed, bench, book,
    building, cabinet, ceiling, cloth, computer, cup, door, fence, floor, flower, food, grass,
    ground, keyboard, light, mountain, mouse, curtain, platform, sign, plate, road, rock,
    shelves, sidewalk, sky, snow, bedclothes, track, tree, truck, wall, water, window, wood
"""
COCO_STUFF_NAMES = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
    zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports
    ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine
    glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
    dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
    clock, vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge,
    building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
    clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
    floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other,
    fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
    mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
    plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad,
    sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
    structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick,
    wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
    waterdrops, window-blind, window-other, wood
"""


def names_in(text: str) -> tuple[str, ...]:
    """The names in a text where commas part them."""
    return tuple(" ".join(name.split()) for name in text.split(","))


def devkit_color(index: int) -> tuple[int, int, int]:
    """Red, green and blue of class `index` in the Pascal VOC devkit: its bits, spread in turn over
    the channels from the highest bit down. Different for all of 0..255; 0 is black."""
    color = [0, 0, 0]
    for bit in range(8):
        color[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
    red, green, blue = color
    return red, green, blue


Color = tuple[int, int, int]  # red, green, blue, 0..255
ENTRY = "`- {name: road, color: [128, 64, 128]}`"
IGNORE = 255  # in training labels: a pixel that counts for nothing


@dataclass(frozen=True)
class ClassSet:
    """Names and colors by class id.

    `label_ids`: the ids that the data set's own files and test server use for the classes, where
    these differ from 0, 1, 2, ...
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[Color, ...]
    label_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for what in (self.palette, self.label_ids):
            if what is not None and len(what) != len(self.names):
                raise UsageError(
                    f"class set {self.name!r} has {len(self.names)} names but {len(what)} "
                    "colors or label ids: give one for each"
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


def _plain_set(name: str, text: str, first: int = 1) -> ClassSet:
    """A set whose colors follow the devkit's rule, from color number `first` on."""
    names = names_in(text)
    palette = tuple(devkit_color(first + index) for index in range(len(names)))
    return ClassSet(name, names, palette)


ADE20K = _plain_set("ade20k", ADE20K_NAMES)
# From 0 on: background is black.
PASCAL_CONTEXT_60 = _plain_set("pascal_context_60", PASCAL_CONTEXT_NAMES, first=0)
PASCAL_CONTEXT_59 = ClassSet(
    "pascal_context_59", PASCAL_CONTEXT_60.names[1:], PASCAL_CONTEXT_60.palette[1:]
)
COCO_STUFF_10K = _plain_set("coco_stuff_10k", COCO_STUFF_NAMES)
BDD100K = ClassSet("bdd100k", CITYSCAPES.names, CITYSCAPES.palette)
CLASS_SETS = {
    each.name: each
    for each in (
        CITYSCAPES,
        CAMVID,
        ADE20K,
        PASCAL_CONTEXT_59,
        PASCAL_CONTEXT_60,
        COCO_STUFF_10K,
        BDD100K,
    )
}


def load_class_set(source: str | Path) -> ClassSet:
    """A class set by name, or from a YAML file: a list of `{name: road, color: [128, 64, 128]}`
    by class id; a class without a color gets one by the devkit's rule. The set is called by the
    file, or by the folder of a `classes.yaml`.

    Raises:
        UsageError: if there is no such set or file, or an entry is wrong, which is named.
    """
    if str(source) in CLASS_SETS:
        return CLASS_SETS[str(source)]
    path = Path(source)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise UsageError(f"no file {path}: it should list the classes, {ENTRY}")
        near = get_close_matches(str(source), CLASS_SETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(CLASS_SETS)}"
        raise UsageError(f"no class set is called {str(source)!r}, nor is it a YAML file: {hint}")
    entries = read_yaml(path)
    if not isinstance(entries, list) or not 2 <= len(entries) <= IGNORE:
        raise UsageError(f"{path} should be a list of 2 to 255 entries {ENTRY}")
    rows = [_entry(entry, number, path) for number, entry in enumerate(entries)]
    for number, (name, _) in enumerate(rows):
        if (first := [each for each, _ in rows].index(name)) < number:
            raise UsageError(f"{path}: classes {first} and {number} are both called {name!r}")
    # A data set's classes.yaml is called by its folder: `classes` would be every set's name.
    name = path.stem if path.stem != "classes" else path.resolve().parent.name
    return ClassSet(name, tuple(name for name, _ in rows), tuple(color for _, color in rows))


def _entry(entry: object, number: int, path: Path) -> tuple[str, Color]:
    where = f"{path}, class {number}"
    if isinstance(entry, str):
        return entry, devkit_color(number + 1)
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError(f"{where}: write a name, or {{name: road, color: [128, 64, 128]}}")
    if "colour" in entry:
        warn_renamed(f"{where}: 'colour'", "'color'")
        entry = {"color": entry["colour"]} | {k: v for k, v in entry.items() if k != "colour"}
    if unknown := set(entry) - {"name", "color"}:
        raise UsageError(f"{where}: unknown key {unknown.pop()!r}: known are name, color")
    color = entry.get("color", devkit_color(number + 1))
    sound = isinstance(color, (list, tuple)) and len(color) == 3
    if not sound or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
        raise UsageError(f"{where}: color is [red, green, blue], each 0..255, not {color}")
    return entry["name"], (color[0], color[1], color[2])
