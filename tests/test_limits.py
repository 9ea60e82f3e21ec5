"""What is read is limited before it is decoded, by one table that a user can change."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper
from rtseg.data.classes import load_class_set
from rtseg.data.datasets import read_lines
from rtseg.data.frames import open_source
from rtseg.data.images import read_image
from rtseg.data.limits import (
    LIMITS,
    check_archive,
    find_limit,
    find_variable,
    parse_json,
    parse_yaml,
    read_arrays,
    read_json,
    read_limited,
    read_yaml,
)
from rtseg.data.onnx_scan import scan_onnx
from rtseg.data.safetensors_header import read_tensor_header
from rtseg.data.soft_labels import read_probabilities
from rtseg.errors import ArtifactError, CheckpointError, DataError, RecipeError, UsageError
from rtseg.models.checkpoints import read_checkpoint
from rtseg.models.onnx_reading import read_onnx
from rtseg.runtime.artifact import Card, append_card, read_card, sidecar, verify_artifact
from rtseg.train.recipe import load_recipe
from safetensors.numpy import save
from speed_parts import CARD

BOUND_S = 5.0  # for the worst that fits the limits


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


def make_model(*extra: Any) -> bytes:
    weights = numpy_helper.from_array(np.ones((4, 4), np.float32), "weights")
    node = helper.make_node("Identity", ["weights"], ["out"])
    graph = helper.make_graph([node, *extra], "g", [], [], [weights])
    return bytes(helper.make_model(graph).SerializeToString())


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


def refusal(read: Callable[[Any, str], object], content: Any) -> str:
    """What is said of it, "" where it is read."""
    try:
        read(content, "it")
    except UsageError as error:
        return str(error)
    return ""


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


def test_a_bomb_of_an_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        block = bytes(1 << 24)
        for number in range(3):
            archive.writestr(f"{number}.npy", block)
    assert path.stat().st_size < 1 << 18
    code = (
        "import resource, sys; from pathlib import Path; from rtseg.data.limits import *;"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30));"
        "check_archive(Path(sys.argv[1]))"
    )
    environment = {**os.environ, find_variable("archive_bytes"): str(1 << 25)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True
    )
    assert "UsageError" in done.stderr
    assert "50,331,648 bytes" in done.stderr


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip", bytes(1000)])
def test_a_damaged_archive_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    check_archive(path)  # its reader tells
    with pytest.raises(DataError, match="is damaged") as refused:
        read_arrays(path, DataError)
    assert "\n" not in str(refused.value)


def test_arrays_that_claim_terabytes_or_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for shape, code in (((1 << 20, 1 << 20), "|u1"), ((2,), "|O")):
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            head, {"descr": code, "fortran_order": False, "shape": shape}
        )
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("probabilities.npy", head.getvalue() + b"12")
        with pytest.raises(DataError):
            read_arrays(path, DataError)


def header_file(path: Path, header: Any, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(begin: int, end: int, shape: Any = None, dtype: str = "F32") -> dict[str, Any]:
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD_HEADERS: dict[str, Any] = {
    "overlap": {"a": tensor(0, 12), "b": tensor(8, 16)},
    "hole": {"a": tensor(0, 4), "b": tensor(8, 16)},
    "short": {"a": tensor(0, 8)},
    "long": {"a": tensor(0, 32)},
    "negative": {"a": tensor(-4, 16, [5])},
    "negative shape": {"a": tensor(0, 16, [-2, -2])},
    "shape": {"a": tensor(0, 16, [5])},
    "huge shape": {"a": tensor(0, 16, [1 << 62, 1 << 62])},
    "float shape": {"a": tensor(0, 16, [4.0])},
    "bool": {"a": tensor(0, 16, [True])},
    "dtype": {"a": tensor(0, 16, dtype="F31")},
    "no list": {"a": 5},
    "list": [1, 2],
    "null": b"null",
    "metadata": {"__metadata__": {"a": 5}, "a": tensor(0, 16)},
    "metadata list": {"__metadata__": [1], "a": tensor(0, 16)},
    "reversed": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}},
    "one offset": {"a": {"dtype": "F32", "shape": [4], "data_offsets": [16]}},
    "no JSON": b"{" * 40,
    "deep": b'{"a":' + b"[" * 50_000,
    "not text": b"\xff\xfe{}",
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_wrong_header_is_one_line_for_every_reader(name: str, tmp_path: Path) -> None:
    path = header_file(tmp_path / "a.safetensors", BAD_HEADERS[name])
    readers: list[Callable[[Path], object]] = [
        read_checkpoint,
        read_card,
        lambda path: read_tensor_header(path, DataError),
    ]
    kinds = (CheckpointError, ArtifactError, DataError)
    for read, kind in zip(readers, kinds, strict=True):
        with pytest.raises(kind, match=r"is damaged or not|levels") as refused:
            read(path)
        assert len(str(refused.value).splitlines()) == 1
        assert len(str(refused.value)) < 500


def test_a_right_header_is_read(tmp_path: Path) -> None:
    header = {"__metadata__": {"a": "b"}, "x": tensor(8, 16), "y": tensor(0, 8), "z": tensor(8, 8)}
    path = header_file(tmp_path / "a.safetensors", header)
    found, start = read_tensor_header(path, ArtifactError)
    assert found == header
    assert path.stat().st_size - start == 16


def nested(depth: int) -> Any:
    node = helper.make_node("Identity", ["weights"], ["x"])
    for _ in range(depth):
        graph = helper.make_graph([node], "g", [], [])
        node = helper.make_node("If", ["c"], ["x"], then_branch=graph)  # both: 2**depth graphs
    return node


def external(order: str) -> bytes:
    """A model with weights elsewhere, whatever order the entry's fields have."""
    weights = TensorProto(name="weights", dims=[4], data_type=TensorProto.FLOAT)
    if order != "location":
        weights.data_location = TensorProto.EXTERNAL
    if order != "flag":
        weights.external_data.add(key="location", value="weights.bin")
    graph = helper.make_graph([], "g", [], [], [weights])
    content: bytes = helper.make_model(graph).SerializeToString()
    if order == "value first":
        key, value = b"\x0a\x08location", b"\x12\x0bweights.bin"
        assert key + value in content
        content = content.replace(key + value, value + key)
    return content


