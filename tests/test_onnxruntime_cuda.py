"""ONNX Runtime's CUDA path without a GPU: its sessions and tensors are really on the CPU, and what
it is asked for, what is bound where and what a bad graph would give are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_cuda import PretendedCuda
from rtseg.errors import ArtifactError, MissingPackage, UsageError
from rtseg.models.loading import Model

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from rtseg.export import export  # noqa: E402
from rtseg.runtime import load  # noqa: E402
from rtseg.runtime.backends import cuda as cuda_module  # noqa: E402
from rtseg.runtime.backends import onnxruntime as module  # noqa: E402
from rtseg.runtime.backends.device_arrays import CUDA, SharedArray  # noqa: E402
from rtseg.runtime.backends.onnxruntime import OnnxRuntime  # noqa: E402

SIZE = (64, 128)
FRAMES = np.random.default_rng(0).integers(0, 256, (3, 1, *SIZE, 3), np.uint8)


def _is_strict(options: Any) -> bool:
    try:
        return options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
    except RuntimeError:  # not set
        return False


class World:
    """What goes wrong, and what was asked."""

    def __init__(self) -> None:
        self.loads = True
        self.on_cpu = False  # some nodes, which a strict session refuses
        self.stale = False  # a recorded graph that gives what it gave when it was recorded
        self.asked: list[dict[str, Any]] = []
        self.cuda = PretendedCuda(gpus=2)


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Any:
    (made,) = export(nano, SIZE, "onnx", out=tmp_path_factory.mktemp("onnx"))
    return made.path


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    real_session, real_value = onnxruntime.InferenceSession, onnxruntime.OrtValue

    class Session(real_session):  # type: ignore[misc,valid-type]
        def __init__(self, model: Any, options: Any, providers: list[Any]) -> None:
            asked = providers[0][1] if isinstance(providers[0], tuple) else None
            if asked is not None:
                world.asked.append(asked)
                strict = _is_strict(options)
                # As the real one, which takes a CPU provider that is named for a contradiction.
                assert strict != ("CPUExecutionProvider" in providers)
                if strict and world.on_cpu:
                    raise RuntimeError("This session contains graph nodes that are assigned to CPU")
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "0")
            self.graph, self.runs, self.cuda = (
                bool(asked and "enable_cuda_graph" in asked),
                0,
                asked,
            )
            super().__init__(model, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            cuda = ["CUDAExecutionProvider"] if self.cuda is not None and world.loads else []
            return [*cuda, "CPUExecutionProvider"]

        def run_with_iobinding(self, binding: Any, run_options: Any = None) -> None:
            self.runs += 1
            if not (self.graph and world.stale and self.runs > 3):
                super().run_with_iobinding(binding, run_options)

    class Value:
        @staticmethod
        def ortvalue_from_shape_and_type(shape: Any, kind: Any, device: str, index: int) -> Any:
            assert (device, index) == ("cuda", 1)
            return real_value.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)

    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "OrtValue", Value)
    monkeypatch.setattr(cuda_module, "_bindings", lambda api="runtime": world.cuda)
    return world


@pytest.fixture(scope="module")
def expected(artifact: Any) -> list[Any]:
    with load(artifact, "onnxruntime", "cpu", argmax="graph") as segment:
        return [segment(frame[0]) for frame in FRAMES]


@pytest.mark.parametrize("pinned", [True, False])
def test_buffers_are_made_once_and_give_the_cpus_labels(
    world: World, artifact: Any, expected: list[Any], pinned: bool, monkeypatch: Any
) -> None:
    if not pinned:

        def absent(api: str = "runtime") -> Any:
            raise MissingPackage(api)

        monkeypatch.setattr(cuda_module, "_bindings", absent)
    backend = OnnxRuntime(artifact, "cuda:1")
    addresses = {name: value.data_ptr() for name, value in backend._values.items()}
    assert addresses.keys() == {"frame", "labels"}
    allocations, places = world.cuda.allocations, set()
    for frame, labels in zip(FRAMES, expected, strict=True):
        found = backend(frame)
        np.testing.assert_array_equal(found[0], labels)
        places.add(found.ctypes.data)
    assert {name: value.data_ptr() for name, value in backend._values.items()} == addresses
    assert world.cuda.allocations == allocations
    assert not pinned or len(places) == 1  # one pinned array for all frames
    assert world.asked == [{"device_id": 1}]
    backend.close()
    del found
    assert world.cuda.alive == 0


def test_options_go_to_the_provider_and_into_the_info(
    world: World, artifact: Any, expected: list[Any]
) -> None:
    backend = OnnxRuntime(artifact, "cuda:1", cuda_graph=True, prefer_nhwc=True)
    assert world.asked == [{"device_id": 1, "enable_cuda_graph": "1", "prefer_nhwc": "1"}]
    options = dict(backend.info.options)
    assert (options["cuda_graph"], options["prefer_nhwc"]) == ("on", "on")
    assert "cpu_fallback" not in options
    np.testing.assert_array_equal(backend(FRAMES[1])[0], expected[1])
    backend.close()


def test_a_graph_that_gives_old_output_is_not_used(
    world: World, artifact: Any, expected: list[Any]
) -> None:
    world.stale = True
    backend = OnnxRuntime(artifact, "cuda:1", cuda_graph=True)
    assert dict(backend.info.options)["cuda_graph"] == "off: it gave other results"
    assert "enable_cuda_graph" not in world.asked[-1]
    for frame, labels in zip(FRAMES, expected, strict=True):
        np.testing.assert_array_equal(backend(frame)[0], labels)
    backend.close()


def test_nodes_that_fall_back_to_the_cpu_are_told(world: World, artifact: Any) -> None:
    world.on_cpu = True
    backend = OnnxRuntime(artifact, "cuda:1")
    assert "assigned to CPU" in dict(backend.info.options)["cpu_fallback"]
    backend.close()


def test_a_provider_that_does_not_load_is_an_error(world: World, artifact: Any) -> None:
    world.loads = False
    with pytest.raises(ArtifactError, match="could not start CUDA"):
        OnnxRuntime(artifact, "cuda:1")


def test_options_of_cuda_are_refused_on_a_cpu(artifact: Any) -> None:
    for option in ({"cuda_graph": True}, {"prefer_nhwc": True}):
        with pytest.raises(ArtifactError, match="options of CUDA"):
            load(artifact, "onnxruntime", "cpu", **option)
    assert module.NUMPY_TYPES["tensor(uint8)"] is np.uint8


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_frame_on_the_gpu_is_copied_into_the_bound_input(
    world: World, artifact: Any, expected: list[Any], cuda_graph: bool
) -> None:
    backend = OnnxRuntime(artifact, "cuda:1", cuda_graph=cuda_graph)
    frame = FRAMES[2]
    shared = SharedArray(frame.ctypes.data, frame.shape, np.uint8, (CUDA, 1))
    place = backend._values["labels"].data_ptr()
    labels: Any = backend.label_on_device(shared)
    facts = labels.__cuda_array_interface__
    assert (facts["shape"], facts["data"][0]) == ((1, *SIZE), place)
    assert labels.__dlpack_device__() == (CUDA, 1)
    np.testing.assert_array_equal(backend._fetch("labels")[0], expected[2])
    with pytest.raises(UsageError, match="on cuda:0 and the network on cuda:1"):
        backend.label_on_device(SharedArray(frame.ctypes.data, frame.shape, np.uint8, (CUDA, 0)))
    backend.close()


def test_a_frame_on_the_gpu_needs_the_bindings(
    world: World, artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(api: str = "runtime") -> Any:
        raise MissingPackage(api)

    monkeypatch.setattr(cuda_module, "_bindings", absent)
    backend = OnnxRuntime(artifact, "cuda:1")
    with pytest.raises(MissingPackage, match="cuda-bindings"):
        backend.label_on_device(FRAMES[0])
