"""Does the installed TensorRT compute GridSample and Resize as the exporter expects?

Some versions of TensorRT were silently wrong on both, so each version is tested on each GPU before
it is trusted, and the result is cached. The small test network is built with TensorRT's own API, so
that a vehicle needs no ONNX package.
"""

from __future__ import annotations

from dataclasses import asdict
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ArtifactError
from ..packages import cache_folder, last_line, members, slug
from ..records import read_record, write_record
from ..verify import EngineHost
from .cuda import Cuda
from .tensorrt_engine import Plan

Map = NDArray[np.float32]  # (1, C, h, w)
IMAGE, GRID, LARGE = (1, 2, 9, 11), (1, 6, 8, 2), (1, 2, 18, 22)
TOLERANCE = 5e-3  # values are within 1; half precision is off by 5e-4, another convention by 0.1


def self_test(trt: ModuleType, log: object, cuda: Cuda, host: EngineHost) -> None:
    """Raises ArtifactError if this TensorRT gives wrong values on this GPU; a pass is kept."""
    if not hasattr(trt, "Builder"):  # the lean runtime; the engine's own proof has to do
        return
    record = cache_folder() / f"self-test-{slug(' '.join(asdict(host).values()))}.json"
    if read_record(record, passed=True, **asdict(host)):
        return
    errors = measure(trt, log, cuda)
    wrong = [f"{name} by {error:.2g}" for name, error in errors.items() if not error <= TOLERANCE]
    if wrong:
        raise ArtifactError(
            f"{host.tensorrt} is wrong on {host.gpu} ({', '.join(wrong)}): install another "
            "version of it, or use the ONNX artifact"
        )
    write_record(record, {"passed": True, "errors": errors, **asdict(host)})


def measure(trt: ModuleType, log: object, cuda: Cuda) -> dict[str, float]:
    """Largest error of each output of the test network, run on the GPU."""
    image, grid = inputs()
    plan = Plan(trt, log, build(trt, log, here=True), cuda)
    stream = cuda.create_stream()
    try:
        for name, values in (("image", image), ("grid", grid)):
            cuda.to_device(plan.tensors[name].address, values, stream)
        plan.enqueue(stream)
        errors = {}
        for name, expected in answers(image, grid).items():
            found = np.empty(expected.shape, np.float32)
            cuda.to_host(found, plan.tensors[name].address, stream)
            cuda.synchronize(stream)
            errors[name] = float(np.abs(found - expected).max())
        return errors
    finally:
        plan.close()
        cuda.destroy_stream(stream)


def inputs() -> tuple[Map, Map]:
    """image (1, 2, 9, 11) and grid (1, 6, 8, 2), in places outside of the image."""
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, IMAGE).astype(np.float32)
    # Beyond -1..1, where conventions for the border differ.
    return image, random.uniform(-1.2, 1.2, GRID).astype(np.float32)