@pytest.mark.parametrize("order", ["usual", "value first", "flag", "location"])
def test_weights_elsewhere_are_found_however_they_are_written(order: str) -> None:
    with pytest.raises(ArtifactError, match="keeps weights in another file"):
        scan_onnx(external(order), "net.onnx")


def test_weights_elsewhere_are_found_inside_constants_and_branches() -> None:
    tensor_elsewhere = TensorProto(name="w", dims=[4], data_type=TensorProto.FLOAT)
    tensor_elsewhere.external_data.add(key="location", value="weights.bin")
    constant = helper.make_node("Constant", [], ["x"], value=tensor_elsewhere)
    branch = helper.make_graph([constant], "g", [], [])
    node = helper.make_node("If", ["c"], ["x"], then_branch=branch, else_branch=branch)
    for each in (constant, node):
        with pytest.raises(ArtifactError, match="keeps weights in another file"):
            scan_onnx(make_model(each), "net.onnx")


def test_graphs_inside_graphs_have_a_depth() -> None:
    scan_onnx(make_model(nested(4)), "net.onnx")
    with pytest.raises(ArtifactError, match="levels, and at most 64"):
        scan_onnx(make_model(nested(30)), "net.onnx")


def test_every_cut_of_a_model_is_told_or_harmless() -> None:
    """Cuts between two fields leave a shorter model, which has another digest."""
    content = make_model(nested(2))
    for length in range(len(content)):
        told = refusal(scan_onnx, content[:length])
        assert not told or "damaged" in told


@pytest.mark.parametrize(
    "content", [b"\xff" * (1 << 22), b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0b" * 99]
)
def test_rubbish_is_no_model_at_once(content: bytes) -> None:
    began = time.process_time()
    with pytest.raises(ArtifactError, match="damaged or no ONNX model"):
        scan_onnx(content, "net.onnx")
    assert time.process_time() - began < 1


def test_a_graph_of_ones_is_bounded() -> None:
    began = time.process_time()
    with pytest.raises(ArtifactError, match="fields"):
        scan_onnx(b"\x08\x01" * (1 << 23), "net.onnx")
    assert time.process_time() - began < 4 * BOUND_S


def digest_anew(facts: dict[str, Any]) -> str:
    """A card that somebody wrote who knows how."""
    body = json.dumps(facts)
    return f'{{"digest":"{hashlib.sha256(body.encode()).hexdigest()}",{body[1:]}'


def test_a_card_takes_no_word_for_a_truth() -> None:
    """A card that says "passed": "no" was one that says true."""
    facts = json.loads(CARD.model_dump_json(exclude_none=True))
    Card.from_json(digest_anew(facts))
    for field, value in (("trained", "no"), ("trained", 1), ("macs", "5"), ("size", ["1", "2"])):
        with pytest.raises(ArtifactError, match=field):
            Card.from_json(digest_anew(facts | {field: value}))


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
