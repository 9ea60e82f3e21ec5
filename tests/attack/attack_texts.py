"""YAML, JSON and lists that people write by hand, and data sets that they lay out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from attack_materials import NOT_AT_ALL, Materials, generator, spoil
from attack_media import png_that_claims, put
from attack_run import Case
from rtseg.data.classes import CAMVID
from rtseg.data.scenes import scene
from rtseg.train.recipe import RECIPES

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
BAD_YAML: dict[str, bytes] = {
    "a bomb of aliases": BOMB.encode(),
    "a list of bombs": (BOMB.replace("a0: ", "- ", 1)).encode(),
    "an entry in itself": b"&a [*a, *a]",
    "an entry that holds itself": b"- &a {name: *a}\n- x",
    "a command": b"!!python/object/apply:os.system ['touch owned']",
    "a tag that nobody knows": b"!spam {a: 1}",
    "a mapping for a key": b"? {a: b}\n: c",
    "deep": b"[" * 20_000,
    "deep and whole": b"[" * 3000 + b"]" * 3000,
    "deep mappings": b"".join(b" " * i + b"a:\n" for i in range(1500)),
    "tabs": b"a:\n\t- b",
    "two documents": b"--- [a, b]\n--- [c, d]",
    "control characters": b"- a\x07b\n- c",
    "UTF-16": "- road\n- car\n".encode("utf-16"),
    "a number beyond all": b"- " + b"9" * 5000,
    "not a number": b".nan",
    "infinity": b"[.inf, -.inf]",
    "a date": b"- 2026-01-01\n- 2026-99-99",
    "null": b"null",
    "a mapping": b"{a: 1}",
    "an empty list": b"[]",
    "a list of lists": b"[[], []]",
    "a list of nulls": b"[null, null]",
    "a million entries": b"- a\n" * 200_000,
    "one long line": b"- " + b"x" * 3_000_000,
    "a key of ten lines": b"'a\n\n\nb': 1",
}


def text_cases(made: Materials) -> Iterator[Case]:
    for row, probe, sound in (
        ("class sets", "read_classes", b"- {name: road, color: [1, 2, 3]}\n- {name: car}\n- sky\n"),
        ("class maps", "read_class_map", b"[sky, building, null, 3, 255]\n"),
        ("fault plans", "read_fault_plan", b"- {at: 2, fault: camera_stall, seconds: 1}\n"),
        ("recipes", "read_recipe", (RECIPES / "csfcn_nano_camvid.yaml").read_bytes()),
    ):  # fmt: skip
        call = f"attack_probes:{probe}"
        for name, content in (BAD_YAML | NOT_AT_ALL).items():
            yield Case(row, name, partial(put, "bad.yaml", content), probe=call)
        for name, content in spoil(sound, 12, row):
            yield Case(row, name, partial(put, "bad.yaml", content), probe=call)
        for name, content in WRONG[row].items():
            build = partial(put, "bad.yaml", content.encode())
            yield Case(row, f"wrong: {name}", build, probe=call, may_pass=False)
    yield from _soft_labels()
    yield from _records()
    yield from _data_sets(made)


WRONG: dict[str, dict[str, str]] = {
    "class sets": {
        "one class": "- road",
        "no name": "- {color: [1, 2, 3]}\n- sky",
        "a color of 256": "- {name: a, color: [256, 0, 0]}\n- b",
        "a negative color": "- {name: a, color: [-1, 0, 0]}\n- b",
        "two numbers": "- {name: a, color: [1, 2]}\n- b",
        "a color that is a number": "- {name: a, color: 5}\n- b",
        "a color that is text": "- {name: a, color: red}\n- b",
        "a color of floats": "- {name: a, color: [1.5, 0, 0]}\n- b",
        "a color of NaN": "- {name: a, color: [.nan, 0, 0]}\n- b",
        "an unknown key": "- {name: a, hue: 5}\n- b",
        "a name that is a number": "- {name: 7}\n- b",
        "300 classes": "\n".join(f"- c{i}" for i in range(300)),
        "a bomb for a color": BOMB + "x: 1",
    },
    "class maps": {
        "an id beyond": "[99]",
        "a negative id": "[-1]",
        "a float": "[1.5]",
        "a bool": "[true]",
        "an unknown name": "[unicorn]",
        "NaN": "[.nan]",
        "text": "sky",
    },
    "fault plans": {
        "no fault": "- {at: 1}",
        "an unknown fault": "- {at: 1, fault: rain}",
        "an unknown key": "- {at: 1, fault: camera_cut, color: red}",
        "a negative time": "- {at: -1, fault: camera_cut}",
        "NaN": "- {at: .nan, fault: camera_cut}",
        "infinity": "- {at: .inf, fault: camera_cut, seconds: .inf}",
        "text for a time": "- {at: soon, fault: camera_cut}",
        "a list for a time": "- {at: [1], fault: camera_cut}",
        "a list for a fault": "- {at: 1, fault: [camera_cut]}",
        "a number": "- 7",
    },
    "recipes": {
        "an unknown model": "{model: unicorn}",
        "an unknown key": "{base: csfcn_nano_camvid, speed: 9}",
        "a base that is a number": "{base: 5}",
        "a base that is itself": "{base: bad}",
        "a base elsewhere": "{base: ../../../../etc/passwd}",
        "a negative rate": "{base: csfcn_nano_camvid, optimizer: {learning_rate: -1}}",
        "a rate of NaN": "{base: csfcn_nano_camvid, optimizer: {learning_rate: .nan}}",
        "an endless rate": "{base: csfcn_nano_camvid, optimizer: {learning_rate: .inf}}",
        "keys that are numbers": "{1: 2}",
        "a batch of none": "{base: csfcn_nano_camvid, batch: 0}",
        "a size of nothing": "{base: csfcn_nano_camvid, val_size: [0, 0]}",
        "a negative window": "{base: csfcn_nano_camvid, val_window: [-64, 64]}",
    },
}


def _soft_labels() -> Iterator[Case]:
    import io

    def packed(**arrays: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    rng = generator("soft")
    sound = packed(probabilities=rng.integers(0, 256, (11, 8, 16), np.uint8))
    probe = "attack_probes:read_soft_labels"
    for name, content in spoil(sound, 24, "soft labels"):
        yield Case("soft labels", name, partial(put, "a.npz", content), probe=probe)
    bad = {
        "other classes": packed(probabilities=np.zeros((5, 8, 16), np.uint8)),
        "floats": packed(probabilities=np.zeros((11, 8, 16))),
        "no axis": packed(probabilities=np.zeros((), np.uint8)),
        "another name": packed(scores=np.zeros((11, 8, 16), np.uint8)),
        "pickled objects": packed(probabilities=np.array([{"a": 1}], object)),
    }

    def write_bomb(folder: Path) -> None:
        put("a.npz", packed(probabilities=np.zeros((11, 7000, 7000), np.uint8)), folder)

    yield Case("soft labels", "a bomb", write_bomb, probe=probe, may_pass=False)
    for name, content in (bad | NOT_AT_ALL).items():
        build = partial(put, "a.npz", content)
        yield Case("soft labels", name, build, probe=probe, may_pass=False)


def _records() -> Iterator[Case]:
    """Records that the package itself keeps: a malformed one is an absent one."""
    for kind in ("report.json", "log.json", "sealed record"):
        probe = f"attack_probes:read_{kind.split('.')[0].replace(' ', '_')}"
        contents = NOT_AT_ALL | {
            "null": b"null", "a list": b"[]", "a number": b"7", "a text": b'"x"',
            "deep": b"[" * 100_000, "half": b'{"artifacts": [{"file": "a', "NaN": b"NaN",
        }  # fmt: skip
        for name, content in contents.items():
            build = partial(put, "record", content)
            yield Case("records", f"{kind}, {name}", build, probe=probe)


def _data_sets(made: Materials) -> Iterator[Case]:
    def lay_out(changes: dict[str, bytes | None], folder: Path) -> None:
        picture = cv2.imencode(".png", scene((64, 128), 0))[1].tobytes()
        label = cv2.imencode(".png", np.zeros((64, 128), np.uint8))[1].tobytes()
        files: dict[str, bytes | None] = {
            "images/val/a.png": picture,
            "images/val/b.png": picture,
            "labels/val/a.png": label,
            "labels/val/b.png": label,
            "classes.yaml": "".join(f"- {name}\n" for name in CAMVID.names).encode(),
        }
        for name, content in (files | changes).items():
            if content is not None:
                put(name, content, folder)

    def png(shape: tuple[int, ...], value: int = 0, kind: type = np.uint8) -> bytes:
        return cv2.imencode(".png", np.full(shape, value, kind))[1].tobytes()

    whole = cv2.imencode(".png", scene((64, 128), 1))[1].tobytes()
    changes: dict[str, dict[str, bytes | None]] = {
        "a label that is no picture": {"labels/val/a.png": b"x"},
        "an empty label": {"labels/val/a.png": b""},
        "a label of another size": {"labels/val/a.png": png((32, 64))},
        "a label in color": {"labels/val/a.png": png((64, 128, 3))},
        "a label of 16 bits": {"labels/val/a.png": png((64, 128), 7, np.uint16)},
        "a label of unknown ids": {"labels/val/a.png": png((64, 128), 77)},
        "a label that claims all": {"labels/val/a.png": png_that_claims(50_000, 50_000)},
        "an image that claims all": {"images/val/a.png": png_that_claims(50_000, 50_000)},
        "an image that is cut": {"images/val/a.png": whole[: len(whole) // 2]},
        "a label without its image": {"images/val/a.png": None},
        "an image without its label": {"labels/val/a.png": None},
        "no classes": {"classes.yaml": None},
        "classes that are none": {"classes.yaml": b"7"},
        "no images": {"images/val/a.png": None, "images/val/b.png": None},
        "a bomb of classes": {"classes.yaml": BOMB.encode()},
    }
    for name, content in changes.items():
        build = partial(lay_out, content)
        check = "data", "check", "in", "--split", "val", "--json"
        yield Case("data sets", f"check, {name}", build, check, may_pass=False)
        score = "eval", str(made.onnx), "folder", "--root", "in", "--split", "val", "--json"
        yield Case("data sets", f"eval, {name}", build, score, judge=_has_miou)
    for name, split in {"climbs": "../../in", "no text": "", "a NUL": "a\0b", "none": "x"}.items():
        argv = "data", "check", "in", "--split", split
        yield Case("data sets", f"a split that {name}", partial(lay_out, {}), argv, may_pass=False)


def _has_miou(folder: Path, outcome: object) -> str:
    value = json.loads(outcome.stdout)["miou"]  # type: ignore[attr-defined]
    return "" if value is None or 0 <= value <= 1 else f"an mIoU of {value}"
