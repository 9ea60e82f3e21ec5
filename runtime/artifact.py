"""The card: what an artifact says of itself, and the digests that keep it true.

ONNX files carry it inside, as the metadata property `rtseg`; engines and OpenVINO models have it
beside them, as `NAME.json`; weights have it in the safetensors header.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..data.classes import ClassSet
from ..data.files import digest_of
from ..data.letterbox import Fit
from ..errors import ArtifactError
from .protobuf import read_varint, varint

Precision = Literal["fp32", "fp16", "bf16", "int8"]
# How coarse logits become the frame's size: a bilinear resize of (1, K, h, w), without or with
# corners aligned, or a pixel shuffle of (1, K * factor^2, h, w).
Enlargement = Literal["bilinear", "bilinear_aligned", "shuffle"]
KEY = b"rtseg"
# How protobuf writes the metadata property `rtseg` at the end of an ONNX model: field 14 of the
# model holds an entry whose field 1 is the key and whose field 2 is the value.
_FIELD, _ENTRY = b"\x72", b"\x0a" + bytes([len(KEY)]) + KEY + b"\x12"


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Proof(_Facts):
    """The verdict of the parity report: `report` is its id, the rest its main figures.

    `agreement`: share of pixels with the reference's label; `logits_error`: root mean square error
    over that of the reference, where the artifact's logits could be read. `bf16`: whether it also
    held the bar of bfloat16 while computing in it; None if that was not tried. `frames`: how many
    it was run on, taken from `frames_of` that were drawn, given or held out; `warnings`: what
    equality with the reference does not show, such as a size far from the training's.
    """

    report: str
    passed: bool
    frames: int
    frames_from: Literal["drawn", "given", "held out"] | None = None
    frames_of: int | None = None
    warnings: tuple[str, ...] = ()
    agreement: float
    logits_error: float | None = None
    bf16: bool | None = None


class EngineFacts(_Facts):
    """What a TensorRT engine was built with, and what it needs to run.

    `flavour`: the Python package; `compute_capabilities`: such as "8.6", those it holds or may
    compile code for; `minimum_driver`: of the CUDA version it was built for, if that is known;
    `layers`: of the network before TensorRT fused them; `flags`: builder and network flags, by
    name; `blocks`: SHA-256 of the file's blocks, so that all cores can check a large engine.
    """

    flavour: Literal["tensorrt", "tensorrt_rtx"]
    version: str
    compute_capabilities: tuple[str, ...]
    platform: str
    minimum_driver: str | None = None
    flags: tuple[str, ...]
    layers: int
    onnx: str
    build_seconds: float
    blocks: tuple[str, ...] = ()


class Int8Facts(_Facts):
    """How a graph became int8.

    method: of calibration; frames: that it saw; held_out: that it was judged on instead; layers:
    how many are in int8, excluded: those left in float because they cost too much; share: of the
    multiply-adds that int8 does.
    """

    method: str
    frames: int
    held_out: int
    layers: int
    excluded: tuple[str, ...] = ()
    share: float


class Card(_Facts):
    """An artifact's description; the runtime needs nothing else.

    size: (height, width) in pixels of the frame that goes in: uint8 NHWC in BGR order, batch 1.
    trained_size: likewise, what the weights were trained at. fit: how a frame of another aspect
    comes to that size; `stretch` in files of versions that named none.
    outputs: "labels" (uint8, H x W), "logits" (the network's own, float), "coarse" (of an
    engine: what its label kernel reads, float; `enlarge` names what that replaces). mean,
    std: of RGB in 0..1; they are inside the graph already. weights: digest of the network's state.
    trained: False for random weights. macs: multiply-adds of one frame. proof: None until the
    artifact was run against the reference. files: SHA-256 by file name; for ONNX the one entry ""
    is of the file without its card.
    """

    format: Literal[1] = 1
    model: str
    size: tuple[int, int]
    trained_size: tuple[int, int] | None = None
    fit: Fit = "stretch"
    precision: Precision
    outputs: tuple[Literal["labels", "logits", "coarse"], ...]
    enlarge: Enlargement | None = None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...] | None = None
    class_set: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: Literal["NHWC"] = "NHWC"
    channels: Literal["BGR"] = "BGR"
    weights: str
    weights_from: str
    trained: bool
    macs: int
    params: int
    tools: dict[str, str]
    proof: Proof | None = None
    engine: EngineFacts | None = None
    int8: Int8Facts | None = None
    files: dict[str, str] = {}

    @property
    def gives_labels(self) -> bool:
        """Whether the runtime makes labels with it, rather than logits alone."""
        return "labels" in self.outputs or "coarse" in self.outputs

    @property
    def class_table(self) -> ClassSet:
        return ClassSet(self.class_set, self.classes, self.palette, self.label_ids)

    def to_json(self) -> str:
        return self.model_dump_json(exclude_none=True)

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the card") -> Card:
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "JSON"
            raise ArtifactError(
                f"{where} is not a card that this version reads ({field}: {first['msg']}): "
                "export the model again"
            ) from error


def sidecar(path: Path) -> Path:
    """Where the card of an engine or OpenVINO model lies: beside it, with `.json` added."""
    return path.with_name(path.name + ".json")


def read_card(path: str | os.PathLike[str]) -> Card:
    """The card of an artifact, without loading the model.

    Raises ArtifactError if there is no such file, it has no card, or the card is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"no artifact at {path}")
    if path.suffix == ".onnx":
        return Card.from_json(_split_onnx(path)[1], str(path))
    if path.suffix == ".safetensors":
        return Card.from_json(_header_card(path), str(path))
    beside = sidecar(path)
    if not beside.is_file():
        raise ArtifactError(
            f"{path} has no card: {beside.name} must lie beside it; copy both or export again"
        )
    return Card.from_json(beside.read_bytes(), str(beside))


