"""Camera input of a graph: a camera's bytes to the pixels that the graph of a BGR frame reads.

Nodes are put in front of a finished graph, whatever its precision: color conversion and, where the
camera's picture has another size, what `data/letterbox.py` does to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..data.camera_formats import PACKED, PLANAR, to_bgr
from ..data.letterbox import Color, Size, find_place, find_view, fit_frame
from ..errors import ExportError
from ..models.onnx_graph import attributes
from ..runtime.artifact import Card

PIXELS = "camera/pixels"  # (N, 3, H, W) BGR, whole numbers 0..255, of the card's size
# Of ITU-R BT.601 in video range, times 2^20, as OpenCV has them: luma, then B, G and R of U and V.
SHIFT = 20
LUMA = 1220542
OF_U, OF_V = (2116026, -409993, 0), (0, -852492, 1673527)


def take_camera(model: onnx.ModelProto, card: Card) -> onnx.ModelProto:
    """A copy of a BGR frame's graph that takes the frames of the card's camera instead.

    "frame" becomes (N, *card.frame_shape) uint8. Color conversion is in whole numbers, so that no
    backend's choice of precision rounds it by more than one level.

    Raises:
        ExportError: the graph does not begin as this package's graphs do.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    cast, planes, kind = _find_start(graph)
    nodes = _Front(graph)
    pixels = _fit(nodes, _convert(nodes, card), card)
    nodes.add("Cast", [pixels], planes, to=kind)
    for node in cast:
        graph.node.remove(node)
    rest = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes.nodes, *rest])
    value = helper.make_tensor_value_info("frame", TensorProto.UINT8, card.input_shape)
    graph.input.append(value)
    del graph.value_info[:]
    onnx.checker.check_model(made, full_check=True)
    return made


def find_conversion_faults(
    model: onnx.ModelProto, frames: Sequence[NDArray[np.uint8]], card: Card
) -> list[str]:
    """A line for each frame whose pixels differ from OpenCV's by more than one level.

    Args:
        model: that takes the camera's frames.
        frames: of the camera, as the card has them.
        card: of the graph.
    """
    from .parity import open_session

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    last = next(i for i, node in enumerate(graph.node) if PIXELS in node.output)
    del graph.node[last + 1 :], graph.output[:]
    graph.output.append(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, None))
    session = open_session(probe)

    def convert(batch: NDArray[np.uint8]) -> NDArray[np.generic]:
        pixels: NDArray[np.generic] = session.run([PIXELS], {"frame": batch})[0]
        return pixels.transpose(0, 2, 3, 1)

    return compare_colors(convert, frames, card)


def compare_colors(
    convert: Callable[[NDArray[np.uint8]], NDArray[np.generic]],
    frames: Sequence[NDArray[np.uint8]],
    card: Card,
) -> list[str]:
    """As `find_conversion_faults`, of what makes BGR (N, H, W, 3) of the card's frames."""
    found = []
    for place, frame in enumerate(frames):
        batch = np.repeat(frame[None], card.batch, axis=0)
        ours = convert(batch)[-1].astype(np.float32)
        theirs = fit_frame(to_bgr(frame, card.input), card.size, card.fit, card.pad_color)
        if (worst := np.abs(ours - theirs).max()) > 1:
            found.append(f"frame {place}'s colors are off from OpenCV's by {worst:.0f} levels")
    return found


