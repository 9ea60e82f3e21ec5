"""Artifacts and checkpoints: files that somebody made, damaged or wrote by hand."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from attack_materials import NOT_AT_ALL, Materials, generator, spoil
from attack_media import put
from attack_run import Case

SERVE = "attack_probes:serve"
HARMLESS = ("other outputs", "multiply-adds beyond all")  # edits of cards that change no label
LOAD = "attack_probes:load_weights"


def file_cases(made: Materials) -> Iterator[Case]:
    yield from _onnx(made)
    yield from _openvino(made)
    yield from _engines(made)
    yield from _safetensors(made)
    yield from _pickles(made)


def _know(made: Materials, folder: Path) -> None:
    """What the sound artifact says, for the probe."""
    shutil.copy(made.frame, folder / "frame.png")
    np.save(folder / "known.npy", made.labels)


def _artifact(made: Materials, files: dict[str, bytes], folder: Path) -> None:
    _know(made, folder)
    for name, content in files.items():
        put(name, content, folder)


def _serve(row: str, name: str, made: Materials, files: dict[str, bytes], may: bool = True) -> Case:
    return Case(row, name, partial(_artifact, made, files), probe=SERVE, may_pass=may)


def _onnx(made: Materials) -> Iterator[Case]:
    sound = made.onnx.read_bytes()
    for name, content in spoil(sound, 36, "onnx"):
        yield _serve("ONNX", name, made, {"net.onnx": content})
    start = sound.rfind(b"rtseg")
    for name, content in spoil(sound[start:], 24, "onnx card"):
        yield _serve("ONNX", f"its card, {name}", made, {"net.onnx": sound[:start] + content})
    for name, content in spoil(sound[:4000], 14, "onnx head"):
        yield _serve("ONNX", f"its head, {name}", made, {"net.onnx": content + sound[4000:]})
    for name, content in NOT_AT_ALL.items():
        yield _serve("ONNX", name, made, {"net.onnx": content}, may=False)
    yield _serve(
        "ONNX", "0xFF after the key", made, {"net.onnx": after_key(b"\xff" * 4_000_000)}, False
    )
    yield _serve("ONNX", "deep groups", made, {"net.onnx": after_key(b"\x0b" * 1_000_000)}, False)
    yield _serve("ONNX", "a graph without a card", made, {"net.onnx": bare_graph()}, False)
    for name, edit in card_edits().items():
        files = {"net.onnx": with_card(sound, edit)}
        yield _serve("ONNX", f"a card with {name}", made, files, name in HARMLESS)
    for name, text in card_texts().items():
        content = sound[: sound.rfind(b"\x0a\x05rtseg")] + entry(text)
        yield _serve("ONNX", f"a card that is {name}", made, {"net.onnx": content}, False)
    other = made.openvino.read_bytes()
    yield _serve("ONNX", "an OpenVINO model of that name", made, {"net.onnx": other}, False)


def after_key(content: bytes) -> bytes:
    return b"\x0a\x05rtseg\x12" + content


def entry(text: bytes) -> bytes:
    """A card's property, as ONNX files end in it."""
    from rtseg.runtime.onnx_metadata import METADATA, field

    return field(METADATA, field(1, b"rtseg") + field(2, text))


def bare_graph() -> bytes:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([node], "g", [value], [out])).SerializeToString()


def with_card(sound: bytes, edit: Callable[[dict[str, Any]], None]) -> bytes:
    """The file with an edited card that is digested anew, as somebody does who knows how."""
    import hashlib

    from rtseg.runtime.onnx_metadata import METADATA

    at = sound.rfind(b"\x0a\x05rtseg\x12")
    text = sound[sound.index(b"{", at) :]
    card = json.loads(text)
    card.pop("digest")
    edit(card)
    body = json.dumps(card).encode()
    digest = hashlib.sha256(body).hexdigest().encode()
    head = sound[: sound.rfind(bytes([METADATA << 3 | 2]), 0, at)]
    return head + entry(b'{"digest":"' + digest + b'",' + body[1:])


