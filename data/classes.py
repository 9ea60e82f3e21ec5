"""Class sets: what the numbers in a label map mean, and how they are colored."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..errors import UsageError, warn_renamed
from . import large_sets
from .large_sets import devkit_color, names_in

Color = tuple[int, int, int]  # red, green, blue, 0..255
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


ADE20K = _plain_set("ade20k", large_sets.ADE20K)
PASCAL_CONTEXT_60 = _plain_set("pascal_context_60", large_sets.PASCAL_CONTEXT, first=0)
PASCAL_CONTEXT_59 = ClassSet(
    "pascal_context_59", PASCAL_CONTEXT_60.names[1:], PASCAL_CONTEXT_60.palette[1:]
)
COCO_STUFF_10K = _plain_set("coco_stuff_10k", large_sets.COCO_STUFF)
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
    by class id; a class without a color gets one by the devkit's rule.

    Raises ValueError, naming the entry that is wrong.
    """
    if str(source) in CLASS_SETS:
        return CLASS_SETS[str(source)]
    path = Path(source)
    if not path.is_file():
        near = get_close_matches(str(source), CLASS_SETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(CLASS_SETS)}"
        raise UsageError(f"no class set is called {str(source)!r}, nor is it a YAML file: {hint}")
    import yaml  # only those who bring their own classes need it

    try:
        entries = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(entries, list) or not 2 <= len(entries) <= IGNORE:
        raise UsageError(
            f"{path} should be a list of 2 to 255 entries `- {{name: ..., color: ...}}`"
        )
    rows = [_entry(entry, number, path) for number, entry in enumerate(entries)]
    return ClassSet(path.stem, tuple(name for name, _ in rows), tuple(color for _, color in rows))


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
    if len(color) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in color):
        raise UsageError(f"{where}: color is [red, green, blue], each 0..255, not {color}")
    return entry["name"], (color[0], color[1], color[2])