class _Front:
    """Nodes in front of a graph."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []

    def add(self, kind: str, inputs: Sequence[str], output: str, **facts: Any) -> str:
        name = output if "/" in output else f"camera/{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **facts))
        return output

    def keep(self, name: str, values: Any, kind: Any = np.int64) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def split(self, source: str, axis: int, sizes: Sequence[int], stem: str) -> list[str]:
        outputs = [f"{stem}_{i}" for i in range(len(sizes))]
        parts = self.keep(f"{stem}_sizes", sizes)
        self.nodes.append(helper.make_node("Split", [source, parts], outputs, stem, axis=axis))
        return outputs

    def reshape(self, source: str, shape: Sequence[int], output: str) -> str:
        return self.add("Reshape", [source, self.keep(f"{output}_shape", shape)], output)

    def cut(self, source: str, part: tuple[slice, slice], size: Size, name: str) -> str:
        """Rows and columns of (N, 3, H, W): by splits, as a slice costs two dozen layers."""
        for axis, (kept, side) in enumerate(zip(part, size, strict=True), 2):
            sizes = [kept.start, kept.stop - kept.start, side - kept.stop]
            parts = self.split(source, axis, [n for n in sizes if n], f"camera/{name}_{axis}")
            source = parts[1 if kept.start else 0]
        return source

    def whole(self, kind: str, source: str, value: Any, output: str) -> str:
        """An operation with a constant, of int32."""
        return self.add(kind, [source, self.keep(f"{output}_by", value, np.int32)], output)


def _find_start(graph: onnx.GraphProto) -> tuple[list[onnx.NodeProto], str, int]:
    """(the nodes that go, the name of the (N, 3, H, W) pixels behind them, their type)."""

    def reader(name: str, kind: str) -> onnx.NodeProto:
        found = [node for node in graph.node if name in node.input]
        if len(found) != 1 or found[0].op_type != kind:
            raise ExportError(
                f"this graph does not begin with a {kind} of {name!r}, so no camera's format can "
                "be put in front of it: export it with --input bgr"
            )
        first: onnx.NodeProto = found[0]
        return first

    cast = reader("frame", "Cast")
    planes = reader(cast.output[0], "Transpose")
    return [cast, planes], planes.output[0], attributes(cast)["to"]


def _convert(nodes: _Front, card: Card) -> str:
    """The frames as BGR (N, 3, H, W) float32 of the camera's size, whole numbers 0..255."""
    # TensorRT makes floats of uint8, and nothing else.
    pixels = nodes.add("Cast", ["frame"], "camera/float", to=TensorProto.FLOAT)
    if card.input == "bgr":
        return nodes.add("Transpose", [pixels], "camera/bgr", perm=[0, 3, 1, 2])
    if card.input in (*PLANAR, *PACKED):
        return _convert_yuv(nodes, pixels, card)
    return _convert_bayer(nodes, pixels, card)


