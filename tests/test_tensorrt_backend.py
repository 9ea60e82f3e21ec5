"""The TensorRT backend's own logic, on a pretended GPU: buffers, graphs, proof, errors, freeing.

What TensorRT computes is tested where there is a GPU.
"""

import gc
import json
import weakref
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from fake_cuda import (
    CLASSES,
    GPU,
    MACHINE,
    SIZE,
    Jit,
    PretendedCuda,
    picture,
    pretend,
    write_engine,
)
from rtseg.errors import ArtifactError, MissingPackage
from rtseg.gpu import Gpu
from rtseg.runtime import records
from rtseg.runtime import verify as first_load
from rtseg.runtime.artifact import read_card, sidecar
from rtseg.runtime.backends import cuda as cuda_module
from rtseg.runtime.backends import tensorrt as module
from rtseg.runtime.backends import tensorrt_engine as plan
from rtseg.runtime.backends import tensorrt_self_test as self_test
from rtseg.runtime.backends.cuda import Cuda, CudaError, stream_handle
from rtseg.runtime.backends.tensorrt import TensorRT
from rtseg.runtime.packages import Package
from rtseg.runtime.preflight import Machine


@pytest.fixture
def world(monkeypatch, tmp_path):
    return pretend(monkeypatch, tmp_path)


@pytest.fixture
def engine(tmp_path):
    return write_engine(tmp_path)


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_labels_come_back_with_and_without_a_graph(world, engine, cuda_graph):
    backend = TensorRT(engine, cuda_graph=cuda_graph)
    before = world.cuda.launches
    for seed in range(3):
        np.testing.assert_array_equal(backend(picture(seed)), picture(seed)[..., 0] % CLASSES)
    assert world.cuda.launches - before == (3 if cuda_graph else 0)
    options = dict(backend.info.options)
    assert options["cuda_graph"] == ("on" if cuda_graph else "off")
    assert (backend.info.name, backend.info.device) == ("tensorrt", "Pretended GPU")
    backend.close()


def test_nothing_is_allocated_per_frame(world, engine):
    backend = TensorRT(engine)
    before, alive = world.cuda.allocations, world.cuda.alive
    for seed in range(20):
        backend(picture(seed))
    assert (world.cuda.allocations, world.cuda.alive) == (before, alive)
    backend.close()


def test_closing_frees_everything(world, engine):
    backend = TensorRT(engine)
    labels = backend(picture(0))
    assert world.cuda.alive >= 5
    backend.close()
    backend.close()
    np.testing.assert_array_equal(labels, picture(0)[..., 0] % CLASSES)  # the caller's view lives
    del labels
    assert world.cuda.alive == 0
    for call in (lambda: backend(picture(0)), backend.compute, backend.download):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_a_backend_that_is_dropped_frees_everything(world, engine):
    backend = TensorRT(engine)
    del backend
    assert world.cuda.alive == 0


def test_the_callers_stream_is_used_and_left_alone(world, engine):
    stream = SimpleNamespace(__cuda_stream__=lambda: (0, 7))
    backend = TensorRT(engine, stream=stream)
    world.cuda.used_streams.clear()
    backend(picture(0))
    assert set(world.cuda.used_streams) == {7}
    backend.close()  # destroying stream 7 would fail: it is not one of the runtime's
    assert world.cuda.alive == 0


def test_streams_of_other_libraries():
    assert stream_handle(5) == 5
    assert stream_handle(SimpleNamespace(__cuda_stream__=(0, 6))) == 6
    assert stream_handle(SimpleNamespace(cuda_stream=8)) == 8
    assert stream_handle(SimpleNamespace(handle=9)) == 9
    with pytest.raises(ValueError, match="a stream is a handle"):
        stream_handle("default")


def test_images_of_another_shape_or_type_are_refused(world, engine):
    backend = TensorRT(engine)
    with pytest.raises(ValueError, match=r"takes uint8 of shape \(1, 16, 32, 3\)"):
        backend(picture(0)[:, :8])
    with pytest.raises(ValueError, match="not float32"):
        backend(picture(0).astype(np.float32))
    backend.close()


def test_runs_are_timed_by_the_gpus_own_clock(world, engine):
    backend = TensorRT(engine)
    world.cuda.used_streams.clear()
    assert backend.time_on_device(runs=3) == [1.0, 1.0, 1.0]
    assert set(world.cuda.used_streams) == {backend._stream}
    assert world.cuda.destroyed == {1, 2}
    backend.close()


