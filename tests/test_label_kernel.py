"""Labels by a kernel beside an engine: the cut graph, the compile_kernel kernel, its file, and the
backend that launches it on a pretended GPU. `test_labels_gpu.py` tests the kernels' arithmetic."""

import hashlib
import os
import re

import numpy as np
import pytest
from fake_cuda import (
    COARSE_SHAPE,
    POINTERS,
    SIZE,
    PretendedKernel,
    coarse_logits,
    picture,
    pretend,
    write_engine,
)
from labels_plain import plain
from rtseg.errors import ArtifactError
from rtseg.runtime.argmax import LabelMaker
from rtseg.runtime.artifact import read_card, verify_artifact
from rtseg.runtime.backends.argmax_kernel import KernelFile, kernel_path
from rtseg.runtime.backends.tensorrt import TensorRT

onnx = pytest.importorskip("onnx")
pytest.importorskip("triton", reason="needs Triton, which there is for Linux only")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from rtseg.errors import ExportError  # noqa: E402
from rtseg.export import argmax_kernel as label_kernel  # noqa: E402
from rtseg.export import export  # noqa: E402
from rtseg.export.argmax_kernel import CutGraph, compile_kernel, cut  # noqa: E402
from rtseg.export.graph import to_onnx  # noqa: E402
from rtseg.export.parity import open_session  # noqa: E402
from rtseg.models import count  # noqa: E402
from rtseg.models.loading import load_model  # noqa: E402
from rtseg.models.random_weights import build_untrained  # noqa: E402
from rtseg.runtime import argmax_triton as labels_gpu  # noqa: E402

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="Triton interprets here"
)
FRAME = np.random.default_rng(7).integers(0, 256, (1, 64, 128, 3), np.uint8)


@pytest.fixture(autouse=True, scope="module")
def triton_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def bilinear(aligned=False):
    upsampling = "bilinear_aligned" if aligned else "bilinear"
    return CutGraph(onnx.ModelProto(), upsampling, COARSE_SHAPE, np.dtype(np.float16))


@pytest.fixture(scope="module", params=[False, True], ids=["half pixel", "aligned"])
def made(request):
    """(corners aligned, the kernel of the pretended engine's coarse logits)."""
    return request.param, compile_kernel(bilinear(request.param), SIZE, ["8.9"])


def run(graph, frame=FRAME):
    return open_session(graph).run(None, {"frame": frame})


# The cut graph.


def test_a_graph_is_cut_before_its_resize():
    graph = to_onnx(build_untrained("bisenetv2", 19), FRAME.shape[1:3], "fp32", ("labels",))
    ending = cut(graph)
    (coarse,) = run(ending.graph)
    assert (coarse.shape, coarse.dtype) == (ending.shape, ending.dtype)
    labels = LabelMaker(ending.shape, FRAME.shape[1:3], ending.upsampling)(coarse)
    assert (labels == run(graph)[0]).mean() > 0.9999


def test_a_shuffled_head_is_cut_off_with_its_weights():
    graph = to_onnx(build_untrained("csfcn", 19), FRAME.shape[1:3], "fp16", ("labels",))
    ending = cut(graph)
    (features,) = run(ending.graph)
    assert (features.shape, ending.upsampling) == (ending.shape, "shuffle")
    assert ending.weight.dtype == ending.bias.dtype == ending.dtype == features.dtype
    labels, expected = by_hand(ending, features), run(graph)[0]
    assert labels.shape == expected.shape
    assert (labels == expected).mean() > 0.999


