"""Frames that are on the device already: what is taken, what is given, who waits for whom."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import CLASSES, SIZE, World, picture, pretend, write_engine
from numpy.typing import NDArray
from rtseg.data.camera_formats import from_bgr
from rtseg.data.letterbox import restore_labels
from rtseg.data.scenes import scene
from rtseg.errors import MissingPackage, UsageError
from rtseg.models.loading import Model
from rtseg.runtime import Segmenter, load
from rtseg.runtime.backends import device_arrays as module
from rtseg.runtime.backends.device_arrays import CPU, CUDA, SharedArray
from rtseg.runtime.backends.tensorrt import TensorRT

PRODUCER = 7  # another library's stream
SHAPE = (1, *SIZE, 3)


class OnGpu:
    """Another library's array in the pretended GPU's memory, with DLPack or the older interface."""

    def __init__(self, world: World, image: NDArray[Any], index: int = 0, **facts: Any):
        self.world, self.image = world, np.ascontiguousarray(image)
        _, self.address = world.cuda.cudaMalloc(image.nbytes)
        ctypes.memmove(self.address, self.image.ctypes.data, image.nbytes)
        self.shared = SharedArray(self.address, image.shape, image.dtype, (CUDA, index))
        self.interface = {
            "shape": image.shape,
            "typestr": image.dtype.str,
            "data": (self.address, False),
            "version": 3,
        } | facts
        self.asked: list[Any] = []

    def dlpack(self) -> Any:
        asked, shared = self.asked, self.shared

        class Array:
            def __dlpack_device__(self) -> tuple[int, int]:
                return shared.__dlpack_device__()

            def __dlpack__(self, *, stream: int) -> object:
                asked.append(stream)
                return shared.__dlpack__(stream=stream)

        return Array()

    def older(self) -> Any:
        return SimpleNamespace(__cuda_array_interface__=self.interface)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> World:
    return pretend(monkeypatch, tmp_path)


@pytest.fixture
def engine(world: World, tmp_path: Any) -> Iterator[Segmenter]:
    with Segmenter(TensorRT(write_engine(tmp_path))) as segment:
        yield segment


def read(world: World, labels: Any) -> NDArray[np.uint8]:
    """What lies at the address that the labels give."""
    facts = labels.__cuda_array_interface__
    size = int(np.prod(facts["shape"]))
    memory = (ctypes.c_uint8 * size).from_address(facts["data"][0])
    return np.frombuffer(memory, np.uint8).reshape(facts["shape"]).copy()


@pytest.mark.parametrize("way", ["dlpack", "older"])
@pytest.mark.parametrize("several", [True, False])
def test_an_engine_takes_a_frame_on_the_gpu(
    world: World, engine: Segmenter, way: str, several: bool
) -> None:
    image = picture(3) if several else picture(3)[0]
    labels: Any = engine.on_device(getattr(OnGpu(world, image), way)())
    assert labels.__dlpack_device__() == (CUDA, 0)
    np.testing.assert_array_equal(read(world, labels), image[..., 0] % CLASSES)


def test_dlpack_is_asked_for_the_engines_own_stream(world: World, engine: Segmenter) -> None:
    frame, backend = OnGpu(world, picture(1)), engine.backend
    assert isinstance(backend, TensorRT)
    engine.on_device(frame.dlpack())
    assert frame.asked == [backend._stream]
    assert not module._given, "the producer has its memory back"


def test_the_interfaces_stream_is_waited_for(world: World, engine: Segmenter) -> None:
    backend = engine.backend
    assert isinstance(backend, TensorRT)
    engine.on_device(OnGpu(world, picture(1)).older())
    assert not world.cuda.waits  # finished already, says an array without a stream
    world.cuda.used_streams.clear()
    engine.on_device(OnGpu(world, picture(1), stream=PRODUCER).older())
    ((waiting, event),) = world.cuda.waits
    assert (waiting, world.cuda.used_streams[0]) == (backend._stream, PRODUCER)
    assert event in world.cuda.destroyed


def test_wrong_frames_are_refused_in_one_line(world: World, engine: Segmenter) -> None:
    image = picture(1)
    steps = (3 * SIZE[1] * SIZE[0], 3 * SIZE[1], 3, 1)
    wrong = {
        "the network on cuda:0": OnGpu(world, image, index=1).dlpack(),
        r"not uint8 \(1, 4, 4, 3\): resize": OnGpu(world, image[:, :4, :4]).dlpack(),
        "not float32": OnGpu(world, image.astype(np.float32)).dlpack(),
        "has strides": OnGpu(world, image, strides=(steps[0] * 2, 6 * SIZE[1], 3, 1)).older(),
        "in host memory": SimpleNamespace(
            __cuda_array_interface__={
                "shape": SHAPE, "typestr": "|u1", "data": (image.ctypes.data, False),
            }
        ),
        "the frame is on cpu": image,
        "list has neither": [1, 2],
    }  # fmt: skip
    for message, frame in wrong.items():
        with pytest.raises(UsageError, match=message) as caught:
            engine.on_device(frame)
        assert "\n" not in str(caught.value)
    # Contiguous strides are as good as none.
    engine.on_device(OnGpu(world, image, strides=steps).older())


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_what_is_given_is_read_by_others_through_dlpack(dtype: Any) -> None:
    image = np.arange(24).reshape(2, 3, 4).astype(dtype)
    finished: list[bool] = []
    shared = SharedArray(
        image.ctypes.data, image.shape, dtype, (CPU, 0), lambda: finished.append(True)
    )
    taken = np.from_dlpack(shared)
    assert (taken.dtype, taken.ctypes.data, finished) == (image.dtype, image.ctypes.data, [True])
    np.testing.assert_array_equal(taken, image)
    if torch := sys.modules.get("torch"):  # which asks in newer words than NumPy
        np.testing.assert_array_equal(torch.from_dlpack(shared).numpy(), image)
    first = np.from_dlpack(shared.first())
    np.testing.assert_array_equal(first, image[0])
    assert len(module._given) == 2
    del taken, first
    assert not module._given, "takers call the deleter"
    capsule = shared.__dlpack__()
    assert len(module._given) == 1
    del capsule
    assert not module._given, "a capsule that nobody took"


@pytest.fixture(scope="module")
def artifacts(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from rtseg.export import export

    out = tmp_path_factory.mktemp("on-device")
    made = export(nano, (64, 128), ["onnx", "torch"], out=out)
    return {"onnxruntime": made[0].path, "openvino": made[0].path, "torch": made[1].path}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_a_cpu_takes_anybodys_array_without_a_copy(
    artifacts: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    if backend == "openvino":
        pytest.importorskip("openvino")
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    tensor = torch.from_numpy(image.copy())
    with load(artifacts[backend], backend, "cpu") as segment:
        expected = segment(image)
        given: list[int] = []
        upload = segment.backend.upload

        def spy(frame: Any) -> None:
            given.append(frame.ctypes.data)
            upload(frame)

        monkeypatch.setattr(segment.backend, "upload", spy)
        labels = segment.on_device(tensor)
        assert isinstance(labels, np.ndarray)
        np.testing.assert_array_equal(labels, expected)
        assert segment.on_device(tensor[None]).shape == (1, 64, 128)  # type: ignore[attr-defined]
        assert given == [tensor.data_ptr()] * 2
        for wrong, message in (
            (tensor.float(), "not float32"),
            (tensor[:32], r"not uint8 \(32, 128, 3\)"),
            (torch.zeros(3, 64, 128, dtype=torch.uint8).permute(1, 2, 0), "has strides"),
            (SharedArray(1, (64, 128, 3), np.uint8, (CUDA, 1)), "on cuda:1 and the network on the"),
            ("picture", "str has not"),
        ):
            with pytest.raises(UsageError, match=message):
                segment.on_device(wrong)


def test_pytorchs_way_on_a_gpu(artifacts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the buffer that its graph reads; here that lies on the CPU."""
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    with load(artifacts["torch"], "torch", "cpu", argmax="graph") as segment:
        expected = segment(image)
        backend: Any = segment.backend
        backend.frame = buffer = torch.zeros(1, 64, 128, 3, dtype=torch.uint8)
        monkeypatch.setattr(backend, "device", SimpleNamespace(type="cuda"))
        monkeypatch.setattr(backend, "synchronize", lambda: None)
        labels: Any = segment.on_device(torch.from_numpy(image.copy()))
        np.testing.assert_array_equal(labels.numpy(), expected)
        assert backend.frame is buffer
        with pytest.raises(UsageError, match="on cuda:1 and the network on cpu"):
            segment.on_device(SharedArray(1, (64, 128, 3), np.uint8, (CUDA, 1)))
        with pytest.raises(UsageError, match="not int32"):
            segment.on_device(torch.zeros(64, 128, 3, dtype=torch.int32))