def test_a_frame_goes_up_in_stripes(world, engine, monkeypatch):
    """Each is copied into pinned memory while the last is on its way."""
    monkeypatch.setattr(cuda_module, "STRIPE", 100)
    backend = TensorRT(engine)
    copies = []
    copy = world.cuda.cudaMemcpyAsync
    world.cuda.cudaMemcpyAsync = lambda *facts: copies.append(facts[2]) or copy(*facts)
    for seed in range(2):
        backend.upload(picture(seed))
        assert (max(copies), sum(copies), len(copies)) == (100, picture(0).nbytes, 16)
        np.testing.assert_array_equal(backend.frame, picture(seed))
        backend.compute()
        np.testing.assert_array_equal(backend.download(), picture(seed)[..., 0] % CLASSES)
        copies.clear()
    backend.close()


def test_an_image_written_into_the_frame_is_not_copied_first(world, engine):
    backend = TensorRT(engine)
    backend.frame[:] = picture(3)
    np.testing.assert_array_equal(backend(backend.frame), picture(3)[..., 0] % CLASSES)
    backend.close()


def test_frames_and_labels_on_the_gpu(world, engine):
    backend = TensorRT(engine)
    image = picture(5)
    facts = {"shape": image.shape, "typestr": "|u1", "data": (image.ctypes.data, False)}
    frame = SimpleNamespace(__cuda_array_interface__=facts)
    np.testing.assert_array_equal(backend.infer_device(frame), image[..., 0] % CLASSES)
    found = backend.on_device().__cuda_array_interface__
    assert (found["shape"], found["typestr"]) == ((1, *SIZE), "|u1")
    for wrong in ({"shape": (1, 2, 3, 3)}, {"typestr": "<f4"}, {"strides": (1, 1, 1, 1)}):
        with pytest.raises(ValueError, match="contiguous uint8"):
            backend.upload_device(SimpleNamespace(__cuda_array_interface__=facts | wrong))
    with pytest.raises(ValueError, match="__cuda_array_interface__"):
        backend.upload_device(image)
    backend.close()


@pytest.mark.parametrize("switch", [{"capturable": False}, {"capture_fails": True}])
def test_without_a_graph_it_runs_all_the_same(world, engine, switch):
    vars(world).update(switch)
    backend = TensorRT(engine)
    assert dict(backend.info.options)["cuda_graph"].startswith("off: ")
    np.testing.assert_array_equal(backend(picture(1)), picture(1)[..., 0] % CLASSES)
    backend.close()
    assert world.cuda.alive == 0


def test_logits_where_the_artifact_gives_them(world, tmp_path):
    backend = TensorRT(write_engine(tmp_path, ("labels", "logits")))
    labels = backend(picture(2)).copy()
    np.testing.assert_array_equal(backend.logits().argmax(1), labels)
    backend.close()
    backend = TensorRT(write_engine(tmp_path, ("logits",)))
    with pytest.raises(ArtifactError, match="no labels, only logits"):
        backend(picture(2))
    backend.close()


def test_an_engine_is_proven_at_first_load_and_not_again(world, engine):
    TensorRT(engine).close()
    record = json.loads(first_load.record_path(engine).read_text())
    assert (record["passed"], record["gpu"], record["driver"]) == (True, GPU.name, GPU.driver)
    assert record["tensorrt"] == "tensorrt_rtx 1.7.1.116"
    first, world.cuda.launches = world.cuda.launches, 0
    TensorRT(engine).close()
    assert (first, world.cuda.launches) == (1, 0)


@pytest.mark.parametrize("change", ["record", "key", "engine", "reference", "version", "card"])
def test_a_proof_holds_for_its_own_record_and_files_alone(world, engine, change, monkeypatch):
    """Whatever was forged, or is not what was proven, the engine is proven anew."""
    TensorRT(engine).close()
    path = first_load.record_path(engine)
    if change == "record":
        path.unlink()
        world.shift = 1
        with pytest.raises(ArtifactError, match="is wrong"):
            TensorRT(engine)  # a failed proof leaves a record too
        path.write_text(path.read_text().replace('"passed": false', '"passed": true'))
    elif change == "key":  # a record that another user's cache sealed
        records.key_path().write_bytes(bytes(32))
    elif change == "engine":
        engine.write_bytes(engine.read_bytes() + b" ")
        with pytest.raises(ArtifactError, match="has been changed or damaged"):
            TensorRT(engine)
        return
    elif change == "reference":
        reference = first_load.Reference.load(first_load.reference_path(engine))
        replace(reference, names=("other",)).save(first_load.reference_path(engine))
        world.shift = 1
        with pytest.raises(ArtifactError, match="not the one that was exported"):
            TensorRT(engine)
        return
    elif change == "version":
        monkeypatch.setattr(first_load, "__version__", "9.9.9")
    else:
        card = read_card(engine).model_copy(update={"weights_from": "elsewhere"})
        sidecar(engine).write_text(card.to_json())
    world.shift = 1
    with pytest.raises(ArtifactError, match="is wrong on Pretended GPU"):
        TensorRT(engine)


