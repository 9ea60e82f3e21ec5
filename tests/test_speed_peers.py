"""Peers do the same job as we, and are asked for by name."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import onnx
import pytest
import torch
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, MissingPackage, UsageError
from rtseg.runtime import load
from rtseg.speed import peers
from rtseg.speed.config import BenchConfig
from rtseg.speed.peers import PEERS, check_peers, choose_peers, peer_class
from speed_parts import SIZE, planned


@pytest.fixture(scope="module")
def contest(tmp_path_factory):
    """csfcn_nano at a tiny size, exported into a cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        (found,), _ = planned(["csfcn_nano"], [SIZE], ["torch"])
        yield found


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "openvino_bf16"])
def test_a_peer_gives_eager_s_labels(contest, name):
    pytest.importorskip(PEERS[name].package)
    frames = scenes(1, (90, 150))
    eager = contest.peer("eager", "cpu").open(frames, 1, None)
    peer = contest.peer(name, "cpu").open(frames, 1, None)
    labels, expected = peer.frame_to_labels(), eager.frame_to_labels()
    assert labels.shape == expected.shape == (90, 150)
    assert labels.dtype == expected.dtype
    assert (labels == expected).mean() > (0.95 if name == "openvino_bf16" else 0.999)
    peer.take_noise()
    peer.run_queued(2)
    peer.time_stages()
    assert set(peer.laps[0]) == set(eager.laps[0] if eager.laps else peer.laps[0])
    assert peer.subject.peer
    assert peer.subject.runner != eager.subject.runner


@pytest.fixture(scope="module")
def batched(tmp_path_factory):
    """csfcn_nano for three frames at once, exported as `--batch` asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        (found,), _ = planned(["csfcn_nano"], [SIZE], ["onnxruntime"], batch=3)
        yield found


def test_a_batch_that_is_asked_for_is_exported_and_cached(batched):
    (entry,) = batched.entries
    assert "_b3." in entry.path.name
    assert batched.card.batch == 3
    with pytest.raises(UsageError, match="takes 3 at once, as exported: leave --batch out"):
        planned([entry.path], batch=2)
    with pytest.raises(UsageError, match="the frontier compares networks on single frames"):
        BenchConfig(["csfcn_nano"], batch=2).refuse_batch("the frontier")


@pytest.mark.parametrize("name", ["eager", "onnxruntime", "openvino"])
def test_peers_take_a_batch(batched, name):
    """A batch's labels are those of each frame alone, in its place."""
    pytest.importorskip(PEERS[name].package)
    frames = scenes(3, (90, 150))
    with load(batched.entries[0].path, "onnxruntime", "cpu") as segment:
        expected = segment(frames)
    peer = batched.peer(name, "cpu").open(frames, 1, None)
    assert peer.subject.batch == 3
    # The first call, as it is made, took all three.
    found = peer.frame_to_labels()
    assert [labels.shape for labels in found] == [(90, 150)] * 3
    for labels, own in zip(found, expected, strict=True):
        assert (labels == own).mean() > 0.995
    assert (found[0] != found[1]).any()
    peer.take_noise()
    assert tuple(peer.run_queued(1).shape) == (3, *SIZE)
    peer.time_stages()


@pytest.mark.slow
def test_torch_compile_gives_eager_s_labels(contest):
    frames = scenes(1, SIZE)
    eager = contest.peer("eager", "cpu").open(frames, 1, None)
    compiled = contest.peer("compile", "cpu").open(frames, 1, None)
    assert (compiled.frame_to_labels() == eager.frame_to_labels()).mean() > 0.999


def test_the_papers_protocol_times_pixels_to_labels(contest, monkeypatch):
    """As an artifact's graph holds it: the ratio of two rows is of the same work."""
    eager = contest.peer("eager", "cpu").open(scenes(1, SIZE), 1, None)
    eager.take_noise()
    steps = []
    for name in ("_normalized", "_compute", "_labels"):
        real = getattr(eager, name)
        monkeypatch.setattr(
            eager, name, lambda given, real=real, name=name: (steps.append(name), real(given))[1]
        )
    labels = eager.run_queued(2)
    assert steps == ["_normalized", "_compute", "_labels"] * 2
    assert tuple(labels.shape) == (1, *SIZE)


def test_an_unknown_peer_is_told_the_others():
    with pytest.raises(ValueError, match="no peer is called 'mxnet': choose from eager, compile"):
        check_peers(["mxnet"])


