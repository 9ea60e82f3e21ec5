"""PyTorch's backend makes labels of coarse logits, and chooses by time on a GPU."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from labels_plain import agree_in_both_ways
from rtseg.data.scenes import scene
from rtseg.errors import ArtifactError
from rtseg.export import export
from rtseg.models.loading import Model
from rtseg.runtime import Segmenter, load
from rtseg.runtime.argmax_torch import bypass_layer, find_head, median_ms
from rtseg.runtime.backends import pytorch as module
from rtseg.runtime.backends.pytorch import PyTorch, TorchLane
from torch import nn

SIZE = (128, 256)


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("torch")
    return export(nano, [SIZE], ["torch"], out=out)[0].path


@pytest.mark.parametrize("threads", [1, 2])
def test_the_runtimes_argmax_gives_the_graphs_labels(
    threads: int, artifact: Path, street_frames: list[tuple[str, Any]]
) -> None:
    agree_in_both_ways(artifact, "torch", street_frames, threads=threads)


def test_a_cpu_argmaxes_in_the_runtime_where_it_can(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(artifact, device="cpu") as segment:
        assert dict(segment.info.options) == {"argmax": "runtime"}
    monkeypatch.setattr("rtseg.runtime.argmax_torch.compiled_available", lambda: False)
    with load(artifact, device="cpu") as segment:
        options = dict(segment.info.options)
        assert options["argmax"] == "graph"
        assert options["no_runtime_argmax"] == 'numba: pip install "rtseg[fast]"'
    with pytest.raises(ArtifactError, match='\\[fast\\]"; or load it with argmax="graph"'):
        load(artifact, device="cpu", argmax="runtime")


def test_logits_keep_the_labels_in_the_graph(nano: Model, tmp_path: Path) -> None:
    made = export(nano, [SIZE], ["torch"], out=tmp_path, output="both")
    with load(made[0].path, device="cpu") as segment:
        labels = segment(np.full((*SIZE, 3), 90, np.uint8))
        assert dict(segment.info.options)["argmax"] == "graph"
        assert (segment.backend.logits()[0].argmax(0) == labels).all()


def test_a_way_that_there_is_not(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match='argmax is "graph" or "runtime", not \'fast\''):
        load(artifact, device="cpu", argmax="fast")


class Recording:
    """A CUDA graph that takes its time, and gives what the network gives unless it is `empty`."""

    def __init__(self, backend: PyTorch, seconds: float, clock: list[float], empty: bool = False):
        self.backend, self.maker, self.results = backend, backend._maker, backend._run()
        self.seconds, self.clock, self.empty = seconds, clock, empty
        self.results = tuple(result.clone() for result in self.results)

    def replay(self) -> None:
        self.clock[0] += self.seconds
        if self.empty:
            return
        for ours, theirs in zip(self.results, self.backend._run(), strict=True):
            ours.copy_(theirs)


def recorder(
    backend: PyTorch, seconds: dict[str, float], clock: list[float], empty: bool, names: list[str]
) -> Any:
    def record() -> tuple[Recording, tuple[torch.Tensor, ...]]:
        names.append("runtime" if backend._maker else "graph")
        recording = Recording(backend, seconds[names[-1]], clock, empty)
        return recording, recording.results

    return record


@pytest.mark.parametrize(
    ("runtime", "graph", "choose", "best"),
    [(1, 2, True, "runtime"), (2, 1, True, "graph"), (2, 1, False, "runtime")],
)
def test_the_faster_recording_is_kept(
    runtime: float, graph: float, choose: bool, best: str, artifact: Path, monkeypatch: Any
) -> None:
    clock, recorded, seconds = [0.0], [], {"runtime": runtime, "graph": graph}
    backend = PyTorch(artifact, "cpu")
    monkeypatch.setattr(backend, "_recorded", recorder(backend, seconds, clock, False, recorded))
    monkeypatch.setattr(
        "rtseg.runtime.backends.pytorch.median_ms",
        lambda runs: median_ms(runs, now=lambda: int(clock[0] * 1e9)),
    )
    said = dict(backend._capture(choose))
    assert recorded == (["runtime", "graph"] if choose else ["runtime"])
    assert (said["argmax"], said["cuda_graph"]) == (best, "on")
    assert said["cudnn"] == "benchmark"
    assert f"runtime {1e3 * runtime:.3f}" in said["argmax_ms"]
    assert (backend._maker is not None) == (best == "runtime")
    assert backend.graph.seconds == seconds[best]
    backend.close()


def test_a_graph_that_gives_something_else_is_not_replayed(
    artifact: Path, monkeypatch: Any
) -> None:
    """As one that was captured on another device than its kernels', which is empty."""
    backend = PyTorch(artifact, "cpu", argmax="graph")
    record = recorder(backend, {"graph": 1}, [0.0], True, [])
    monkeypatch.setattr(backend, "_recorded", record)
    said = dict(backend._capture(choose=False))
    assert said["cuda_graph"].startswith("off: it gave other results")
    assert backend.graph is None
    backend.close()


