"""What needs a GPU: every backend there against the float32 reference of the CPU, on one set of
frames, and an engine over many frames."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from rtseg.runtime.preflight import check

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from rtseg.data.classes import CITYSCAPES  # noqa: E402
from rtseg.data.scenes import scenes  # noqa: E402
from rtseg.errors import ArtifactError  # noqa: E402
from rtseg.export import export  # noqa: E402
from rtseg.export.reference import ProofFrames, run_reference  # noqa: E402
from rtseg.export.tensorrt import build_engine  # noqa: E402
from rtseg.models.loading import Model, load_model  # noqa: E402
from rtseg.models.random_weights import build_untrained  # noqa: E402
from rtseg.runtime import load  # noqa: E402
from rtseg.runtime.artifact import read_card  # noqa: E402
from rtseg.runtime.backends import tensorrt_self_test as self_test  # noqa: E402
from rtseg.runtime.backends.cuda import Cuda  # noqa: E402
from rtseg.runtime.backends.tensorrt import TensorRT  # noqa: E402
from rtseg.runtime.packages import import_package, make_log  # noqa: E402
from rtseg.runtime.verify import (  # noqa: E402
    BARS,
    compare,
    find_faults,
    record_path,
)

SIZE = (256, 512)
MEBIBYTE = 1 << 20
PRECISIONS = ("fp32", "fp16")
WAYS = {  # backend, device and options
    "tensorrt with a CUDA graph": ("tensorrt", {"cuda_graph": True}),
    "tensorrt without": ("tensorrt", {"cuda_graph": False}),
    "onnxruntime on CUDA": ("onnxruntime", {}),
    "torch on CUDA": ("torch", {}),
}
SUFFIXES = {"tensorrt": ".engine", "onnxruntime": ".onnx", "torch": ".safetensors"}


@pytest.fixture(scope="module")
def network():
    return build_untrained("csfcn_nano", 19)


@pytest.fixture(scope="module")
def reference(network):
    """Frames, labels and margins of plain float32 PyTorch on the CPU."""
    frames = [(f"scene {i}", frame) for i, frame in enumerate(scenes(4, SIZE, seed=50))]
    return run_reference(network, ProofFrames(frames), SIZE).reference


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    """Every artifact in every precision. The user's own caches are left out of it."""
    folder = tmp_path_factory.mktemp("artifacts")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    source = Model(network, CITYSCAPES, "memory", False, SIZE)
    for precision in PRECISIONS:
        targets = ("onnx", "torch", "tensorrt")
        export(source, SIZE, targets, precision, out=folder, output="both")
    return folder


def artifact(folder, precision, backend="tensorrt"):
    path = folder / f"csfcn_nano_{SIZE[0]}x{SIZE[1]}_{precision}{SUFFIXES[backend]}"
    verdict = check(path)
    if not verdict.ok:
        pytest.skip(str(verdict))
    return path


@pytest.fixture(params=PRECISIONS)
def engine(folder, request):
    return artifact(folder, request.param)


def skip_without_cuda(backend):
    if backend == "onnxruntime":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime was built without CUDA")
    if backend == "torch" and not torch.cuda.is_available():
        pytest.skip("this torch was built without CUDA")


def wrong(segment, reference, precision):
    figures = [
        compare(labels, margins, segment(frame), BARS[precision])
        for frame, labels, margins in zip(
            reference.frames, reference.labels, reference.margins, strict=True
        )
    ]
    return find_faults(figures, precision, trained=False)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", WAYS)
def test_labels_agree_with_the_reference(folder, reference, precision, way):
    backend, options = WAYS[way]
    skip_without_cuda(backend)
    path = artifact(folder, precision, backend)
    with load(path, backend, "cuda", **options) as segment:
        assert wrong(segment, reference, precision) == []


def test_a_cuda_graph_changes_nothing(engine, reference):
    found = {}
    for on in (True, False):
        backend = TensorRT(engine, cuda_graph=on)
        assert dict(backend.info.options)["cuda_graph"] == ("on" if on else "off")
        found[on] = [
            (backend(frame[None]).copy(), backend.logits().copy()) for frame in reference.frames
        ]
        backend.close()
    for with_graph, without in zip(found[True], found[False], strict=True):
        np.testing.assert_array_equal(with_graph[0], without[0])
        np.testing.assert_array_equal(with_graph[1], without[1])


def test_labels_are_the_argmax_of_the_logits(engine, reference):
    """Up to ties: the argmax may see a logit before it is rounded to half precision."""
    backend = TensorRT(engine)
    labels = backend(reference.frames[:1])
    logits = backend.logits().astype(np.float32)
    assert logits.shape == (1, 19, *SIZE)
    chosen = np.take_along_axis(logits, labels[:, None].astype(np.int64), axis=1)[:, 0]
    assert np.abs(logits.max(1) - chosen).max() <= 2e-3 * np.abs(logits).max()
    backend.close()


