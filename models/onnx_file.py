"""Networks that come as somebody's ONNX file: understood, and run as they are.

A file does not say how its pixels are normalized, so that is asked for, as of a module. What it
does say is found in its graph and by running it: where the image goes in, whether channels come
first or last, what it gives (logits, probabilities or class ids), and of what tensor the labels are
the argmax. The file itself, in ONNX Runtime, is the reference of every artifact made of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from ..data.scenes import scenes
from ..errors import UsageError
from .network import Network, NetworkInfo
from .onnx_graph import (
    Tail,
    axes_of,
    find_last_resize,
    find_logits,
    find_tail,
    node_macs,
    prepare,
)
from .own import NORMALIZATIONS, Normalization
from .zoo import NetworkCost

Size = tuple[int, int]  # (height, width) in pixels
Array = NDArray[np.generic]
USUAL = ("logits", "out", "output", "sem_seg", "semantic_logits")  # names of the main output
FLOATS = (TensorProto.FLOAT, TensorProto.UINT8)


@dataclass(frozen=True)
class FileForm:
    """How a file takes an image, and what it gives.

    Attributes:
        image: its input's name.
        channels_last: the input is (N, H, W, 3), not (N, 3, H, W).
        dtype: of the input, float32 or uint8.
        batch: how many images it takes, 1 where it takes any number.
        output: its output's name.
        output_axis: of the classes in that, if it is no map of ids.
        tail: what that is made of; its axis is known.
        channels: of the scores: one for two classes, else one a class.
    """

    image: str
    channels_last: bool
    dtype: Any
    batch: int
    output: str
    output_axis: int
    tail: Tail
    channels: int

    def feed(self, pixels: Tensor) -> dict[str, Array]:
        """What a session of the file is given of pixels (1, 3, H, W) in its channel order."""
        if self.channels_last:
            pixels = pixels.permute(0, 2, 3, 1)
        array = np.repeat(pixels.cpu().numpy(), self.batch, axis=0)
        if self.dtype == np.uint8:
            array = array.round().clip(0, 255)
        return {self.image: np.ascontiguousarray(array, self.dtype)}


class OnnxNetwork(Network):
    """An ONNX file as a `Network`: run in ONNX Runtime on the CPU, in float32, as it is.

    Args:
        content: of the file, with all of its weights.
        info: name, number of classes, normalization in RGB order.
        form: how it takes an image, and what it gives.
        order: of the channels that it reads.
    """

    # In the state, so that the digest of the weights is that of the file and the channel order.
    file: Tensor  # (bytes,) uint8
    reads_bgr: Tensor  # () bool

    def __init__(self, content: bytes, info: NetworkInfo, form: FileForm, order: str):
        super().__init__()
        self.register_buffer("file", torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self.register_buffer("reads_bgr", torch.tensor(order == "bgr"))
        self.info, self.form, self.order = info, form, order
        self.upsample_logits = nn.Identity()
        self._session: onnxruntime.InferenceSession | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_session": None}  # a copy opens its own

    @property
    def content(self) -> bytes:
        return self.file.cpu().numpy().tobytes()

    def forward_logits(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) in RGB -> scores (N, K, h, w): what the file's argmax or softmax
        reads, or its logits."""
        return torch.cat([self.answer(each)[0] for each in image.split(1)])

    def prepare(self, size: Size, batch: int = 1) -> onnx.ModelProto:
        """The graph for `batch` images of (height, width), from its own input to its scores, see
        `onnx_graph.prepare`.

        Raises:
            UsageError: if the file's graph does not allow that size or batch.
        """
        dims = [batch, *size, 3] if self.form.channels_last else [batch, 3, *size]
        try:
            return prepare(self.content, dims, self.form.tail.scores)
        except UsageError as error:
            wanted = "one image" if batch == 1 else f"{batch} images"
            raise UsageError(
                f"the graph of {self.info.name} cannot be brought to {wanted} of "
                f"{size[0]}x{size[1]} ({error}): export the file for a batch of {batch}, or of any "
                "number, and that size"
            ) from error

    def count_cost(self, size: Size) -> NetworkCost:
        """What an image of (height, width) takes, by the file's graph."""
        model = self.prepare(size)
        counted = node_macs(model)
        return NetworkCost(
            macs=sum(macs for _, macs in counted),
            params=sum(
                math.prod(tensor.dims)
                for tensor in model.graph.initializer
                if tensor.data_type == TensorProto.FLOAT
            ),
            layers=len(counted),
        )

    def answer(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """image (1, 3, H, W) in RGB -> the scores (1, K, h, w), and the file's own labels (1, h, w)
        where it gives some, or probabilities, whose argmax they are."""
        if self._session is None:
            self._session = open_file(self.content, self.form.tail.scores)
        form = self.form
        names = list(dict.fromkeys([form.output, form.tail.scores]))
        pixels = image.flip(1) if self.order == "bgr" else image
        found = dict(zip(names, run_file(self._session, names, form.feed(pixels)), strict=True))
        scores = _first_channels(found[form.tail.scores], form.tail.axis)
        labels = None
        if form.tail.kind == "labels":
            labels = torch.from_numpy(as_ids(found[form.output])[None].astype(np.int64))
        elif form.tail.kind == "probabilities":
            own = _first_channels(found[form.output], form.output_axis)
            labels = own.argmax(1) if form.channels > 1 else (own[:, 0] > 0.5).long()
        if form.channels == 1:  # sigmoid(x) > 1/2: x > 0
            scores = torch.cat([torch.zeros_like(scores), scores], dim=1)
        return scores, labels


def open_onnx_file(
    title: str,
    content: bytes,
    size: Size | None,
    normalization: Normalization,
    num_classes: int | None = None,
    name: str | None = None,
    output: str | None = None,
) -> tuple[OnnxNetwork, Size]:
    """Understand an ONNX file of a segmentation network, by its graph and by running it once.

    Args:
        title: the file's name.
        content: of it, as `read_onnx` gives it.
        size: (height, width) in pixels that it shall take; None if the file has it fixed.
        normalization: of its pixels.
        num_classes: of its labels, if that is known.
        name: for files and reports; by default the file's.
        output: the name of the output to take; needed where several may be meant.

    Returns:
        The network, and the (height, width) that it takes.

    Raises:
        UsageError: if it is no such file; the message says why, and what to do.
    """
    model = onnx.load_from_string(content)
    image, channels_last, dtype, batch, fixed = _find_input(model, title)
    if size is None and None in fixed:
        raise UsageError(f"{title} takes any size: say which, size=(height, width), --size HxW")
    wanted = size or fixed
    height, width = int(fixed[0] or wanted[0] or 0), int(fixed[1] or wanted[1] or 0)
    if size is not None and size != (height, width):
        raise UsageError(
            f"{title} takes {height}x{width} only, not {size[0]}x{size[1]}: leave the size out, "
            "or export the file with dynamic height and width"
        )
    if dtype == np.uint8 and normalization != NORMALIZATIONS["none"]:
        raise UsageError(
            f"{title} takes the camera's bytes, and so normalizes them itself: say "
            'normalize="none", --normalize none'
        )
    blank = FileForm(image, channels_last, dtype, batch, "", 1, Tail("logits", "", None), 1)
    form = _find_form(content, model, blank, (height, width), output, num_classes, title)
    classes = max(2, form.channels)
    if num_classes is not None and num_classes != classes:
        raise UsageError(
            f"{title} tells {classes} classes apart, the class set has {num_classes}: give the "
            "set that it was trained on"
        )
    called = re.sub(r"[^a-z0-9]+", "_", (name or Path(title).stem).lower()).strip("_")
    mean, std = normalization.rgb
    info = NetworkInfo(called or "network", classes, mean, std, multiple=1)
    network = OnnxNetwork(content, info, form, normalization.order).eval()
    graph = network.prepare((height, width))
    _, corners = find_last_resize(graph, find_logits(graph, form.tail.axis), (height, width))
    network.info = replace(info, align_corners=bool(corners))
    return network, (height, width)


def _find_input(
    model: onnx.ModelProto, name: str
) -> tuple[str, bool, object, int, tuple[int | None, int | None]]:
    """(name, channels last?, dtype, images at a time, its fixed height and width)."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise UsageError(
            f"{name} takes {len(inputs)} inputs ({', '.join(v.name for v in inputs)}): one image "
            "is all that a camera gives; export the network alone"
        )
    kind = inputs[0].type.tensor_type
    dims = [d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim]
    shown = f"{inputs[0].name} ({', '.join(str(d or '?') for d in dims)})"
    if kind.elem_type not in FLOATS:
        dtype = TensorProto.DataType.Name(kind.elem_type).lower()
        raise UsageError(
            f"{name} takes {shown} in {dtype}: give the float32 file, every precision is made of it"
        )
    if len(dims) != 4:
        raise UsageError(f"{name} takes {shown}: an image is (N, 3, H, W) or (N, H, W, 3)")
    readers = [node for node in graph.node if inputs[0].name in node.input]
    last = dims[3] == 3 and dims[1] != 3
    if 3 not in (dims[1], dims[3]):
        if dims[1] or dims[3]:
            raise UsageError(f"{name} takes {shown}: a camera's frame has three channels")
        last = any(n.op_type == "Transpose" and axes_of(n) == (0, 3, 1, 2) for n in readers)
    if kind.elem_type == TensorProto.UINT8 and any(n.op_type != "Cast" for n in readers):
        raise UsageError(f"{name} computes in uint8: give the file that takes floats")
    height, width = dims[1:3] if last else dims[2:4]
    dtype = np.uint8 if kind.elem_type == TensorProto.UINT8 else np.float32
    return inputs[0].name, last, dtype, dims[0] or 1, (height or None, width or None)


def open_file(
    content: bytes, *more: str, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A file in ONNX Runtime on the CPU; `more`: tensors of its graph that it gives too."""
    if more:
        model = onnx.load_from_string(content)
        given = {value.name for value in model.graph.output}
        for name in dict.fromkeys(more):
            if name not in given:
                model.graph.output.append(helper.make_empty_tensor_value_info(name))
        content = model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_file(
    session: onnxruntime.InferenceSession, names: list[str], feed: dict[str, Array]
) -> list[Array]:
    """What the file gives.

    Raises:
        UsageError: ONNX Runtime refuses the image, for its size or a fault of the file.
    """
    try:
        found: list[Array] = session.run(names, feed)
    except Exception as error:
        (image,) = feed.values()
        shape = "x".join(map(str, image.shape))
        raise UsageError(
            f"the ONNX file does not run on an image of {shape}: {_first_line(error)}; give the "
            "size that it was made for"
        ) from error
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", lines[0])[:200]


def _find_form(
    content: bytes,
    model: onnx.ModelProto,
    blank: FileForm,
    size: Size,
    wanted: str | None,
    classes: int | None,
    title: str,
) -> FileForm:
    """Run the file on a drawn scene, and see which of its outputs says a class for every pixel."""
    given = [value.name for value in model.graph.output]
    tails = {name: find_tail(model, name) for name in given}
    names = list(dict.fromkeys([*given, *(tail.scores for tail in tails.values())]))
    (scene,) = scenes(1, size)
    image = torch.from_numpy(scene.transpose(2, 0, 1).copy())[None].float() / 255
    try:
        session = open_file(content, *names)
    except Exception as error:  # ONNX Runtime has a type for each of its codes
        raise UsageError(f"ONNX Runtime does not load {title}: {_first_line(error)}") from error
    found = dict(zip(names, run_file(session, names, blank.feed(image)), strict=True))
    forms: dict[str, FileForm] = {}
    refused: dict[str, str] = {}
    for name in given:
        try:
            forms[name] = _judge(blank, name, tails[name], found, size, classes)
        except UsageError as error:
            shape = ", ".join(map(str, np.shape(found[name])))
            refused[name] = f"{name} ({shape}) {np.asarray(found[name]).dtype} {error}"
    return forms[_choose(forms, refused, found, wanted, title)]


def _judge(
    blank: FileForm,
    name: str,
    tail: Tail,
    found: Mapping[str, Array],
    size: Size,
    classes: int | None,
) -> FileForm:
    """The form that an output has. Raises UsageError, saying why, if it is no class map."""
    result, last_first = found[name], blank.channels_last
    own = 1
    if tail.kind == "labels":
        if not _same_aspect(as_ids(result).shape, size):
            raise UsageError("has not the image's aspect")
    elif not np.issubdtype(result.dtype, np.floating):
        raise UsageError("holds ids that no ArgMax over classes makes: give the logits instead")
    else:
        own = _find_axis(result, size, classes, last_first)
    scores, axis = found[tail.scores], tail.axis
    if axis is None:
        axis = _find_axis(scores, size, classes, last_first)
    if scores.ndim != 4 or axis not in (1, 3):
        raise UsageError(f"comes from {scores.shape}, no map (N, classes, h, w)")
    if tail.kind == "probabilities" and tail.axis is None and scores.shape[axis] > 1:
        # Sigmoids round to 1.0 where their logits still differ: those of several classes stay.
        tail, axis, scores = Tail("logits", name, own), own, result
    if not _same_aspect(scores.shape[2:] if axis == 1 else scores.shape[1:3], size):
        raise UsageError("swaps height and width")
    channels = scores.shape[axis]
    if channels > 255:
        raise UsageError(f"tells {channels} classes apart, and labels are uint8: 255 at most")
    tail = replace(tail, axis=axis)
    return replace(blank, output=name, output_axis=own, tail=tail, channels=channels)


def as_ids(result: Array) -> Array:
    """(h, w) of class ids (N, h, w), (N, 1, h, w), (N, h, w, 1) or (h, w), of the first image."""
    ids = result[0] if result.ndim > 2 else result
    ids = ids[0] if ids.ndim == 3 and ids.shape[0] == 1 else ids
    ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
    if ids.ndim != 2:
        raise UsageError("is no map of class ids (N, h, w)")
    return ids


def _same_aspect(shape: tuple[int, ...], size: Size) -> bool:
    """Whether (h, w) is the image at some stride, rounded either way."""
    return abs(shape[0] * size[1] - shape[1] * size[0]) <= max(size)


def _find_axis(result: Array, size: Size, classes: int | None, last_first: bool) -> int:
    """The axis of the classes. Raises UsageError where it is no map of the image's aspect."""
    if result.ndim != 4:
        raise UsageError("is no map (N, classes, h, w) or (N, h, w, classes)")
    fits = [
        axis
        for axis, plane in ((1, result.shape[2:]), (3, result.shape[1:3]))
        if _same_aspect(plane, size) and min(plane) > 1
    ]
    if len(fits) > 1 and classes is not None:
        fits = [axis for axis in fits if result.shape[axis] in (classes, 1)] or fits
    if not fits:
        raise UsageError("has not the image's aspect")
    return fits[-1] if last_first else fits[0]


def _first_channels(scores: Array, axis: int | None) -> Tensor:
    """(1, K, h, w) of the first image."""
    first = torch.from_numpy(np.ascontiguousarray(scores[:1], dtype=np.float32))
    return first.permute(0, 3, 1, 2).contiguous() if axis == 3 else first


def _choose(
    forms: Mapping[str, FileForm],
    refused: Mapping[str, str],
    found: Mapping[str, Array],
    wanted: str | None,
    title: str,
) -> str:
    """The output to take. Raises UsageError if none or several may be meant."""
    told = "; ".join(refused.values())
    if wanted is not None:
        if wanted in refused:
            raise UsageError(f"{title} cannot be exported: {refused[wanted]}")
        if wanted not in forms:
            raise UsageError(f"{title} has no output {wanted!r}, but {', '.join(found)}")
        return wanted
    if not forms:
        raise UsageError(
            f"{title} gives no class for every pixel: {told}; export its semantic logits"
        )
    scored = [name for name, form in forms.items() if form.tail.kind != "labels"] or list(forms)
    if len(scored) == 1:
        return scored[0]
    usual = [name for name in scored if name.lower() in USUAL]
    if len(usual) == 1:
        return usual[0]
    shapes = ", ".join(f"{name} ({', '.join(map(str, found[name].shape))})" for name in scored)
    raise UsageError(
        f"{title} has {len(scored)} outputs that may be the logits, {shapes}: say which, "
        "output=NAME, --logits NAME"
    )