def _convert_yuv(nodes: _Front, pixels: str, card: Card) -> str:
    height, width = card.camera_size or card.size
    bytes_ = nodes.add("Cast", [pixels], "camera/whole", to=TensorProto.INT32)
    # Luma (N, 1, H / r, r, W / 2, 2) and chroma (N, 1, H / r, 1, W / 2, 1): r rows share it.
    if card.input in PLANAR:
        luma, pairs = nodes.split(bytes_, 1, [height, height // 2], "camera/planes")
        grid = (card.batch, 1, height // 2, 2, width // 2)
        luma = nodes.reshape(luma, (*grid, 2), "camera/luma")
        pairs = nodes.reshape(pairs, (*grid[:3], 1, width // 2, 2), "camera/pairs")
        chroma = nodes.split(pairs, 5, [1, 1], "camera/chroma")
    else:
        grid = (card.batch, 1, height, 1, width // 2)
        fours = nodes.reshape(bytes_, (*grid, 4), "camera/fours")
        parts = nodes.split(fours, 5, [1] * 4, "camera/four")
        lumas, chroma = (parts[::2], parts[1::2])
        if card.input == "uyvy":
            lumas, chroma = chroma, lumas
        luma = nodes.add("Concat", lumas, "camera/luma", axis=5)
    if card.input == "nv21":
        chroma = chroma[::-1]
    terms = []
    for name, values, source in zip("uv", (OF_U, OF_V), chroma, strict=True):
        centered = nodes.whole("Sub", source, 128, f"camera/{name}")
        factors = np.reshape(values, (1, 3, 1, 1, 1, 1))
        terms.append(nodes.whole("Mul", centered, factors, f"camera/of_{name}"))
    color = nodes.add("Add", terms, "camera/color")
    color = nodes.whole("Add", color, 1 << (SHIFT - 1), "camera/rounded")
    luma = nodes.whole("Sub", luma, 16, "camera/luma_from_black")
    luma = nodes.whole("Max", luma, 0, "camera/luma_above_black")
    luma = nodes.whole("Mul", luma, LUMA, "camera/luma_scaled")
    summed = nodes.add("Add", [luma, color], "camera/sum")
    summed = nodes.reshape(summed, (card.batch, 3, height, width), "camera/sum_planes")
    return _shift_right(nodes, summed)


def _shift_right(nodes: _Front, summed: str) -> str:
    floats = nodes.add("Cast", [summed], "camera/sum_float", to=TensorProto.FLOAT)
    scale = nodes.keep("camera/scale", 2.0**-SHIFT, np.float32)
    scaled = nodes.add("Mul", [floats, scale], "camera/scaled")
    return _to_levels(nodes, scaled, "camera/bgr")


def _to_levels(nodes: _Front, values: str, output: str) -> str:
    """Whole numbers 0..255, rounded down."""
    lowest, highest = (
        nodes.keep(f"{output}_{each}", value, np.float32)
        for each, value in (("lowest", 0), ("highest", 255))
    )
    floor = nodes.add("Floor", [values], f"{output}_floor")
    return nodes.add("Clip", [floor, lowest, highest], output)


def _convert_bayer(nodes: _Front, pixels: str, card: Card) -> str:
    """Bilinear, as OpenCV: each missing color is the mean of its two or four neighbors."""
    height, width = card.camera_size or card.size
    mosaic = nodes.reshape(pixels, (card.batch, 1, height, width), "camera/mosaic")
    phases = nodes.add("SpaceToDepth", [mosaic], "camera/phases", blocksize=2)
    weight = nodes.keep("camera/demosaic", _demosaic(card.input.removeprefix("bayer_")), np.float32)
    half = nodes.keep("camera/half", np.full(12, 0.5), np.float32)
    means = nodes.add("Conv", [phases, weight, half], "camera/means", pads=[1, 1, 1, 1])
    means = nodes.add("DepthToSpace", [means], "camera/colors", blocksize=2, mode="CRD")
    means = nodes.add("Floor", [means], "camera/levels")
    # OpenCV gives the outermost pixels the colors of their inner neighbors.
    means = nodes.cut(means, (slice(1, height - 1), slice(1, width - 1)), (height, width), "inside")
    pads = nodes.keep("camera/border", [0, 0, 1, 1, 0, 0, 1, 1])
    return nodes.add("Pad", [means, pads], "camera/bgr", mode="edge")


def _demosaic(pattern: str) -> NDArray[np.float32]:
    """(12, 4, 3, 3): for each color of BGR and each phase of 2 x 2 pixels, the share that pixels of
    each phase have in it, at this place in the grid of phases and the eight around it."""
    weight = np.zeros((3, 4, 4, 3, 3), np.float32)
    for color, letter in enumerate("bgr"):
        for phase in range(4):
            y, x = divmod(phase, 2)
            near = [
                (dy, dx)
                for dy in (-1, 0, 1)
                for dx in (-1, 0, 1)
                if pattern[(y + dy) % 2 * 2 + (x + dx) % 2] == letter
            ]
            # A green pixel has green neighbors at its corners, which do not count: it has its own.
            near = [(0, 0)] if pattern[phase] == letter else near
            for dy, dx in near:
                row, other_y = divmod(y + dy, 2)
                column, other_x = divmod(x + dx, 2)
                weight[color, phase, other_y * 2 + other_x, row + 1, column + 1] = 1 / len(near)
    return weight.reshape(12, 4, 3, 3)


def _fit(nodes: _Front, pixels: str, card: Card) -> str:
    """The camera's picture at the card's size, as `fit_frame` brings it there."""
    camera, size = card.camera_size or card.size, card.size
    if camera == size:
        return nodes.add("Identity", [pixels], PIXELS)
    rows, columns = find_view(camera, size, card.fit)
    pixels = nodes.cut(pixels, (rows, columns), camera, "view")
    place = find_place(camera, size, card.fit)
    inside = tuple(part.stop - part.start for part in place)
    target = nodes.keep("camera/size", (card.batch, 3, *inside))
    pixels = nodes.add(
        "Resize", [pixels, "", "", target], "camera/resized",
        mode="linear", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip
    half = nodes.keep("camera/half_level", 0.5, np.float32)
    pixels = nodes.add("Add", [pixels, half], "camera/resized_half")
    if inside == size:
        return _to_levels(nodes, pixels, PIXELS)
    pixels = _to_levels(nodes, pixels, "camera/fitted")
    before = [part.start for part in place]
    after = [side - part.stop for side, part in zip(size, place, strict=True)]
    rest = nodes.keep("camera/rest", [0, 0, *before, 0, 0, *after])
    return _pad(nodes, pixels, rest, card.pad_color or (0, 0, 0))


def _pad(nodes: _Front, pixels: str, rest: str, color: Color) -> str:
    if len(set(color)) == 1:  # one number is all that a Pad takes
        level = nodes.keep("camera/pad_level", color[0], np.float32)
        return nodes.add("Pad", [pixels, rest, level], PIXELS)
    bgr = nodes.keep("camera/pad_color", np.reshape(color[::-1], (1, 3, 1, 1)), np.float32)
    above = nodes.add("Sub", [pixels, bgr], "camera/above_pad")
    padded = nodes.add("Pad", [above, rest], "camera/padded")
    return nodes.add("Add", [padded, bgr], PIXELS)
