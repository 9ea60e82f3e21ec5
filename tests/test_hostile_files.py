"""Archives, headers, graphs and cards that claim what is not so."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_parts import BOUND_S, make_model, refusal
from onnx import TensorProto, helper
from rtseg.data.limits import (
    check_archive,
    find_variable,
    read_arrays,
)
from rtseg.data.onnx_scan import scan_onnx
from rtseg.data.safetensors_header import read_tensor_header
from rtseg.errors import ArtifactError, CheckpointError, DataError
from rtseg.models.checkpoints import read_checkpoint
from rtseg.runtime.artifact import Card, read_card
from speed_parts import CARD


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