def test_a_frame_goes_up_in_stripes(artifact: Path, monkeypatch: Any) -> None:
    backend = PyTorch(artifact, "cpu")
    image = np.random.default_rng(0).integers(0, 256, tuple(backend.frame.shape), np.uint8)
    monkeypatch.setattr("rtseg.runtime.backends.pytorch.STRIPE", image[:, :7].nbytes)
    backend.staging = torch.zeros_like(backend.frame)
    backend.upload(image)
    np.testing.assert_array_equal(backend.frame.numpy(), image)
    backend.close()


def test_labels_come_down_into_memory_that_is_made_once(artifact: Path) -> None:
    """Pinned on a GPU, where pageable memory would be copied twice."""
    backend = PyTorch(artifact, "cpu", argmax="graph")
    image = np.random.default_rng(0).integers(0, 256, tuple(backend.frame.shape), np.uint8)
    expected = backend(image).copy()
    (host,) = backend._host = [torch.zeros_like(result) for result in backend.results]
    for _ in range(2):
        host.fill_(255)
        labels = backend(image)
        assert labels.ctypes.data == host.data_ptr()
        np.testing.assert_array_equal(labels, expected)
    backend.close()


class Gpus:
    """Two pretended GPUs, of which the first is the current one."""

    def __init__(self) -> None:
        self.current, self.used, self.modes = 0, [], []

    @contextlib.contextmanager
    def select(self, index: int) -> Any:
        before, self.current = self.current, index
        yield
        self.current = before

    @contextlib.contextmanager
    def use(self, *_: object, **__: object) -> Any:
        self.used.append(self.current)
        yield

    def capture(self, graph: object, stream: object, capture_error_mode: str) -> Any:
        self.modes.append(capture_error_mode)
        return self.use()

    def replay(self) -> None:
        self.used.append(self.current)


def test_the_second_gpus_graph_is_captured_and_replayed_on_it(
    artifact: Path, monkeypatch: Any
) -> None:
    gpus, backend = Gpus(), PyTorch(artifact, "cpu")
    searched, run, steps = [], backend._run, []

    def record() -> Any:
        searched.append(torch.backends.cudnn.benchmark)
        steps.append("run")
        return run()

    monkeypatch.setattr(backend, "_run", record)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: gpus.select(1))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: steps.append("wait"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "stream", gpus.use)
    monkeypatch.setattr(torch.cuda, "graph", gpus.capture)
    backend._record_graphs(choose=False)
    # The other stream waits for the weights, the capture for the warm-up.
    assert steps[:6] == ["wait", "run", "run", "run", "wait", "run"]
    # The warm-up, the capture, and what its replay is held against, with the same algorithms.
    assert searched == [True] * 5
    assert torch.backends.cudnn.benchmark is False
    assert gpus.modes == ["thread_local"]
    backend.graph = gpus
    backend.compute()
    assert set(gpus.used) == {1}
    assert gpus.current == 0
    backend.close()