def test_torch2trt_s_install_line_is_in_the_error():
    with pytest.raises(MissingPackage, match=r"pip install .*NVIDIA-AI-IOT/torch2trt"):
        check_peers(["torch2trt"])


def test_torch2trt_is_imported_only_when_it_is_named(monkeypatch):
    module = ModuleType("torch2trt")
    monkeypatch.setitem(sys.modules, "torch2trt", module)
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ArtifactError, match="where it is named: --peer torch2trt"):
        peer_class("torch2trt", "cuda", asked_for=False)
    assert peer_class("torch2trt", "cuda") is peers.Torch2Trt
    assert choose_peers(["eager", "torch2trt"], "cuda") == ["eager", "torch2trt"]
    with pytest.raises(ArtifactError, match="torch2trt runs on an NVIDIA GPU only"):
        peer_class("torch2trt", "cpu")


def test_every_peer_of_the_device_has_a_row_or_a_reason(monkeypatch):
    absent = {"openvino", "torch_tensorrt", "tensorrt"}
    monkeypatch.setattr(
        peers.importlib.util, "find_spec", lambda name: None if name in absent else object()
    )
    cpu = ["eager", "compile", "onnxruntime", "openvino", "openvino_bf16"]
    assert choose_peers(["eager", "all"], "cpu") == cpu
    cuda = ["eager", "compile", "onnxruntime", "tensorrt", "torch_tensorrt", "torch2trt"]
    assert choose_peers(["eager", "all"], "cuda") == cuda
    for name, words in (("openvino", r"\[openvino\]"), ("openvino_bf16", "openvino")):
        with pytest.raises(MissingPackage, match=f"is not installed: .*{words}"):
            peer_class(name, "cpu", asked_for=False)
    with pytest.raises(MissingPackage, match="Torch-TensorRT is not installed: pip install torch-"):
        peer_class("torch_tensorrt", "cuda", asked_for=False)
    assert peer_class("tensorrt", "cuda")  # tensorrt_rtx will do


def test_a_peer_that_fails_as_it_runs_says_so_too(contest, monkeypatch):
    def fails(self, image):
        raise RuntimeError("CUDA error: an illegal memory access\nlong trace")

    monkeypatch.setattr(peers.Compiled, "_prepare", lambda self, network: network)
    monkeypatch.setattr(peers.Compiled, "_compute", fails)
    with pytest.raises(
        ArtifactError, match=r"torch.compile: CUDA error: an illegal memory access$"
    ):
        contest.peer("compile", "cpu").open(scenes(1, SIZE), 1, None)


def test_plain_tensorrt_builds_of_a_naive_export_and_binds_what_lies_there(contest, monkeypatch):
    """Built for real by TensorRT-RTX, which needs no GPU for that; run by a pretended context."""
    trt = pytest.importorskip("tensorrt_rtx")
    from rtseg.runtime.packages import make_log

    kind = peers.PlainTensorRT.of(contest.model, SIZE)
    peer = object.__new__(kind)
    peer.torch, peer.size, peer.trt = torch, SIZE, trt
    log = make_log(trt, "error")
    assert len(peer._build(log)) > 10_000
    image = onnx.load(kind.plain).graph.input[0].type.tensor_type
    assert image.elem_type == onnx.TensorProto.FLOAT16, "what `_normalized` gives"
    assert log.errors == []

    class Context(dict):
        set_tensor_address = dict.__setitem__

        def execute_async_v3(self, stream):
            return stream == 7

    peer.model, peer.device = Context(), torch.device("cpu")
    peer.mean, peer.std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    image = peer._normalized(torch.zeros((1, *SIZE, 3), dtype=torch.uint8))
    assert image.dtype is torch.float16
    labels = peer._compute(image)
    assert peer.model == {"image": image.data_ptr(), "labels": labels.data_ptr()}
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (1, *SIZE))
    stream.cuda_stream = 8
    with pytest.raises(ArtifactError, match="could not run"):
        peer._compute(image)


def test_a_compiler_that_fails_only_leaves_its_row_out(contest, monkeypatch):
    def broken(image):
        raise RuntimeError("no C++ compiler\nlong trace")

    monkeypatch.setattr(torch, "compile", lambda network, **options: broken)
    with pytest.raises(ArtifactError, match=r"torch.compile: no C\+\+ compiler$"):
        contest.peer("compile", "cpu").open(scenes(1, SIZE), 1, None)