def test_another_driver_asks_for_another_proof(world, engine, monkeypatch):
    TensorRT(engine).close()
    world.shift = 1
    TensorRT(engine).close()  # trusted: nothing changed that the record knows of
    other = Gpu(0, GPU.name, "8.9", "581.10", None)
    monkeypatch.setattr(module, "gpus", lambda: [other])
    with pytest.raises(ArtifactError, match="is wrong on Pretended GPU"):
        TensorRT(engine)


def test_a_wrong_engine_is_not_served(world, engine):
    world.shift = 1
    with pytest.raises(ArtifactError, match=r"labels agree on 0.000% of pixels.*not served"):
        TensorRT(engine)
    record = json.loads(first_load.record_path(engine).read_text())
    assert record["passed"] is False
    assert record["frames"][0]["agreement"] == 0
    assert world.cuda.alive == 0
    with pytest.raises(ArtifactError, match="not served"):  # a record of failure opens no door
        TensorRT(engine)
    TensorRT(engine, prove=False).close()


def test_a_folder_that_cannot_be_written_is_no_obstacle(world, engine, monkeypatch):
    def read_only(path, content, **options):
        raise PermissionError(path)

    monkeypatch.setattr(records, "write_atomically", read_only)
    TensorRT(engine).close()
    assert not first_load.record_path(engine).exists()


def test_without_its_reference_an_engine_is_not_served(world, tmp_path):
    engine = write_engine(tmp_path, reference=False)
    with pytest.raises(ArtifactError, match="carries no reference"):
        TensorRT(engine)
    engine = write_engine(tmp_path)
    first_load.reference_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"reference\.npz is missing or damaged"):
        TensorRT(engine)
    write_engine(tmp_path, margins=254)
    other = first_load.reference_path(engine).read_bytes()
    engine = write_engine(tmp_path)
    first_load.reference_path(engine).write_bytes(other)
    with pytest.raises(ArtifactError, match="not the one that was exported"):
        TensorRT(engine)


def test_without_a_gpu_the_error_says_what_would_run(world, engine, monkeypatch):
    engine.with_suffix(".onnx").touch()
    alone = Machine("linux-x86_64", (), MACHINE.tensorrt, MACHINE.modules)
    monkeypatch.setattr(module, "this_machine", lambda: alone)
    with pytest.raises(ArtifactError, match=r"needs an NVIDIA GPU.*net\.onnx"):
        TensorRT(engine)


@pytest.mark.parametrize(
    ("device", "message"),
    [("cpu", "ONNX or OpenVINO"), ("gpu", '"cuda" or "cuda:N"'), ("cuda:3", "no cuda:3")],
)
def test_devices_that_will_not_do(world, engine, device, message):
    with pytest.raises(ArtifactError, match=message):
        TensorRT(engine, device)
    assert world.cuda.alive == 0


def test_tensorrts_own_reasons_are_told(world, engine):
    world.bits = 3
    with pytest.raises(ArtifactError, match="version mismatch, unsupported cc"):
        TensorRT(engine)
    assert world.cuda.alive == 0


def test_a_reason_that_preflight_knows_comes_with_its_command(world, engine, monkeypatch):
    world.bits = 1
    newer = Machine(
        "linux-x86_64",
        (GPU,),
        (Package("tensorrt_rtx", "1.8.0.1", 13),),
        MACHINE.modules,
    )
    monkeypatch.setattr(module, "this_machine", lambda: newer)
    with pytest.raises(ArtifactError, match=r"pip install tensorrt-rtx-cu13==1\.7\.1\.116"):
        TensorRT(engine)


@pytest.mark.parametrize(
    "tensors",
    [
        {"frame": (1, *SIZE, 3)},
        {"frame": (1, 8, 8, 3), "labels": (1, 8, 8)},
        {"frame": (1, *SIZE, 3), "labels": (1, *SIZE)},
        {"frame": (-1, *SIZE, 3), "labels": (1, *SIZE)},
    ],
)
def test_an_engine_of_another_card(world, tmp_path, tensors):
    outputs = ("labels", "logits")
    with pytest.raises(ArtifactError, match=r"not the engine of its card|no fixed shape"):
        TensorRT(write_engine(tmp_path, outputs, tensors=tensors))
    assert world.cuda.alive == 0