# Cameras of 1080p and 4K, whose aspect is another than the network's; one that is cut; one of the
# network's size; one that is reduced.
RESTORED = [(1080, 1920), (2160, 3840), (1200, 1200), (200, 1500), (64, 128), (37, 83)]


@pytest.mark.parametrize("fit", ["letterbox", "letterbox_center", "crop", "stretch"])
@pytest.mark.parametrize("size", RESTORED)
def test_labels_come_back_on_the_device_as_they_do_on_the_host(
    size: tuple[int, int], fit: Any
) -> None:
    pytest.importorskip("torch")
    from rtseg.runtime.letterbox_torch import restore_on_device

    maps = np.random.default_rng(1).integers(0, CLASSES, (2, 64, 128), np.uint8)
    expected = [restore_labels(each, size, fit) for each in maps]
    shared = SharedArray(maps.ctypes.data, maps.shape, np.uint8, (CPU, 0))
    np.testing.assert_array_equal(restore_on_device(shared, size, fit).numpy(), expected)
    np.testing.assert_array_equal(restore_on_device(shared.first(), size, fit).numpy(), expected[0])


@pytest.mark.parametrize("kind", ["bgr", "nv12", "yuyv", "bayer_rggb"])
def test_labels_of_a_cameras_frame_have_its_size_on_the_device(
    kind: Any, nano: Model, tmp_path: Any
) -> None:
    """As a call gives them, on a CPU and of what a GPU would give."""
    pytest.importorskip("onnxruntime")
    from rtseg.export import export

    camera = (108, 192)
    (made,) = export(nano, (64, 128), "onnx", input=kind, camera_size=camera, out=tmp_path)
    frame = np.ascontiguousarray(from_bgr(scene(camera, 3), kind))
    with load(made.path, "onnxruntime", "cpu") as segment:
        expected = segment(frame)
        np.testing.assert_array_equal(segment.on_device(frame, size=camera), expected)
        several: Any = segment.on_device(frame[None], size=camera)
        np.testing.assert_array_equal(several[0], expected)
        inner: Any = segment.on_device(frame)
        assert inner.shape == (64, 128)
        with pytest.raises(UsageError, match="of 1 or more"):
            segment.on_device(frame, size=(0, 10))


def test_an_engines_labels_come_back_by_pytorch(
    world: World, engine: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    image = picture(3)[0]
    give = engine.backend.label_on_device

    def near(frame: object) -> SharedArray:
        """The pretended GPU's memory is the host's, and DLPack says so."""
        labels: Any = give(frame)
        facts = labels.__cuda_array_interface__
        return SharedArray(facts["data"][0], facts["shape"], np.uint8, (CPU, 0))

    monkeypatch.setattr(engine.backend, "label_on_device", near)
    labels: Any = engine.on_device(OnGpu(world, image).dlpack(), size=(40, 70))
    expected = restore_labels(image[..., 0] % CLASSES, (40, 70), engine.card.fit)
    np.testing.assert_array_equal(labels.numpy(), expected)
    monkeypatch.setattr("rtseg.runtime.segmenter.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="resized on the GPU by PyTorch"):
        engine.on_device(OnGpu(world, image).dlpack(), size=(40, 70))