def build(trt: ModuleType, log: Any, here: bool = False) -> bytes:
    """The test network as an engine: a float32 GridSample between half-precision layers, as fp16
    engines have it, one in float32 alone, and Resize by either rule. here: for this GPU only."""
    builder = trt.Builder(log)
    typed = members(trt.NetworkDefinitionCreationFlag).get("STRONGLY_TYPED")
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    image = network.add_input("image", trt.DataType.FLOAT, IMAGE)
    grid = network.add_input("grid", trt.DataType.FLOAT, GRID)
    half = _cast(trt, network, image, "HALF")
    island = _sample(trt, network, _cast(trt, network, half, "FLOAT"), grid, corners=True)
    outputs = {
        "grid_sample_in_half": _cast(trt, network, _cast(trt, network, island, "HALF"), "FLOAT"),
        "grid_sample": _sample(trt, network, image, grid, corners=False),
        "resize_in_half": _cast(trt, network, _resize(trt, network, half, "HALF_PIXEL"), "FLOAT"),
        "resize_corners": _resize(trt, network, image, "ALIGN_CORNERS"),
    }
    for name, tensor in outputs.items():
        tensor.name = name
        network.mark_output(tensor)
    config = builder.create_builder_config()
    capabilities = getattr(trt, "ComputeCapability", None)
    if here and capabilities is not None and "CURRENT" in members(capabilities):
        # By default TensorRT-RTX builds for 8.0 and later, and a 7.5 refuses that.
        config.num_compute_capabilities = 1
        config.set_compute_capability(members(capabilities)["CURRENT"], 0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(f"{trt.__name__} builds no test engine ({last_line(log.errors)})")
    return bytes(plan)


def _cast(trt: ModuleType, network: Any, tensor: object, to: str) -> object:
    return network.add_cast(tensor, getattr(trt.DataType, to)).get_output(0)


def _sample(trt: ModuleType, network: Any, image: object, grid: object, corners: bool) -> object:
    layer = network.add_grid_sample(image, grid)
    layer.interpolation_mode = trt.InterpolationMode.LINEAR
    layer.sample_mode = trt.SampleMode.FILL
    layer.align_corners = corners
    return layer.get_output(0)


def _resize(trt: ModuleType, network: Any, image: object, rule: str) -> Any:
    layer = network.add_resize(image)
    layer.resize_mode = trt.InterpolationMode.LINEAR
    layer.coordinate_transformation = getattr(trt.ResizeCoordinateTransformation, rule)
    layer.shape = LARGE
    return layer.get_output(0)


def answers(image: Map, grid: Map) -> dict[str, Map]:
    """What each output must be, in float32 NumPy."""
    return {
        "grid_sample_in_half": grid_sample(image, grid, corners=True),
        "grid_sample": grid_sample(image, grid, corners=False),
        "resize_in_half": resize(image, LARGE, corners=False),
        "resize_corners": resize(image, LARGE, corners=True),
    }


def grid_sample(image: Map, grid: Map, corners: bool) -> Map:
    """Bilinear, zero outside. image (1, C, H, W), grid (1, h, w, 2) in x, y -> (1, C, h, w)."""
    height, width = image.shape[2:]
    # What lies outside is zero, and one pixel of it is enough: positions are clipped to that.
    padded = np.pad(image[0], ((0, 0), (1, 1), (1, 1)))

    def position(values: Map, length: int) -> Map:
        scale = (length - 1) / 2 if corners else length / 2
        at = (values + 1) * scale - (0 if corners else 0.5)
        return np.asarray(np.clip(at, -1, length) + 1, np.float32)

    x, y = position(grid[0, :, :, 0], width), position(grid[0, :, :, 1], height)
    return _bilinear(padded, y, x)[None]


def resize(image: Map, shape: tuple[int, ...], corners: bool) -> Map:
    """Bilinear, the border repeated. image (1, C, H, W) -> `shape`."""

    def position(length: int, large: int) -> Map:
        step = (length - 1) / (large - 1) if corners else length / large
        shift = 0 if corners else (step - 1) / 2  # pixels lie at their centers
        at = np.arange(large) * step + shift
        return np.asarray(np.clip(at, 0, length - 1), np.float32)

    y, x = position(image.shape[2], shape[2]), position(image.shape[3], shape[3])
    rows, columns = np.meshgrid(y, x, indexing="ij")
    return _bilinear(image[0], rows, columns)[None]


def _bilinear(image: Map, y: Map, x: Map) -> Map:
    """image (C, H, W) read at positions y, x (h, w) in pixels, all inside -> (C, h, w)."""
    top = np.minimum(y.astype(int), image.shape[1] - 2)
    left = np.minimum(x.astype(int), image.shape[2] - 2)
    down, right = y - top, x - left
    upper = image[:, top, left] * (1 - right) + image[:, top, left + 1] * right
    lower = image[:, top + 1, left] * (1 - right) + image[:, top + 1, left + 1] * right
    return np.ascontiguousarray(upper * (1 - down) + lower * down, np.float32)