def append_card(model: bytes, card: Card) -> bytes:
    """A serialized ONNX model that has no property `rtseg` yet, with `card` as that property."""
    card = card.model_copy(update={"files": {"": hashlib.sha256(model).hexdigest()}})
    value = card.to_json().encode()
    entry = _ENTRY + varint(len(value)) + value
    return model + _FIELD + varint(len(entry)) + entry


def verify(path: str | os.PathLike[str], card: Card) -> None:
    """Raises ArtifactError unless every file's content has the digest that the card names."""
    path = Path(path)
    if path.suffix == ".onnx":
        found = {"": hashlib.sha256(_split_onnx(path)[0]).hexdigest()}
    else:
        found = {name: _file_digest(path.with_name(name)) for name in card.files}
    for name, expected in card.files.items():
        if found.get(name) != expected:
            raise ArtifactError(
                f"{path.with_name(name) if name else path} has been changed or damaged since it "
                "was exported (its SHA-256 differs from its card's): copy or export it again"
            )


def _file_digest(path: Path) -> str:
    try:
        return digest_of(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: copy it too, or export again") from error


def _split_onnx(path: Path) -> tuple[bytes, bytes]:
    """(the model without its card, the card's JSON)."""
    content = path.read_bytes()
    start = content.rfind(_ENTRY)
    if start < 0:
        raise ArtifactError(
            f"{path} carries no card, so nothing says what its classes and sizes are: "
            "export it with `rtseg export`"
        )
    length, value_at = read_varint(content, start + len(_ENTRY))
    entry_length = value_at + length - start
    model_end = start - len(varint(entry_length)) - len(_FIELD)
    if value_at + length != len(content):
        raise ArtifactError(
            f"{path} is truncated or was rewritten by another tool: copy or export it again"
        )
    return content[:model_end], content[value_at:]


def _header_card(path: Path) -> bytes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 100_000_000)))
        except ValueError as error:
            raise ArtifactError(f"{path} is damaged: fetch or export it again") from error
    card = (header.get("__metadata__") or {}).get("card")
    if card is None:
        raise ArtifactError(
            f"{path} is a checkpoint without a card: `rtseg export {path}` makes artifacts of it"
        )
    return str(json.loads(card) if card.startswith('"') else card).encode()