def test_memory_is_steady_over_a_thousand_frames(engine, reference):
    backend = TensorRT(engine)
    cuda = Cuda(0)
    for frame in reference.frames:
        backend(frame[None])
    on_gpu, on_host = cuda.free_bytes(), resident_bytes()
    for place in range(1000):
        backend(reference.frames[place % len(reference.frames)][None])
    # Other programs may use the GPU too, but a leak of one label map a frame would be 128 MiB.
    assert on_gpu - cuda.free_bytes() < 16 * MEBIBYTE
    assert resident_bytes() - on_host < 16 * MEBIBYTE
    backend.close()


def resident_bytes():
    """Memory of this process; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.is_file() else 0


def test_closing_gives_the_memory_back(engine):
    TensorRT(engine).close()  # what CUDA and TensorRT keep for themselves is there afterwards
    before = Cuda(0).free_bytes()
    for _ in range(5):
        TensorRT(engine).close()
    assert before - Cuda(0).free_bytes() < 16 * MEBIBYTE


def test_the_proof_is_made_once(engine):
    record_path(engine).unlink(missing_ok=True)
    TensorRT(engine).close()
    record = json.loads(record_path(engine).read_text())
    assert record["passed"] is True
    assert record["gpu"]
    written = record_path(engine).stat().st_mtime_ns
    TensorRT(engine).close()
    assert record_path(engine).stat().st_mtime_ns == written


def test_an_engine_of_other_weights_is_refused(folder, network, tmp_path):
    """The graph of another seed, with the reference of ours."""
    from rtseg.export.graph import to_onnx
    from rtseg.runtime.verify import Reference, reference_path

    right = artifact(folder, "fp32")
    other = to_onnx(build_untrained("csfcn_nano", 19, seed=1), SIZE, "fp32", ("labels",))
    (tmp_path / "other.onnx").write_bytes(other.SerializeToString())
    card = read_card(right).model_copy(update={"outputs": ("labels",)})
    target = tmp_path / "other.engine"
    reference = Reference.load(reference_path(right))
    build_engine(tmp_path / "other.onnx", target, card, references={card.size: reference})
    with pytest.raises(ArtifactError, match="not served"):
        load(target)


def test_tensorrt_passes_its_self_test(engine):
    trt = import_package(read_card(engine).engine.flavour)
    errors = self_test.measure(trt, make_log(trt, "error"), Cuda(0))
    assert max(errors.values()) <= self_test.TOLERANCE, errors


def test_compiled_kernels_are_found_again(engine):
    """TensorRT-RTX compiles at start; the full TensorRT has nothing to keep."""
    TensorRT(engine).close()
    backend = TensorRT(engine)
    expected = "read" if read_card(engine).engine.flavour == "tensorrt_rtx" else "none"
    assert dict(backend.info.options)["jit_cache"] == expected
    backend.close()


def test_frames_and_streams_of_pytorch(engine, reference):
    skip_without_cuda("torch")
    stream = torch.cuda.Stream()
    own, shared = TensorRT(engine), TensorRT(engine, stream=stream)
    for frame in reference.frames:
        expected = own(frame[None])
        with torch.cuda.stream(stream):
            on_gpu = torch.from_numpy(frame[None]).cuda()
        np.testing.assert_array_equal(shared.infer_device(on_gpu), expected)
        labels = torch.as_tensor(shared.on_device(), device="cuda").cpu().numpy()
        np.testing.assert_array_equal(labels, expected)
        with torch.cuda.stream(stream):  # of which the engine of its own stream must know
            on_gpu = torch.from_numpy(frame[None]).pin_memory().cuda(non_blocking=True)
            given = own.label_on_device(on_gpu)
        labels = torch.from_dlpack(given).cpu().numpy()
        np.testing.assert_array_equal(labels, expected)
    own.close()
    shared.close()


@pytest.mark.parametrize("name", ["csfcn", "bisenetv2"])
def test_a_label_kernel_behind_the_engine(name, tmp_path):
    """Its first load proves it against float32; here, that it gives what the engine inside does."""
    pytest.importorskip("triton")
    found, frames = {}, scenes(4, SIZE, seed=51)
    for kernel in (False, True):
        (made,) = export(
            load_model(name), SIZE, "tensorrt", "fp16",
            out=tmp_path, label_kernel=kernel,
        )  # fmt: skip
        verdict = check(made.path)
        if not verdict.ok:
            pytest.skip(str(verdict))
        with load(made.path) as segment:
            options = dict(segment.info.options)
            assert options["argmax"] == ("runtime" if kernel else "graph")
            assert options["cuda_graph"] == "on"
            found[kernel] = np.stack([segment(frame) for frame in frames])
    # The graph compares logits in half precision, the kernel in float32.
    assert (found[True] == found[False]).mean() > 0.995
