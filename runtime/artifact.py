"""The card: an artifact's description of itself, and the digests that protect it.

ONNX files carry it inside, as the metadata property `rtseg`; engines and OpenVINO models have it
beside them, as `NAME.json`; weights have it in the safetensors header.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..data.camera_formats import CameraFormat, check_format, frame_shape, from_bgr
from ..data.classes import ClassSet
from ..data.files import digest_of
from ..data.letterbox import Color, Fit, check_fit, fit_frame
from ..data.limits import check_json, check_limit, read_limited
from ..data.onnx_scan import scan_onnx
from ..data.signature import check_required
from ..errors import ArtifactError
from .bounds import ErrorBound
from .onnx_metadata import ENTRY, METADATA, encode_varint, field, split_card
from .preprocess_facts import PreprocessFacts
from .safetensors_card import digest_of_tensors, find_header_card

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
ROUNDED: tuple[Precision, ...] = ("int8", "fp8")  # by calibrated ranges
# How coarse logits become the frame's size: a bilinear resize of (1, K, h, w), without or with
# corners aligned, or a pixel shuffle of (1, K * factor^2, h, w).
Upsampling = Literal["bilinear", "bilinear_aligned", "shuffle"]
_ENLARGE = "enlarge"  # its name in files: cards that older versions wrote are read, and they ours
LARGEST = 1 << 14  # pixels of a side
MOST_SIZES = 8  # of one file
MOST_BATCH = 32  # frames; a vehicle has fewer cameras, and a graph holds tables for each
_SIZES = {  # which limit holds for each kind of file
    ".onnx": "model_bytes",
    **dict.fromkeys((".engine", ".plan"), "engine_bytes"),
    ".xml": "xml_bytes",
    ".json": "json_bytes",
    ".npz": "array_bytes",
}
_DIGEST = re.compile(rb'\{"digest":"([0-9a-f]{64})",')


class _Facts(BaseModel):
    # A field that is not known here was written by a newer version: refused, not half understood.
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Proof(_Facts):
    """The verdict of the parity report: `report` is its id, the rest its main figures.

    `agreement`: share of pixels with the reference's label; `logits_error`: root mean square error
    over that of the reference, where the artifact's logits could be read. `bf16`: whether it also
    held the bar of bfloat16 while computing in it; None if that was not tried. `frames`: how many
    it was run on, taken from `frames_of` that were drawn, shipped, given or held out; `warnings`:
    what equality with the reference does not show, such as a size far from the training's.
    `bounds`: of the logits' error, one for each arithmetic that it was run in; none in files of
    versions before certified labels, and where logits could not be read.
    """

    report: str
    passed: bool
    frames: int
    frames_from: Literal["drawn", "shipped", "given", "held out"] | None = None
    frames_of: int | None = None
    warnings: tuple[str, ...] = ()
    agreement: float
    logits_error: float | None = None
    bf16: bool | None = None
    bounds: tuple[ErrorBound, ...] = ()


class EngineFacts(_Facts):
    """What a TensorRT engine was built with, and what it needs to run.

    `flavour`: the Python package; `compute_capabilities`: such as "8.6", those it holds or may
    compile code for; `minimum_driver`: of the CUDA version it was built for, if that is known;
    `layers`: of the network before TensorRT fused them; `flags`: builder and network flags, by
    name; `options`: of the builder, those that were asked for; `blocks`: SHA-256 of the file's
    blocks, so that all cores can check a large engine.
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
    options: dict[str, str] | None = None
    blocks: tuple[str, ...] = ()


class Int8Facts(_Facts):
    """How a graph became int8, or fp8.

    method: of calibration; frames: that it saw; held_out: that it was judged on instead; layers:
    how many are rounded, excluded: those left in float because they cost too much, in ONNX
    Runtime's form because only float reads what they give, in OpenVINO's because they read the
    frame; share: of the multiply-adds that rounded layers do.
    """

    method: str
    frames: int
    held_out: int
    layers: int
    excluded: tuple[str, ...] = ()
    share: float


class CoarseLogits(_Facts):
    """What the last upsampling before the argmax reads, for backends that take the argmax
    themselves (`argmax.py`).

    tensor: its name in the graph; upsampling: what follows there, a shuffle of (1, K, factor^2, h,
    w) or a resize of (1, K, h, w). parts: of an ONNX file, the ends of the model's head, of the
    graph's tag and of what `tensor` and the outputs but "labels" are made of, in bytes. scale,
    zero: of logits that an NPU gives as integers, one for all classes.
    """

    tensor: str
    upsampling: Upsampling = Field(validation_alias=_ENLARGE, serialization_alias=_ENLARGE)
    parts: tuple[int, int, int] | None = None
    scale: float | None = None
    zero: int | None = None