def by_hand(ending, features):
    """Labels of a head's features by its own weights, in float64."""
    weight = ending.weight[:, :, 0, 0].astype(np.float64)
    logits = np.einsum("oc,nchw->nohw", weight, features.astype(np.float64))
    logits += ending.bias.astype(np.float64)[:, None, None]
    factor = FRAME.shape[1] // features.shape[2]
    _, outputs, height, width = logits.shape
    parts = logits.reshape(outputs // factor**2, factor, factor, height, width)
    return (
        parts.transpose(0, 3, 1, 4, 2).reshape(-1, height * factor, width * factor).argmax(0)[None]
    )


def head(weight, *, kernel=(1, 1), rounded=False, steps=("ArgMax",)):
    """frame -> floats -> [rounded and back] -> convolution -> (1, K, 4, h, w) -> labels."""
    weight = np.asarray(weight, np.float32)
    held = {"shape": np.array([1, 2, 4, *(side // 2 for side in SIZE)])}
    nodes = [
        helper.make_node("Cast", ["frame"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("AveragePool", ["image"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
    ]
    source, kernel_name = "pooled", "weight"
    if rounded:
        scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
        held |= {"step": np.float32(2), "scales": scales.astype(np.float32)}
        held["weight8"] = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
        held |= {"none": np.int8(0), "nones": np.zeros(len(weight), np.int8)}
        nodes += [
            helper.make_node("QuantizeLinear", ["pooled", "step", "none"], ["narrow"]),
            helper.make_node("DequantizeLinear", ["narrow", "step", "none"], ["back"]),
            helper.make_node(
                "DequantizeLinear", ["weight8", "scales", "nones"], ["weight"], axis=0
            ),
        ]
        source = "back"
    else:
        held["weight"] = weight
    pads = [side // 2 for side in kernel] * 2
    nodes.append(helper.make_node("Conv", [source, kernel_name], ["wide"], pads=pads))
    nodes.append(helper.make_node("Reshape", ["wide", "shape"], ["scores"]))
    nodes.append(helper.make_node(steps[0], ["scores"], ["ids"], axis=1, keepdims=0))
    nodes.append(helper.make_node("Cast", ["ids"], ["floating"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("DepthToSpace", ["floating"], ["large"], blocksize=2))
    nodes.append(helper.make_node("Squeeze", ["large", "one"], ["flat"]))
    nodes.append(helper.make_node("Cast", ["flat"], ["labels"], to=TensorProto.UINT8))
    held["one"] = np.array([1])
    inputs = [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, *SIZE, 3])]
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, *SIZE])]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "head", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_an_int8_heads_weights_come_back_as_they_were_rounded():
    weight = np.random.default_rng(0).normal(size=(8, 3, 1, 1))
    ending = cut(head(weight, rounded=True))
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    np.testing.assert_allclose(ending.weight, np.rint(weight / steps) * steps, rtol=1e-5)
    assert ending.bias is None
    (given,) = run(ending.graph, picture(0))
    np.testing.assert_array_equal(given, run(cut(head(weight)).graph, picture(0))[0])


def test_ends_that_no_kernel_makes_are_refused():
    with pytest.raises(ArtifactError, match="logits are not of a 1x1 convolution"):
        cut(head(np.ones((8, 3, 3, 3)), kernel=(3, 3)))
    graph = head(np.ones((8, 3, 1, 1)), steps=("ReduceMax",))
    del graph.graph.node[-4].attribute[:]
    with pytest.raises(ArtifactError, match="export without --label-kernel"):
        cut(graph)


# The compile_kernel kernel.


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("kind", ["bilinear", "shuffle"])
def test_kernels_compile_for_one_gpu_of_each_generation(kind, dtype):
    shape, weight = (1, 19, 64, 128), None
    if kind == "shuffle":
        shape, weight = (1, 128, 64, 128), np.ones((19 * 64, 128, 1, 1), dtype)
    ending = CutGraph(onnx.ModelProto(), kind, shape, np.dtype(dtype), weight)
    file = compile_kernel(ending, (512, 1024), ["8.9", "8.0", "9.0", "12.0", "12.1"])
    assert set(file.code) == {"8.0", "9.0", "12.0", "12.1"}
    assert max(file.call.shared.values()) <= 99 * 1024
    assert all(code.startswith(b"\x7fELF") for code in file.code.values())
    expected = POINTERS if kind == "bilinear" else ("features", "weight", "bias", "labels")
    assert file.call.arguments == ("coarse", *expected[1:])
    kernel = {"bilinear": labels_gpu.bilinear_kernel, "shuffle": labels_gpu.shuffled_kernel}[kind]
    assert tuple(kernel.arg_names[: len(expected)]) == expected


def bilinear_ptx(target):
    launch = labels_gpu.bilinear_launch(COARSE_SHAPE, SIZE, "bilinear")
    types = dict.fromkeys(POINTERS, "float32") | {"pieces": "int32", "labels": "uint8"}
    types |= {"left": "int32", "right": "int32"}
    constants = launch.constants | labels_gpu.named_strides((160, 32, 8, 1))
    return label_kernel._machine_code(launch, types, constants, target).asm["ptx"]


def test_the_machine_code_rounds_as_the_cpu_does():
    ptx = bilinear_ptx("8.9")
    assert "fma.rn.f32" in ptx
    assert ".ftz" not in ptx, "subnormal numbers would be lost"


def test_newer_code_is_for_one_kind_of_gpu_alone():
    """Why `runs_on` says so: the suffix `a` of the architecture."""
    for target, suffix in (("8.6", ""), ("9.0", "a"), ("12.0", "a")):
        named = rf"\.target sm_{target.replace('.', '')}{suffix}\b"
        assert re.search(named, bilinear_ptx(target))


def test_a_kernel_file_comes_back_whole(made, tmp_path):
    _, file = made
    path = tmp_path / "net.engine.labels.npz"
    path.write_bytes(file.to_bytes())
    found = KernelFile.load(path)
    assert (found.call, found.code) == (file.call, file.code)
    assert found.tables.keys() == file.tables.keys()
    for name, table in file.tables.items():
        np.testing.assert_array_equal(found.tables[name], table)
        assert found.tables[name].dtype == table.dtype


def test_a_damaged_or_missing_kernel_file(made, tmp_path):
    path = tmp_path / "net.engine.labels.npz"
    with pytest.raises(ArtifactError, match="missing: copy it with the engine"):
        KernelFile.load(path)
    content = made[1].to_bytes()
    for damaged in (content[:-100], b"", b"no archive", content.replace(b"call", b"gone")):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError, match="damaged"):
            KernelFile.load(path)


def test_a_gpu_takes_code_of_its_generation(made):
    file = KernelFile(made[1].call, {"8.0": b"", "8.7": b"", "12.0": b""}, {})
    assert [file.code_for(gpu) for gpu in ("8.0", "8.6", "8.9", "12.0")] == [
        "8.0", "8.0", "8.7", "12.0",
    ]  # fmt: skip
    for gpu in ("7.5", "9.0", "12.1"):  # from 9.0 on, code is for one kind of GPU alone
        with pytest.raises(ArtifactError, match=f"not for {gpu}.*--compute-capability {gpu}"):
            file.code_for(gpu)


# The backend.


def start(made, monkeypatch, folder):
    """(the pretended GPU, an engine there, what its labels have to be)."""
    aligned, file = made
    world = PretendedKernel(pretend(monkeypatch, folder), file)

    def labels_of(frame):
        return plain(coarse_logits(frame), SIZE, aligned)

    path = write_engine(folder, ("coarse",), kernel=file.to_bytes(), labels_of=labels_of)
    return world, path, labels_of


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_the_backend_makes_labels_with_the_kernel(made, monkeypatch, tmp_path, cuda_graph):
    world, path, labels_of = start(made, monkeypatch, tmp_path)
    backend = TensorRT(path, cuda_graph=cuda_graph)  # proven against `labels_of` as it loads
    allocations, launches = world.cuda.allocations, world.cuda.launches
    for seed in range(3):
        assert (backend(picture(seed)) == labels_of(picture(seed))).mean() > 0.999
    assert world.cuda.allocations == allocations
    assert world.cuda.launches - launches == (3 if cuda_graph else 0)
    options = dict(backend.info.options)
    assert (options["argmax"], options["cuda_graph"]) == ("runtime", "on" if cuda_graph else "off")
    assert backend.names == ("labels",)
    assert backend.on_device().__cuda_array_interface__["shape"] == (1, *SIZE)
    backend.close()
    assert (world.cuda.alive, world.world.driver.modules) == (0, {})


def test_a_kernel_that_is_wrong_is_not_served(made, monkeypatch, tmp_path):
    aligned, file = made
    wrong = dict(file.tables) | {"row_near": file.tables["row_far"]}
    other = KernelFile(file.call, file.code, wrong)
    world, path, _ = start((aligned, other), monkeypatch, tmp_path)
    with pytest.raises(ArtifactError, match="not served"):
        TensorRT(path)
    assert (world.cuda.alive, world.world.driver.modules) == (0, {})


def test_a_kernel_of_another_engine_is_refused(made, monkeypatch, tmp_path):
    aligned, file = made
    call = file.call.model_copy(update={"shape": (1, 4, 2, 2)})
    world, path, _ = start(
        (aligned, KernelFile(call, file.code, file.tables)), monkeypatch, tmp_path
    )
    with pytest.raises(ArtifactError, match="its label kernel takes float16"):
        TensorRT(path)
    assert world.cuda.alive == 0


def test_code_that_does_not_load_frees_what_it_took(made, monkeypatch, tmp_path):
    world, path, _ = start(made, monkeypatch, tmp_path)
    world.world.driver.kernels.clear()
    with pytest.raises(RuntimeError, match="cuModuleGetFunction: pretended error"):
        TensorRT(path)
    assert (world.cuda.alive, world.world.driver.modules) == (0, {})


def test_much_shared_memory_is_asked_for(made, monkeypatch, tmp_path):
    aligned, file = made
    call = file.call.model_copy(update={"shared": {"8.9": 65536}})
    world, path, _ = start(
        (aligned, KernelFile(call, file.code, file.tables)), monkeypatch, tmp_path
    )
    TensorRT(path).close()
    assert world.world.driver.shared == 65536


# The export.


@pytest.mark.parametrize("name", ["csfcn", "bisenetv2"])
def test_an_engine_with_its_kernel(name, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    size = FRAME.shape[1:3]
    source = load_model(name)
    (artifact,) = export(
        source, size, "tensorrt", "fp16", out=tmp_path, label_kernel=True,
        compute_capability=("8.9",),
    )  # fmt: skip
    assert artifact.path.name == f"{name}_64x128_fp16_kernel.engine"
    card = read_card(artifact.path)
    assert card.outputs == ("coarse",)
    assert card.upsampling == ("shuffle" if name == "csfcn" else "bilinear")
    verify_artifact(artifact.path, card)
    beside = kernel_path(artifact.path)
    assert card.files[beside.name] == hashlib.sha256(beside.read_bytes()).hexdigest()
    file = KernelFile.load(beside)
    assert list(file.code) == ["8.9"]
    assert card.macs == count(source.network, size).macs


def test_label_kernels_are_for_engines_that_give_labels(tmp_path):
    source = load_model("csfcn_nano:camvid")
    for targets, outputs in ((["onnx"], "labels"), (["tensorrt"], "both")):
        with pytest.raises(ExportError, match="label kernel is for engines"):
            export(source, (64, 128), targets, output=outputs, out=tmp_path, label_kernel=True)
    assert not list(tmp_path.iterdir())
