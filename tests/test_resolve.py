"""What a user typed: names, checkpoints and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rtseg
from rtseg import resolve
from rtseg.errors import ArtifactError, MissingPackage, UsageError
from rtseg.models.loading import Model

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_a_name_is_exported_once_for_its_backend(
    nano: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    path = resolve.resolve_artifact(
        "csfcn_nano:camvid",
        size=SIZE,
        backend="onnxruntime",
        progress=lambda step, share: steps.append(step),
    )
    # Whichever was faster.
    assert path.name in ("csfcn_nano_64x96_fp32.ort.onnx", "csfcn_nano_64x96_int8.ort.onnx")
    assert path.is_relative_to(cache)
    assert steps
    assert resolve.is_artifact(path)
    assert not resolve.is_artifact("csfcn_nano")
    monkeypatch.setattr(rtseg.export, "export", None)
    assert resolve.resolve_artifact(nano, size=SIZE, backend="onnxruntime") == path
    assert resolve.resolve_artifact(str(path), backend="openvino") == path
    with resolve.open_segmenter(path, backend="onnxruntime") as segment:
        assert segment(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40)


def test_an_artifact_has_its_size_weights_and_classes(tmp_path: Path) -> None:
    for option in ({"size": SIZE}, {"weights": "a.pth"}, {"classes": "camvid"}):
        with pytest.raises(UsageError, match="has its weights, classes and size already"):
            resolve.resolve_artifact(tmp_path / "a.onnx", **option)  # type: ignore[arg-type]


def test_without_pytorch_only_artifacts_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r'pip install .*\[export\]", or name an artifact'):
        resolve.load_source("csfcn_nano")


def test_backends_are_checked_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no backend is called 'mxnet': choose from"):
        resolve.resolve_artifact("csfcn_nano", backend="mxnet")
    monkeypatch.setattr(resolve, "gpus", list)
    monkeypatch.setattr(resolve, "is_installed", lambda backend: True)
    with pytest.raises(ArtifactError, match="none answers here: take openvino or onnxruntime"):
        resolve.resolve_artifact("csfcn_nano", backend="tensorrt")


def test_on_a_gpu_the_backends_built_for_it_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "gpus", lambda: [object()])
    monkeypatch.setattr(resolve, "is_installed", lambda backend: True)
    monkeypatch.setattr(resolve, "_built_for_gpu", lambda backend: backend != "onnxruntime")
    assert resolve.fastest_backends(None) == ["tensorrt", "torch"]
    assert resolve.graph_precision(None) == "fp16"
    assert resolve.fastest_backends("cpu") == ["openvino", "onnxruntime"]
    assert resolve.graph_precision("cpu") == "auto"