def test_kernels_compiled_at_first_start_are_kept(world, engine):
    world.jit = Jit()
    backend = TensorRT(engine)
    assert dict(backend.info.options)["jit_cache"] == "written"
    (kept,) = engine.parent.glob("net.engine.*.jit")
    assert kept.name == "net.engine.Pretended-GPU-580.65.06.jit"
    backend.close()
    world.jit = Jit()
    backend = TensorRT(engine)
    assert dict(backend.info.options)["jit_cache"] == "read"
    backend.close()
    foreign = [b"of another machine", b"", bytes(40), kept.read_bytes()[:-1] + b"!"]
    for content in foreign:  # kernels are code: what this user's cache did not seal is not loaded
        kept.write_bytes(content)
        world.jit = Jit()
        backend = TensorRT(engine)
        assert dict(backend.info.options)["jit_cache"] == "written"
        assert records.unseal(kept.read_bytes()) == b"kernels"
        backend.close()


def test_kernels_go_to_the_users_cache_where_the_folder_is_read_only(
    world, engine, monkeypatch, tmp_path
):
    write = plan.write_atomically

    def only_elsewhere(path, content):
        if path.parent == engine.parent:
            raise PermissionError(path)
        write(path, content)

    monkeypatch.setattr(plan, "write_atomically", only_elsewhere)
    for expected in ("written", "read"):
        world.jit = Jit()
        backend = TensorRT(engine)
        assert dict(backend.info.options)["jit_cache"] == expected
        backend.close()
    assert len(list((tmp_path / "cache" / "rtseg").glob("*.jit"))) == 1


def test_cuda_errors_name_the_call():
    with pytest.raises(CudaError, match="cudaStreamSynchronize: pretended error"):
        Cuda(0, PretendedCuda()).synchronize(12345)
    with pytest.raises(ArtifactError, match="no cuda:0: CUDA finds 0 GPUs"):
        Cuda(0, PretendedCuda(gpus=0))


def test_without_the_bindings_the_error_says_how_to_get_them(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(cuda_module.importlib, "import_module", absent)
    with pytest.raises(MissingPackage, match=r"pip install .*\[tensorrt-rtx\]"):
        Cuda(0)


def test_a_tensorrt_that_is_wrong_is_not_trusted(world, monkeypatch, tmp_path):
    trt = world.trt()
    trt.Builder = object
    place = first_load.EngineHost(GPU.name, "8.9", GPU.driver, "tensorrt 10.3.0")
    errors = [0.3, float("nan"), 1e-4]
    monkeypatch.setattr(self_test, "measure", lambda *_: {"grid_sample": errors.pop(0)})
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"tensorrt 10\.3\.0 is wrong on Pretended GPU"):
            self_test.self_test(trt, None, None, place)
    for _ in range(2):  # the pass is kept, the failures were not
        self_test.self_test(trt, None, None, place)
    assert errors == []


def test_the_self_test_comes_before_the_engine(world, engine, monkeypatch):
    def wrong(*_):
        raise ArtifactError("this TensorRT is wrong")

    monkeypatch.setattr(module, "self_test", wrong)
    with pytest.raises(ArtifactError, match="this TensorRT is wrong"):
        TensorRT(engine)
    assert world.runs == 0


def test_kernels_compiled_by_the_first_runs_are_kept_too(world, engine):
    """TensorRT-RTX compiles some when it runs, not when it starts."""

    class Growing(Jit):
        def serialize(self):
            return np.frombuffer(b"kernels" * min(world.runs, 2), np.uint8)

    world.jit = Growing()
    backend = TensorRT(engine)
    (kept,) = engine.parent.glob("net.engine.*.jit")
    assert records.unseal(kept.read_bytes()) == b"kernelskernels"
    backend.close()


def test_a_callers_stream_lives_as_long_as_the_engine(world, engine):
    class Stream:
        def __cuda_stream__(self):
            return 0, 7

    stream = Stream()
    held = weakref.ref(stream)
    backend = TensorRT(engine, stream=stream)
    del stream
    gc.collect()
    assert held() is not None
    backend.close()


def test_closing_frees_on_the_engines_own_gpu(world, engine):
    world.cuda.gpus = 2
    selected = []
    world.cuda.cudaSetDevice = lambda index: (selected.append(index) or 0,)
    backend = TensorRT(engine, "cuda:1")
    selected.clear()
    backend.close()
    assert selected == [1]
    backend.close()
    assert selected == [1]


def test_the_self_tests_engine_is_for_the_gpu_at_hand():
    """By default TensorRT-RTX builds for 8.0 and later, which a 7.5 refuses."""
    trt = MagicMock()
    trt.NetworkDefinitionCreationFlag.__members__ = {}
    trt.ComputeCapability.__members__ = {"CURRENT": "this one"}
    trt.Builder.return_value.build_serialized_network.return_value = b"plan"
    assert self_test.build(trt, None, here=True) == b"plan"
    config = trt.Builder.return_value.create_builder_config.return_value
    config.set_compute_capability.assert_called_once_with("this one", 0)
    assert config.num_compute_capabilities == 1