class Card(_Facts):
    """An artifact's description; the runtime needs nothing else.

    Attributes:
        format: 2; 1, which had no digest of the card itself, is not read.
        model, precision: the network's name, and its arithmetic.
        size: (height, width) in pixels that the network sees, and of its labels.
        batch: frames that go in at once, and label maps that come out, each frame's own.
        sizes, size_macs: of a file that takes several, all sizes, and the macs at each; `at` gives
            the card for one. Empty where `size` is the only one.
        trained_size: (height, width) that the weights were trained at.
        fit: how a frame of another aspect comes to `size` (`data/letterbox.py`).
        pad_color: RGB beside such a frame; None: black.
        outputs: "labels" (uint8, N x H x W), "logits" (the network's own, float), "coarse" (of an
            engine: what its label kernel reads, float).
        upsampling: of "coarse", which upsampling that kernel replaces.
        coarse: what backends read that take the argmax themselves.
        classes, palette, label_ids: by class id, names, colors (RGB) and the data set's own ids.
        class_set: the name of these classes.
        mean, std: of RGB in 0..1; they are inside the graph already.
        layout, channels, input: of the uint8 frames that go in; `input` is their format
            (`data/camera_formats.py`), of which "bgr" is NHWC.
        camera_size: (height, width) of those frames' pictures, where the graph brings them to
            `size`; None: they have it.
        weights, weights_from: digest of the network's state, and the file that it came from.
        trained, license, trained_on: False for random weights; as their checkpoint says.
        macs, params: multiply-adds of one frame, and parameters.
        tools: versions by package, of what made the file.
        preprocess: of a network from outside the zoo, where its user gave theirs.
        proof: None until the artifact was run against the reference.
        engine, int8, fp8, soc: how TensorRT built it, how it was rounded, and for which NPU.
        files: SHA-256 by file name; for ONNX and weights the one entry "" is of the file without
            its card.
    """

    format: Literal[2] = 2
    model: str
    size: tuple[int, int]
    batch: int = 1
    sizes: tuple[tuple[int, int], ...] = ()
    size_macs: tuple[int, ...] = ()
    trained_size: tuple[int, int] | None = None
    fit: Fit = "stretch"
    pad_color: Color | None = None
    precision: Precision
    outputs: tuple[Literal["labels", "logits", "coarse"], ...]
    upsampling: Upsampling | None = Field(
        default=None, validation_alias=_ENLARGE, serialization_alias=_ENLARGE
    )
    coarse: CoarseLogits | None = None
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...] | None = None
    class_set: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    layout: Literal["NHWC"] = "NHWC"
    channels: Literal["BGR"] = "BGR"
    input: CameraFormat = "bgr"
    camera_size: tuple[int, int] | None = None
    weights: str
    weights_from: str
    trained: bool
    license: str | None = None
    trained_on: str | None = None
    macs: int
    params: int
    tools: dict[str, str]
    preprocess: PreprocessFacts | None = None
    proof: Proof | None = None
    engine: EngineFacts | None = None
    int8: Int8Facts | None = None
    fp8: Int8Facts | None = None
    soc: str | None = None
    files: dict[str, str] = {}

    @model_validator(mode="after")
    def _check(self) -> Card:
        """What can be served at all: whoever may write a card may digest it, too."""
        for wrong, what in (
            (not all(1 <= v <= LARGEST for s in self.all_sizes for v in s), f"size {self.size}"),
            (self.size not in self.all_sizes, f"size {self.size}"),
            (len(self.size_macs) != len(self.sizes), f"{len(self.size_macs)} macs"),
            (not len(self.sizes) <= MOST_SIZES, f"{len(self.sizes)} sizes"),
            (not 1 <= self.batch <= MOST_BATCH, f"a batch of {self.batch}"),
            (not 1 <= len(self.classes) <= 255, f"{len(self.classes)} classes"),
            (len(self.palette) != len(self.classes), f"{len(self.palette)} colors of classes"),
            (not all(0 <= v <= 255 for color in self.palette for v in color), "colors"),
            (not self.outputs, "no outputs"),
            (not all(1 <= v <= LARGEST for v in self.camera_size or ()), "camera_size"),
        ):
            if wrong:
                raise ValueError(f"{what} cannot be right")
        check_format(self.input, self.camera_size or self.size)
        check_fit(self.fit, self.pad_color)
        return self

    @property
    def takes_camera(self) -> bool:
        """Whether the graph takes a camera's frames as they come, of one format and size."""
        return self.input != "bgr" or self.camera_size is not None

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Of the uint8 frame that goes into the graph, without the batch."""
        return frame_shape(self.input, self.camera_size or self.size)

    def encode(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A picture (H, W, 3) uint8 BGR, any size, as the camera of this artifact gives it; as it
        is where the artifact takes any picture."""
        if not self.takes_camera:
            return picture
        whole = fit_frame(picture, self.camera_size or self.size, self.fit, self.pad_color)
        return np.require(from_bgr(whole, self.input), requirements=["C", "W"])

    @property
    def gives_labels(self) -> bool:
        """Whether the runtime makes labels with it, rather than logits alone."""
        return "labels" in self.outputs or "coarse" in self.outputs

    @property
    def all_sizes(self) -> tuple[tuple[int, int], ...]:
        """(height, width) of every frame that the file takes."""
        return self.sizes or (self.size,)

    def at(self, size: tuple[int, int] | None) -> Card:
        """This card for frames of one of its sizes, `size` if None.

        Raises:
            ArtifactError: the file does not take that size; the message names those it does.
        """
        if size is None or size == self.size:
            return self
        if size not in self.all_sizes:
            known = " and ".join(f"{height}x{width}" for height, width in self.all_sizes)
            raise ArtifactError(
                f"this artifact takes {known}, not {size[0]}x{size[1]}: export it at that size too"
            )
        macs = self.size_macs[self.sizes.index(size)]
        return self.model_copy(update={"size": size, "macs": macs})

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of "frame": (N, H, W, 3), or N frames of a camera's format."""
        return (self.batch, *self.frame_shape)

    @property
    def label_shape(self) -> tuple[int, int, int]:
        """Of "labels": (N, H, W)."""
        return (self.batch, *self.size)

    @property
    def class_table(self) -> ClassSet:
        """The classes as one `ClassSet`: names, colors and label ids."""
        return ClassSet(self.class_set, self.classes, self.palette, self.label_ids)

    def to_json(self) -> str:
        """JSON that begins with the digest of all that follows."""
        body = self.model_dump_json(exclude_none=True, by_alias=True)
        return f'{{"digest":"{_sha256(body.encode())}",{body[1:]}'

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "the card") -> Card:
        """Read what `to_json` wrote.

        Args:
            text: of the card, digest included.
            where: it was, for messages.

        Returns:
            The card, whose digest holds.

        Raises:
            ArtifactError: if it is no card, of another version, or not as it was written.
        """
        # Damaged text may hold half a surrogate pair: it fails by its digest, not as it is encoded.
        body = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        check_json(body, where, ArtifactError)
        signed = _DIGEST.match(body)
        if not signed:  # as in the first format: nothing shows whether it was changed
            raise ArtifactError(f"{where} lacks its digest: export the model again")
        body = b"{" + body[signed.end() :]
        if _sha256(body) != signed[1].decode():
            raise ArtifactError(f"{where} was changed or damaged: export the model again")
        try:
            card = cls.model_validate_json(body, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "JSON"
            raise ArtifactError(
                f"{where} is not a card that this version reads ({field}: {first['msg']}): "
                "export the model again"
            ) from error
        return card


def sidecar(path: Path) -> Path:
    """Where the card of an engine or OpenVINO model lies: beside it, with `.json` added."""
    return path.with_name(path.name + ".json")


def beside_engine(engine: Path, card: Card | None, what: str) -> Path:
    """A file that goes with an engine; with one for several sizes one a size, that which `card` is
    at."""
    size = f"{card.size[0]}x{card.size[1]}." if card is not None and card.sizes else ""
    return engine.with_name(f"{engine.name}.{size}{what}")


def read_card(path: str | os.PathLike[str]) -> Card:
    """The card of an artifact, without loading the model.

    Raises ArtifactError if there is no such file, it has no card, or the card is damaged;
    SignatureError before anything is read, if a signature is required and missing.
    """
    path = Path(path)
    _check_sizes(path)
    if path.is_file() and path.suffix == ".onnx":
        content = read_limited(path, "model_bytes", ArtifactError)
        check_required(path, {path.name: content})
        return Card.from_json(split_card(content, path)[1], str(path))
    if path.is_file() and path.suffix != ".safetensors" and (beside := sidecar(path)).is_file():
        text = read_limited(beside, "json_bytes", ArtifactError)
        check_required(path, {beside.name: text})
        return Card.from_json(text, str(beside))
    check_required(path)
    if not path.is_file():
        raise ArtifactError(f"no artifact at {path}")
    if path.suffix == ".safetensors":
        return Card.from_json(find_header_card(path), str(path))
    raise ArtifactError(
        f"{path} has no card: {beside.name} must be beside it; copy both or export again"
    )


def _check_sizes(path: Path) -> None:
    """Refuse an artifact whose files are beyond their limits, before any is read."""
    for each in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
        if each.is_file():
            check_limit(_size_limit(each), each.stat().st_size, each, ArtifactError)


def _size_limit(path: Path) -> str:
    return _SIZES.get(path.suffix, "weights_bytes")


def read_sealed(path: Path, card: Card, name: str = "") -> bytes:
    """A file of an artifact, read once and held against its card, so that what was verified is
    what runs, whatever becomes of the file meanwhile.

    Args:
        path: the artifact.
        card: its card.
        name: of a file beside it; by default the artifact itself.

    Raises:
        ArtifactError: it is missing, too large, or not what its card says.
    """
    each = path.with_name(name or path.name)
    try:
        content = read_limited(each, _size_limit(each), ArtifactError)
    except FileNotFoundError as error:
        raise ArtifactError(f"{each} is missing: copy it too, or export again") from error
    if each.suffix == ".onnx":
        model = split_card(content, each)[0]
        scan_onnx(model, each)
        found, expected = _sha256(model), card.files.get("")
    else:
        found, expected = _sha256(content), card.files.get(each.name)
    if expected not in (None, found):
        raise ArtifactError(_CHANGED.format(each))
    return content


_CHANGED = (
    "{} has been changed or damaged since it was exported (its SHA-256 differs from its card's): "
    "copy or export it again"
)


def append_card(model: bytes, card: Card) -> bytes:
    """Add `card` to a serialized ONNX model that has no property `rtseg` yet."""
    text = card.model_copy(update={"files": {"": _sha256(model)}}).to_json().encode()
    return model + field(METADATA, ENTRY + encode_varint(len(text)) + text)


def verify_artifact(path: str | os.PathLike[str], card: Card, but: Collection[str] = ()) -> None:
    """Check that an artifact may be served: it passed its proof, and its files are as exported.

    Args:
        path: the artifact.
        card: its card.
        but: keys of the card's files that are checked otherwise.

    Raises:
        ArtifactError: if its proof failed, or a file is missing or has another SHA-256 than its
            card says.
    """
    path = Path(path)
    if card.proof is not None and not card.proof.passed:
        raise ArtifactError(f"{path} failed its proof, so it is not served: export it again")
    whole = "" if path.suffix in (".onnx", ".safetensors") else path.name
    if whole not in card.files:
        raise ArtifactError(
            f"the card of {path} names no digest of {path.name}: give it the name that it was "
            "exported under, or export it again"
        )
    needed = [path.with_suffix(".bin").name] if path.suffix == ".xml" else []
    if "coarse" in card.outputs:
        sizes = map(card.at, card.all_sizes)
        needed += [beside_engine(path, each, "labels.npz").name for each in sizes]
    for name in needed:
        if name not in card.files:
            raise ArtifactError(f"the card of {path} names no digest of {name}: export it again")
    for name, expected in card.files.items():
        if name not in but and expected != _digest(path, name):
            raise ArtifactError(_CHANGED.format(path.with_name(name) if name else path))


def _digest(path: Path, name: str) -> str:
    """Of the file `name` beside an artifact; of the artifact without its card for ""."""
    if name:
        each = path.with_name(name)
        try:
            check_limit(_size_limit(each), each.stat().st_size, each, ArtifactError)
            return digest_of(each)
        except FileNotFoundError as error:
            raise ArtifactError(f"{each} is missing: copy it too, or export again") from error
    if path.suffix == ".safetensors":
        return digest_of_tensors(path)
    model = split_card(read_limited(path, "model_bytes", ArtifactError), path)[0]
    scan_onnx(model, path)
    return _sha256(model)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
