"""What is read is limited before it is decoded, by one table that a user can change."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from hostile_parts import BOUND_S, make_model, refusal
from onnx import TensorProto, helper
from rtseg.data.classes import load_class_set
from rtseg.data.datasets import read_lines
from rtseg.data.frames import open_source
from rtseg.data.images import read_image
from rtseg.data.limits import (
    LIMITS,
    find_limit,
    find_variable,
    parse_json,
    parse_yaml,
    read_json,
    read_limited,
    read_yaml,
)
from rtseg.data.soft_labels import read_probabilities
from rtseg.errors import ArtifactError, CheckpointError, DataError, RecipeError, UsageError
from rtseg.models.checkpoints import read_checkpoint
from rtseg.models.onnx_reading import read_onnx
from rtseg.runtime.artifact import append_card, read_card, sidecar, verify_artifact
from rtseg.train.recipe import load_recipe
from safetensors.numpy import save
from speed_parts import CARD


def test_the_page_of_limits_is_the_table() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| ([\d,]+) (\w+) \| (.+) \|$", page, re.MULTILINE)
    told = {name: (variable, int(most.replace(",", "")), unit, what) for
            name, variable, most, unit, what in rows}  # fmt: skip
    own = {name: (find_variable(name), each.most, each.unit, each.what) for
           name, each in LIMITS.items()}  # fmt: skip
    assert told == own


@pytest.mark.parametrize("text", ["0", "-1", "many", "1e9", "1.5", "9" * 30, " 5"])
def test_a_limit_that_is_no_number_is_told(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTSEG_LIMIT_DEPTH", text)
    with pytest.raises(UsageError, match="RTSEG_LIMIT_DEPTH is a number of levels, not"):
        find_limit("depth")


def lower(monkeypatch: pytest.MonkeyPatch, name: str, most: int) -> None:
    monkeypatch.setenv(find_variable(name), str(most))


def write_video(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    return path


def write_picture(path: Path) -> Path:
    cv2.imwrite(str(path), np.zeros((48, 64, 3), np.uint8))
    return path


def write_text(content: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_text(content)
        return path

    return write


def write_weights(path: Path) -> Path:
    path.write_bytes(save({name: np.zeros(4, np.float32) for name in "abc"}))
    return path


def write_arrays(path: Path) -> Path:
    np.savez_compressed(path, probabilities=np.zeros((2, 100, 100), np.uint8))
    return path


def write_onnx(path: Path) -> Path:
    again = helper.make_node("Identity", ["out"], ["again"])
    path.write_bytes(append_card(make_model(again), CARD))
    return path


def write_theirs(path: Path) -> Path:
    path.write_bytes(make_model(helper.make_node("Identity", ["out"], ["again"])))
    return path


def write_shared_weights(path: Path) -> Path:
    """Nine tensors, each of which is the same whole file."""
    (path.parent / "weights.bin").write_bytes(bytes(1000))
    weights = [TensorProto(name=f"w{i}", dims=[250], data_type=TensorProto.FLOAT) for i in range(9)]
    for each in weights:
        each.data_location = TensorProto.EXTERNAL
        each.external_data.add(key="location", value="weights.bin")
    node = helper.make_node("Identity", ["w0"], ["out"])
    graph = helper.make_graph([node], "g", [], [], weights)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def write_sidecar(path: Path) -> Path:
    """A file whose card lies beside it, with weights as OpenVINO has them."""
    path.write_bytes(bytes(200))
    if path.suffix == ".xml":
        path.with_suffix(".bin").write_bytes(bytes(300))
    sidecar(path).write_text(CARD.to_json())
    return path


def verify(path: Path) -> None:
    verify_artifact(path, read_card(path))


CASES: list[tuple[str, int, str, Callable[[Path], Path], Callable[[Path], Any], Any]] = [
    ("image_bytes", 100, "a.png", write_picture, read_image, DataError),
    ("video_pixels", 3071, "a.mp4", write_video, open_source, UsageError),
    ("json_bytes", 9, "a.json", write_text("[1, 2, 3, 4]"), read_json, UsageError),
    ("depth", 3, "a.json", write_text('{"a": [[[1]]]}'), read_json, UsageError),
    ("yaml_bytes", 9, "a.yaml", write_text("- road\n- sky\n"), load_class_set, UsageError),
    ("yaml_bytes", 9, "b.yaml", write_text("base: csfcn_nano_camvid\n"), load_recipe, RecipeError),
    ("depth", 3, "a.yaml", write_text("[[[[1]]]]"), read_yaml, UsageError),
    ("yaml_letters", 5, "a.yaml", write_text("- pedestrian"), read_yaml, UsageError),
    ("text_bytes", 9, "a.txt", write_text("one\ntwo\nthree\n"), read_lines, UsageError),
    ("header_bytes", 99, "a.safetensors", write_weights, read_checkpoint, CheckpointError),
    ("header_bytes", 99, "b.safetensors", write_weights, read_card, ArtifactError),
    ("tensors", 2, "a.safetensors", write_weights, read_checkpoint, CheckpointError),
    ("array_bytes", 9999, "a.npz", write_arrays, read_probabilities, DataError),
    ("model_bytes", 99, "a.onnx", write_onnx, read_card, ArtifactError),
    ("model_fields", 9, "a.onnx", write_onnx, verify, ArtifactError),
    ("depth", 2, "b.onnx", write_onnx, verify, ArtifactError),
    ("model_nodes", 1, "c.onnx", write_onnx, verify, ArtifactError),
    ("model_bytes", 99, "theirs.onnx", write_theirs, read_onnx, UsageError),
    ("model_nodes", 1, "theirs.onnx", write_theirs, read_onnx, UsageError),
    ("depth", 2, "theirs.onnx", write_theirs, read_onnx, UsageError),
    ("model_bytes", 4000, "many.onnx", write_shared_weights, read_onnx, UsageError),
    ("engine_bytes", 99, "a.engine", write_sidecar, read_card, ArtifactError),
    ("engine_bytes", 99, "a.plan", write_sidecar, read_card, ArtifactError),
    ("xml_bytes", 99, "a.xml", write_sidecar, read_card, ArtifactError),
    ("weights_bytes", 299, "a.xml", write_sidecar, read_card, ArtifactError),
    ("weights_bytes", 99, "c.safetensors", write_weights, read_checkpoint, CheckpointError),
]


@pytest.mark.parametrize(
    ("name", "most", "file", "write", "read", "kind"), CASES, ids=lambda each: str(each)[:12]
)
def test_a_limit_is_kept_and_can_be_set(
    name: str, most: int, file: str, write: Any, read: Any, kind: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = write(tmp_path / file)
    if name not in ("header_bytes",) or read is not read_card:  # a checkpoint has no card
        read(path)  # within the default
    lower(monkeypatch, name, most)
    with pytest.raises(kind, match=rf"{find_variable(name)} higher$") as refused:
        read(path)
    assert path.stem in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_aliases_are_not_read_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[&a 1, *a, *a]"
    with pytest.raises(UsageError, match="it has 1 aliases, and at most 0 are read"):
        parse_yaml(text, "it")
    lower(monkeypatch, "yaml_aliases", 2)
    assert parse_yaml(text, "it") == [1, 1, 1]


def test_pixels_and_streams_are_limited_by_the_libraries_themselves(tmp_path: Path) -> None:
    """They read their limit when they are loaded, or from a header that only they parse."""
    write_picture(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4")
    code = (
        "import sys; from pathlib import Path; import rtseg; from rtseg.data.images import *;"
        "from rtseg.data.frames import open_source; from rtseg.errors import UsageError\n"
        "for read, name in ((read_image, 'a.png'), (open_source, 'a.mp4')):\n"
        "    try: read(Path(sys.argv[1]) / name)\n"
        "    except UsageError as error: print(error)\n"
    )
    low = {find_variable("image_pixels"): "3071", find_variable("video_streams"): "0"}
    for environment, lines in ((low, 2), ({}, 0)):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={k: v for k, v in os.environ.items() if not k.startswith("OPENCV")} | environment,
            capture_output=True,
            text=True,
        )
        assert len(done.stdout.splitlines()) == lines, done.stderr
        assert lines == 0 or f"set {find_variable('image_pixels')} higher" in done.stdout


def test_a_device_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lower(monkeypatch, "yaml_bytes", 1 << 16)
    with pytest.raises(UsageError, match="/dev/zero has"):
        read_limited(Path("/dev/zero"), "yaml_bytes")


HARD_JSON = [
    "[" * (1 << 24),
    "[]" * (1 << 23),
    '"' + '\\"' * (1 << 23),
    '["' + "\\\\" * (1 << 20) + '"]',
    "9" * (1 << 20),
    '{"a":' * 200_000,
]


@pytest.mark.parametrize("text", HARD_JSON, ids=lambda text: text[:6])
def test_the_worst_json_takes_seconds(text: str) -> None:
    began = time.process_time()
    assert len(refusal(parse_json, text)) < 500
    assert time.process_time() - began < BOUND_S


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('["[[[[[[", "]"]', True),
        (r'["\"[[[[[[", "\\", "]"]', True),
        (r'["\n[[[[", "\\\\"]', True),
        ("[[[[[1]]]]]", False),
        (r'["\\", [[[[[1]]]]]]', False),
        ('[{"a": [{"b": [1]}]}]', False),
    ],
)
def test_brackets_in_strings_are_no_depth(
    text: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lower(monkeypatch, "depth", 4)
    if fits:
        assert parse_json(text, "it") == json.loads(text)
    else:
        with pytest.raises(UsageError, match="it has 5 levels"):
            parse_json(text, "it")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)


HARD_YAML = [
    "[" * (1 << 18),
    "- " * (1 << 17),
    LAUGHS,
    "? " * 100_000,
    "{a: " * 50_000,
    "&a [*a]",
    "2001-99-99",
    "!!python/object/apply:os.system [true]",
    "!!int x",
    "!!binary ' '",
    "? [1]\n: 2",
    "9" * 200_000,
    "\x00",
    "a: b: c",
    "%YAML 9.9\n---\n1",
    "'" * 99_999,
    "--- 1\n--- 2\n",
    ": " * 60_000,
    "x\n" * 130_000,
]


@pytest.mark.parametrize("text", HARD_YAML, ids=lambda text: repr(text[:14]))
def test_hard_yaml_is_one_line_in_seconds(text: str) -> None:
    began = time.process_time()
    assert "\n" not in refusal(parse_yaml, text)
    assert time.process_time() - began < 4 * BOUND_S  # PyYAML reads 20 to 50 kB a second


READERS = {"safe_load", "load", "full_load", "unsafe_load", "parse", "compose", "load_all"}


OWN = {  # reads of files that the package itself wrote or ships
    "cli/_options.py",
    "cli/models.py",
    "export/targets.py",
    "install.py",
    "models/zoo.py",
    "runtime/backends/onnxruntime.py",
}


def test_yaml_and_json_files_are_read_within_the_limits() -> None:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("tests/", "build/", "scripts/", ".")) or name == "data/limits.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            call, inside = ast.unparse(node.func), ast.unparse(node)
            is_yaml = call in {f"yaml.{reader}" for reader in READERS}
            is_json = call in ("json.loads", "json.load") and ".read" in inside
            arrays = call in ("np.load", "numpy.load", "safe_open")
            if (is_yaml or is_json or arrays) and name not in OWN:
                found.append(f"{name}: {call}")
    assert found == []
