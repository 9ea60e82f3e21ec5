"""Engines for a deep learning accelerator, with a simulated builder: none is at hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_cuda import pretend, write_engine
from rtseg.errors import UsageError
from rtseg.export.dla import DlaUse, use_dla
from rtseg.runtime.artifact import sidecar
from rtseg.runtime.backends import tensorrt_engine
from rtseg.runtime.backends.tensorrt import TensorRT

TRT = SimpleNamespace(
    __name__="tensorrt",
    __version__="10.3.0",
    DeviceType=SimpleNamespace(DLA="dla", GPU="gpu"),
    BuilderFlag=SimpleNamespace(GPU_FALLBACK="fallback"),
)


class Config:
    def __init__(self, able: set[str]):
        self.able, self.flags = able, set[str]()
        self.default_device_type, self.DLA_core = "gpu", -1

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def can_run_on_DLA(self, layer: Any) -> bool:
        # As the real one, which judges by the settings at hand.
        return self.default_device_type == "dla" and layer.name in self.able


def network_of(*names: str) -> Any:
    layers = [SimpleNamespace(name=name) for name in names]
    return SimpleNamespace(num_layers=len(layers), get_layer=layers.__getitem__)


def test_what_a_dla_can_run_goes_there_and_the_rest_is_named() -> None:
    config, names = Config({"conv", "relu"}), [f"resize{i}" for i in range(10)]
    builder = SimpleNamespace(num_DLA_cores=2)
    found = use_dla(TRT, builder, network_of("conv", "relu", *names), config, 1, "fp16")
    assert (config.default_device_type, config.DLA_core) == ("dla", 1)
    assert config.flags == {"fallback"}
    assert found == DlaUse(1, 12, tuple(names))
    said = found.describe()
    assert said.startswith("10 of 12 layers run on the GPU, not on DLA core 1: resize0, ")
    assert said.endswith("resize7 and 2 more")
    assert found.facts()["dla_fallback"].split(", ") == names


@pytest.mark.parametrize(
    ("builder", "precision", "message"),
    [
        (SimpleNamespace(num_DLA_cores=0), "fp16", "finds no DLA here: --dla is for Jetson Orin"),
        (SimpleNamespace(), "fp16", "finds no DLA here"),
        (SimpleNamespace(num_DLA_cores=1), "int8", "finds DLA cores 0 to 0 only"),
        (SimpleNamespace(num_DLA_cores=2), "fp32", "fp16 or int8, not fp32"),
        (SimpleNamespace(num_DLA_cores=2), "fp16", "no layer of this network can run on DLA core"),
    ],
)
def test_what_no_dla_can_do_is_refused(builder: Any, precision: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        use_dla(TRT, builder, network_of("resize"), Config(set()), 1, precision)


def test_tensorrt_rtx_has_none(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    config = builder.create_builder_config()
    with pytest.raises(UsageError, match=r"tensorrt_rtx .* finds no DLA here"):
        use_dla(trt, builder, builder.create_network(0), config, 0, "fp16")


def test_the_card_and_a_warning_name_the_layers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("onnx")
    import numpy as np
    import test_engine
    from rtseg.export import tensorrt as module

    use = DlaUse(0, 7, ("argmax", "narrow"))
    monkeypatch.setattr(module, "use_dla", lambda *arguments: use)
    onnx = test_engine.graph(tmp_path / "small.onnx", np.float16)
    options = module.BuilderOptions(dla=0)
    target = tmp_path / "small.engine"
    built = module.build_engine(onnx, target, test_engine.card_of("fp16"), options=options)
    assert built.warnings[-1] == use.describe()
    facts = json.loads(sidecar(target).read_text())["engine"]
    assert facts["options"] == {"dla": "0", "dla_fallback": "argmax, narrow"}


@pytest.mark.parametrize("core", [None, 1])
def test_an_engine_is_read_for_its_core(
    core: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path)
    path, cores = write_engine(tmp_path), []
    card = TensorRT(path).card
    assert card.engine is not None
    options = None if core is None else {"dla": str(core), "dla_fallback": ""}
    engine = card.engine.model_copy(update={"options": options})

    def check(trt: Any, runtime: Any, content: bytes) -> None:
        cores.append(getattr(runtime, "DLA_core", None))

    monkeypatch.setattr(tensorrt_engine, "refuse_invalid", check)
    TensorRT(path, card=card.model_copy(update={"engine": engine})).close()
    assert cores == [core]
