"""What computes in float16 is proven at its first load on the device that will run it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rtseg.errors import ArtifactError
from rtseg.export import export
from rtseg.gpu import Gpu
from rtseg.runtime import load
from rtseg.runtime.artifact import Card
from rtseg.runtime.verify import Processor, prove_half, record_path, this_processor
from test_preflight import card_of

GPU = Gpu(0, "Pretended GPU", "8.9", "580.65.06", 24 << 30)
SIZE = 64, 128


class Pretended:
    """A backend whose label is the pixel's brightness in eight steps; `spoil` works on them."""

    def __init__(self, card: Card, spoil: Any = lambda labels: labels):
        self.card, self.spoil, self.closed = card, spoil, False
        self.info = SimpleNamespace(version="1.31")

    def __call__(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return self.spoil((image[..., 1] >> 5).copy())

    def close(self) -> None:
        self.closed = True


def overflow(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bright pixels, where the sums are largest, become class 0."""
    labels[labels > 4] = 0
    return labels


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"a graph")
    return path


@pytest.mark.parametrize("trained", [True, False])
def test_a_gpu_that_computes_otherwise_is_not_served(path: Path, trained: bool) -> None:
    card = card_of(size=SIZE, trained=trained)
    opened: list[Pretended] = []

    def cpu() -> Any:
        opened.append(Pretended(card))
        return opened[-1]

    for _ in range(2):  # a failed proof is no proof
        with pytest.raises(ArtifactError, match="is wrong on Pretended GPU"):
            prove_half(path, card, Pretended(card, overflow), GPU, cpu)  # type: ignore[arg-type]
    assert [each.closed for each in opened] == [True, True]


def test_it_is_proven_once_for_each_gpu_file_and_version(path: Path) -> None:
    card = card_of(size=SIZE, trained=True)
    opened: list[Pretended] = []

    def cpu() -> Any:
        opened.append(Pretended(card))
        return opened[-1]

    def prove(gpu: Gpu = GPU, version: str = "1.31") -> int:
        backend: Any = Pretended(card)
        backend.info = SimpleNamespace(version=version)
        prove_half(path, card, backend, gpu, cpu)
        return len(opened)

    assert [prove(), prove()] == [1, 1]
    assert prove(replace(GPU, name="another GPU")) == 2
    assert prove(replace(GPU, driver="590")) == 3
    assert prove(version="1.32") == 4
    assert prove() == 5  # the record is of the last proof
    path.write_bytes(b"another graph")
    assert prove() == 6
    record = record_path(path)
    record.write_text(record.read_text().replace("true", "true "))
    assert prove() == 6  # the same values
    record.write_text(record.read_text().replace('"agreement": 1.0', '"agreement": 0.999'))
    assert prove() == 7  # a forged one is none


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_onnx_runtime_asks_for_it_on_cuda(
    precision: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only float16, and only on a GPU: on CPUs export has proven it."""
    backend = pytest.importorskip("rtseg.runtime.backends.onnxruntime")
    card = card_of(size=SIZE, precision=precision)
    asked: list[str] = []
    session = SimpleNamespace(
        get_providers=lambda: ["CUDAExecutionProvider"],
        get_inputs=lambda: [SimpleNamespace(shape=[1, *SIZE, 3])],
        get_outputs=lambda: [SimpleNamespace(name="labels", shape=[1, *SIZE])],
    )
    fake = SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider"],
        InferenceSession=lambda *_, **__: session, __version__="1.31",
        SessionOptions=backend.onnxruntime.SessionOptions,
    )  # fmt: skip
    monkeypatch.setattr(backend, "onnxruntime", fake)
    monkeypatch.setattr(backend, "preload_cuda", lambda package: "")
    monkeypatch.setattr(backend.OnnxRuntime, "_bind", lambda self: None)  # no memory of a GPU here
    monkeypatch.setattr(backend, "read_card", lambda path: card)
    monkeypatch.setattr(backend, "read_sealed", lambda path, card: path.read_bytes())
    monkeypatch.setattr(backend, "gpus", lambda: [GPU])
    monkeypatch.setattr(
        backend, "prove_half", lambda path, card, engine, gpu, cpu: asked.append(gpu.name)
    )
    backend.OnnxRuntime(path, "cuda:0")
    assert asked == (["Pretended GPU"] if precision == "fp16" else [])


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (made,) = export("csfcn_nano:camvid", SIZE, "onnx", "fp16", out=tmp_path_factory.mktemp("half"))
    return made.path


@pytest.mark.parametrize("arm", [True, False])
def test_onnx_runtime_asks_for_it_on_cpus_with_float16(
    arm: bool, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip("rtseg.runtime.backends.onnxruntime")
    pytest.importorskip("openvino")
    monkeypatch.setattr("platform.machine", lambda: "aarch64" if arm else "x86_64")
    load(half, "onnxruntime", "cpu").close()
    assert record_path(half).is_file() == arm
    if not arm:
        return
    record_path(half).unlink()
    monkeypatch.setattr(
        backend.OnnxRuntime, "download", lambda self: np.zeros((1, *SIZE), np.uint8)
    )
    with pytest.raises(ArtifactError, match=r"is wrong on .* in float16"):
        load(half, "onnxruntime", "cpu")
    record_path(half).unlink()


@pytest.mark.parametrize("chosen", ["fp16", "fp32"])
def test_openvino_asks_for_it_where_it_computes_in_float16(
    chosen: str, half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = pytest.importorskip("rtseg.runtime.backends.openvino")
    asked: list[str] = []

    def prove(path: Path, card: Card, engine: Any, processor: Processor, plain: Any) -> None:
        asked.append(processor.name)
        monkeypatch.undo()
        plain().close()  # what it is held against loads, in float32

    monkeypatch.setattr(backend, "prove_half", prove)
    monkeypatch.setitem(backend.NAMES, "f32", chosen)  # as a CPU with float16 would say
    load(half, "openvino", "cpu").close()
    assert asked == ([this_processor().name] if chosen == "fp16" else [])