def test_two_threads_that_search_at_once_leave_cudnns_switch_as_it_was() -> None:
    entered, leave = threading.Event(), threading.Event()

    def search() -> None:
        with module.search_algorithms():
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=search)
    try:
        with module.search_algorithms():
            other.start()
            assert not entered.wait(0.2)
        assert entered.wait(60)
        assert torch.backends.cudnn.benchmark is True
    finally:
        leave.set()
        other.join()
    assert torch.backends.cudnn.benchmark is False


class Stream:
    """A pretended CUDA stream; `done`: runs and waits, by the streams' numbers."""

    done: ClassVar[list[tuple[str, int]]] = []
    made = 0

    def __init__(self, device: object):
        Stream.made += 1
        self.number = Stream.made

    def synchronize(self) -> None:
        self.done.append(("wait", self.number))


@pytest.mark.parametrize("wrong", [False, True])
def test_two_frames_are_in_flight_in_lanes(
    wrong: bool, artifact: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Each has a frame, results and a stream; a graph that gives something else is not used."""
    now: list[Stream] = []

    @contextlib.contextmanager
    def use(stream: Stream) -> Any:
        now.append(stream)
        yield
        now.pop()

    def record(backend: Any) -> Any:
        recording = Recording(backend, 0, [0.0], empty=wrong and isinstance(backend, TorchLane))
        replay = recording.replay
        if isinstance(backend, TorchLane):
            recording.replay = lambda: Stream.done.append(("run", now[-1].number)) or replay()  # type: ignore[method-assign,func-returns-value]
        return recording, recording.results

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: contextlib.nullcontext())
    monkeypatch.setattr(module, "pinned_like", torch.zeros_like)
    monkeypatch.setattr(PyTorch, "_recorded", record)
    backend = PyTorch(artifact, "cpu", argmax="graph")
    backend.graph = backend._recorded()[0]
    backend.results = backend.graph.results
    frames = [scene(backend.card.size, seed) for seed in range(4)]
    with Segmenter(backend) as segment:
        expected = [segment(frame) for frame in frames]
        assert segment.prepare_stream() == (1 if wrong else 2)
        Stream.done.clear()
        found = list(segment.stream(frames))
        one, other = Stream.made - 1, Stream.made
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    if wrong:
        assert "takes one frame at a time: another labels noise otherwise" in caplog.text
        return
    order = [("run", one), ("run", other), ("wait", one), ("run", one), ("wait", other)]
    assert Stream.done[: len(order)] == order


class Head(nn.Module):
    def __init__(self, kernel: int = 1, after: nn.Module | None = None):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, kernel))
        self.after = after or nn.Identity()

    def forward_logits(self, image: torch.Tensor) -> torch.Tensor:
        made = self.body(image)
        return made if isinstance(self.after, nn.Identity) else self.after(made)


def test_only_a_1x1_convolution_at_the_end_is_a_head() -> None:
    assert find_head(Head(), (8, 8)) == "body.1"
    assert find_head(Head(kernel=3), (8, 8)) is None
    assert find_head(Head(after=nn.ReLU()), (8, 8)) is None


def test_a_layer_is_left_out_for_the_time() -> None:
    network, image = Head(), torch.ones(1, 3, 2, 2)
    with bypass_layer(network, "body.1"):
        assert network.forward_logits(image).shape == (1, 4, 2, 2)
    with bypass_layer(network, None):
        assert network.forward_logits(image).shape == (1, 8, 2, 2)


def test_times_are_medians_of_turns() -> None:
    clock, order = [0], []

    def run(name: str, steps: list[int]) -> None:
        order.append(name)
        clock[0] += steps.pop(0)

    steps = {"a": [9_000_000, 1_000_000, 2_000_000], "b": [3_000_000] * 3}
    spent = median_ms(
        {name: lambda name=name: run(name, steps[name]) for name in steps}, 3, lambda: clock[0]
    )
    assert spent == {"a": 2.0, "b": 3.0}
    assert order == ["a", "b"] * 3


def test_the_old_spelling_is_taken_for_one_version(artifact: Path) -> None:
    with pytest.warns(FutureWarning, match=r"labels='cells' is now argmax='runtime'"):
        segment = load(artifact, device="cpu", labels="cells")
    assert dict(segment.info.options)["argmax"] == "runtime"
    segment.close()