def _set(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda card: card.update(changes)


def card_edits() -> dict[str, Callable[[dict[str, Any]], None]]:
    return {
        "no size": _set(size=[0, 0]),
        "a negative size": _set(size=[-64, 128]),
        "an endless size": _set(size=[1 << 40, 1 << 40]),
        "another size": _set(size=[32, 64]),
        "a size of floats": _set(size=[64.5, 128]),
        "no classes": _set(classes=[], palette=[]),
        "one class too few": lambda card: card.update(classes=card["classes"][:-1]),
        "one color too few": lambda card: card.update(palette=card["palette"][:-1]),
        "a color of 999": lambda card: card.update(palette=[[999, 0, 0]] * len(card["palette"])),
        "300 classes": _set(classes=["c"] * 300, palette=[[0, 0, 0]] * 300),
        "class names that are numbers": _set(classes=[1, 2, 3]),
        "an unknown precision": _set(precision="fp7"),
        "no outputs": _set(outputs=[]),
        "other outputs": _set(outputs=["logits"]),
        "coarse logits of nothing": _set(coarse={"tensor": "none", "enlarge": "bilinear"}),
        "coarse parts beyond the file": _set(
            coarse={"tensor": "x", "enlarge": "bilinear", "parts": [0, 1 << 60, 1 << 62]}
        ),
        "negative coarse parts": _set(
            coarse={"tensor": "x", "enlarge": "bilinear", "parts": [-5, -3, -1]}
        ),
        "no files": _set(files={}),
        "files elsewhere": _set(files={"../../../etc/passwd": "0" * 64}),
        "a failed proof": lambda card: card["proof"].update(passed=False),
        "a proof that says no": lambda card: card["proof"].update(passed="no"),
        "an unknown key": _set(surprise=1),
        "format 99": _set(format=99),
        "a layout of NCHW": _set(layout="NCHW"),
        "multiply-adds beyond all": _set(macs=10**400),
    }  # fmt: skip


def card_texts() -> dict[str, bytes]:
    return {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"7",
        "no JSON": b"{",
        "no UTF-8": b"\xff\xfe{}",
        "deep": b"[" * 200_000,
        "a long number": b"1" * 100_000,
        "NaN": b'{"format": NaN}',
        "the same key twice": b'{"format": 1, "format": 2}',
        "a digest alone": b'{"digest":"' + b"0" * 64 + b'",}',
    }


def _openvino(made: Materials) -> Iterator[Case]:
    parts = {
        ".xml": made.openvino.read_bytes(),
        ".bin": made.openvino.with_suffix(".bin").read_bytes(),
        ".xml.json": made.openvino.with_suffix(".xml.json").read_bytes(),
    }
    # Cards name their files, so the names stay.
    named = {f"{made.openvino.stem}{suffix}": content for suffix, content in parts.items()}
    for suffix, count in ((".xml", 14), (".bin", 10), (".xml.json", 14)):
        name = f"{made.openvino.stem}{suffix}"
        for kind, content in spoil(named[name], count, "openvino", suffix):
            yield _serve("OpenVINO", f"{suffix}, {kind}", made, named | {name: content})
        rest = {each: content for each, content in named.items() if each != name}
        if suffix != ".xml":
            yield _serve("OpenVINO", f"no {suffix}", made, rest, may=False)
    other = {name.replace("csfcn", "other"): content for name, content in named.items()}
    yield _serve("OpenVINO", "renamed", made, other, may=False)
    bomb = (
        b"<!DOCTYPE x [<!ENTITY a 'aaaa'>"
        + b"".join(
            b"<!ENTITY a%d '%s'>" % (i + 1, b"&a%d;" % i * 10 if i else b"&a;" * 10)
            for i in range(9)
        )
        + b"]><net>&a9;</net>"
    )
    name = f"{made.openvino.stem}.xml"
    yield _serve("OpenVINO", "a bomb of entities", made, named | {name: bomb}, may=False)


def _engines(made: Materials) -> Iterator[Case]:
    def build(part: str, change: Callable[[bytes], bytes], folder: Path) -> None:
        from test_preflight import FACTS, write_engine

        path = write_engine(folder / "in", FACTS)
        which = path if part == "engine" else path.with_name(path.name + ".json")
        which.write_bytes(change(which.read_bytes()))

    rng = generator("engine")
    for part in ("engine", "card"):
        for number in range(12):
            seed = int(rng.integers(1 << 30))

            def change(content: bytes, seed: int = seed, number: int = number) -> bytes:
                return list(spoil(content, number + 1, "engine", seed))[number][1]

            label = f"{part}, spoil {number}"
            probe = "attack_probes:check_engine"
            yield Case("engines", label, partial(build, part, change), probe=probe)
        for name, content in NOT_AT_ALL.items():
            here = partial(build, part, lambda _, content=content: content)
            yield Case(
                "engines", f"{part}, {name}", here, probe="attack_probes:check_engine",
                may_pass=False,
            )  # fmt: skip


def _safetensors(made: Materials) -> Iterator[Case]:
    sound = made.torch.read_bytes()
    head = 8 + int.from_bytes(sound[:8], "little")
    for name, content in spoil(sound, 14, "safetensors"):
        yield _serve("safetensors", name, made, {"net.safetensors": content})
    for name, content in spoil(sound[:head], 24, "safetensors header"):
        whole = {"net.safetensors": content + sound[head:]}
        yield _serve("safetensors", f"its header, {name}", made, whole)
    for name, content in NOT_AT_ALL.items():
        yield _serve("safetensors", name, made, {"net.safetensors": content}, may=False)
        build = partial(put, "net.safetensors", content)
        yield Case("safetensors", f"weights, {name}", build, probe=LOAD, may_pass=False)
    for name, header in {
        "no JSON": b"{",
        "a list": b"[1]",
        "deep": b"[" * 300_000,
        "offsets that are text": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", 4]}}',
        "negative offsets": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        "an endless shape": b'{"a": {"dtype": "F32", "shape": [9999999], "data_offsets": [0, 4]}}',
        "an unknown type": b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        "metadata that is a number": b'{"__metadata__": 7}',
        "a card that is a list": b'{"__metadata__": {"card": "[]"}}',
        "a number for a tensor": b'{"a": 7}',
        "no UTF-8": b'{"\xff": 1}',
    }.items():
        content = struct.pack("<Q", len(header)) + header + bytes(4)
        yield _serve(
            "safetensors", f"a header of {name}", made, {"net.safetensors": content}, False
        )
        build = partial(put, "net.safetensors", content)
        yield Case("safetensors", f"weights of {name}", build, probe=LOAD, may_pass=False)
    for length in (1 << 63, 1 << 31, len(sound), 7):
        content = struct.pack("<Q", length) + sound[8:]
        name = f"a header of {length} bytes"
        yield _serve("safetensors", name, made, {"net.safetensors": content}, may=False)


class _Runs:
    """A pickle that runs a command."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _pickles(made: Materials) -> Iterator[Case]:
    import torch
    from rtseg.models.loading import load_model

    state = load_model("csfcn_nano:camvid").network.state_dict()
    sound = _saved(state)
    for name, content in spoil(sound, 16, "pth"):
        build = partial(put, "net.pth", content)
        yield Case("checkpoints", name, build, probe=LOAD)
    for name, content in NOT_AT_ALL.items():
        build = partial(put, "net.pth", content)
        yield Case("checkpoints", name, build, probe=LOAD, may_pass=False)
    first = next(iter(state))
    for name, value in {
        "a command": _Runs(os.system, "touch owned"),
        "code": _Runs(eval, "open('owned', 'w')"),
        "a command in a dict": {"state_dict": _Runs(os.system, "touch owned")},
        "a list": [1, 2, 3],
        "a number": 7,
        "nothing": None,
        "an empty dict": {},
        "text for tensors": dict.fromkeys(state, "x"),
        "numbers for keys": dict(enumerate(state.values())),
        "None for a tensor": dict(state) | {first: None},
        "a tensor of NaN": dict(state) | {first: torch.full_like(state[first], float("nan"))},
        "a scalar": dict(state) | {first: torch.tensor(1.0)},
        "complex numbers": dict(state) | {first: state[first].to(torch.complex64)},
        "a sparse tensor": dict(state) | {first: state[first].reshape(1, -1).to_sparse()},
        "a tensor on meta": dict(state) | {first: state[first].to("meta")},
        "one key too many": dict(state) | {"surprise": state[first]},
        "one key too few": {name: value for name, value in state.items() if name != first},
        "a hundred wrappers": _wrapped(dict(state), 100),
        "a dict in itself": _in_itself(),
    }.items():
        content = _saved(value)
        build = partial(put, "net.pth", content)
        sane = name in ("a hundred wrappers", "a dict in itself")
        yield Case("checkpoints", f"{name}", build, probe=LOAD, may_pass=sane)
    for name, content in {
        "a plain pickle of a command": pickle.dumps(_Runs(os.system, "touch owned")),
        "a deep pickle": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
        "a long string's head": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
        "a tar": _tar(),
        "a zip of zeros": _zip({"archive/data.pkl": bytes(50_000_000)}),
        "a zip that climbs": _zip({"../../owned": b"x", "archive/data.pkl": b"\x80\x02N."}),
    }.items():
        build = partial(put, "net.pth", content)
        yield Case("checkpoints", name, build, probe=LOAD, may_pass=False)


def _saved(value: object) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _wrapped(state: dict[str, Any], times: int) -> dict[str, Any]:
    for _ in range(times):
        state = {"state_dict": state}
    return state


def _in_itself() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["state_dict"] = state
    return state


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../owned"), io.BytesIO())
    return buffer.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()