def test_torch_tensorrt_is_asked_as_its_present_versions_want(monkeypatch):
    """`enabled_precisions` with float16 is an AssertionError since 2.10."""
    asked = {}

    def compile(network, ir, inputs, use_explicit_typing):
        asked.update(ir=ir, types={tensor.dtype for tensor in inputs}, typed=use_explicit_typing)
        return network

    module = ModuleType("torch_tensorrt")
    module.compile = compile
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    peer = object.__new__(peers.TorchTensorRT)
    peer.torch, peer.size, peer.device = torch, SIZE, torch.device("cpu")
    half = peer._prepare(torch.nn.Conv2d(3, 4, 1))
    assert asked == {"ir": "dynamo", "types": {torch.float16}, "typed": True}
    assert half.weight.dtype is torch.float16


def test_a_tensorrt_peer_runs_on_a_stream_of_its_own(monkeypatch):
    """On the default one TensorRT synchronizes at every run, and the peer would look slow."""
    now, waited = ["default"], []

    class Stream:
        def __init__(self, device):
            assert device == "cuda:1"

        def wait_stream(self, other):
            waited.append(other)

    @contextmanager
    def use(stream):
        now.append(stream)
        yield
        now.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: now[-1])
    for kind in (peers.PlainTensorRT, peers.TorchTensorRT, peers.Torch2Trt):
        peer = object.__new__(kind)
        peer.torch, peer.threads, peer.device = torch, 1, "cuda:1"
        waited.clear()
        used = []
        for _ in range(2):
            with peer._settings():
                used.append(now[-1])
                assert torch.is_inference_mode_enabled()
        assert used == [peer._stream] * 2
        assert waited == ["default"]  # its weights were made there
        assert now == ["default"]


class FakeSession:
    """An ONNX Runtime session that has the providers which it was made with, or fewer."""

    loads = True

    def __init__(self, path, options, providers):
        self.asked = providers
        self.bound: dict[str, tuple] = {}

    def get_providers(self):
        names = [each if isinstance(each, str) else each[0] for each in self.asked]
        return names if self.loads else names[1:]

    def io_binding(self):
        return self

    def bind_input(self, *facts):
        self.bound["input"] = facts

    def bind_output(self, *facts):
        self.bound["output"] = facts

    def run_with_iobinding(self, binding):
        assert binding is self


@pytest.fixture
def on_cuda(monkeypatch):
    """A plain ONNX Runtime peer for the second GPU, where there is none."""
    runtime = ModuleType("onnxruntime")
    runtime.InferenceSession = FakeSession
    runtime.SessionOptions = SimpleNamespace
    runtime.preload_dlls = lambda: runtime.preloaded.append(1) or print("no cuDNN")
    runtime.preloaded = []
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    peer = object.__new__(peers.PlainOnnxRuntime)
    peer.torch, peer.size, peer.threads, peer.plain = torch, SIZE, 1, "plain.onnx"
    peer.device = SimpleNamespace(type="cuda", index=1)
    return peer


def test_plain_onnx_runtime_is_given_the_image_where_it_lies(on_cuda, monkeypatch, capsys):
    on_cuda.model = on_cuda._prepare(None)
    assert sys.modules["onnxruntime"].preloaded == [1]
    assert capsys.readouterr().out == ""  # which may be JSON
    assert on_cuda.model.asked[0] == ("CUDAExecutionProvider", {"device_id": 1})
    labels = torch.zeros((1, *SIZE), dtype=torch.int64)
    image = torch.zeros(1, 3, *SIZE)
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: labels)
    assert on_cuda._compute(image) is labels
    assert on_cuda.model.bound["input"][:3] == ("image", "cuda", 1)
    assert on_cuda.model.bound["input"][-1] == image.data_ptr()
    assert on_cuda.model.bound["output"][-1] == labels.data_ptr()
    assert on_cuda.device_ms() is None, "its stream is not PyTorch's"


def test_plain_onnx_runtime_that_fell_back_to_the_cpu_is_no_row(on_cuda, monkeypatch):
    monkeypatch.setattr(FakeSession, "loads", False)
    with pytest.raises(ArtifactError, match="its CUDA provider did not load"):
        on_cuda._prepare(None)
