"""The roofline's arithmetic, ceilings that are measured, and layers that are counted."""

from __future__ import annotations

import contextlib
import importlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rtseg.errors import ArtifactError
from rtseg.export import export
from rtseg.models import build, count
from rtseg.models.loading import Model
from rtseg.runtime.backends.onnxruntime import kernel_times
from rtseg.speed import roofline
from rtseg.speed.profile import costliest
from rtseg.speed.roofline import (
    Ceilings,
    Work,
    _layer_counter,
    count_work,
    fastest,
    measure_ceilings,
    share,
)
from rtseg.speed.timing import device_ms
from speed_parts import Clock


def subject(precision: str, backend: str = "torch", threads: int | None = 1) -> SimpleNamespace:
    return SimpleNamespace(precision=precision, backend=backend, threads=threads)


CEILINGS = Ceilings("cpu", 2, {"fp32": 1e11, "int8": 1e12}, {}, 1e10)


def test_the_limit_is_the_slower_of_arithmetic_and_memory():
    computing = Work(macs=10**9, weights=10**6, pixels=10**6)
    found = share(computing, subject("fp32"), 20.0, CEILINGS)
    assert found.minimal_bytes == 8 * 10**6
    assert (found.limit_ms, found.reached) == (10, 0.5)
    moving = Work(macs=10**6, weights=10**8, pixels=0)
    assert share(moving, subject("fp32"), 80.0, CEILINGS).limit_ms == 40
    assert share(moving, subject("int8"), 80.0, CEILINGS).limit_ms == 10
    assert share(moving, subject("bf16"), 80.0, CEILINGS) is None


def test_float32_on_a_gpu_is_held_against_what_computes_it():
    """PyTorch's and ONNX Runtime's float32 convolutions take TF32: against float32 they would reach
    more than all of it."""
    ceilings = Ceilings("Some GPU", None, {"fp32": 1e11, "tf32": 4e11}, {}, 1e12)
    work = Work(macs=10**9, weights=1, pixels=1)
    for backend, ceiling, limit_ms in (
        ("eager", "tf32", 2.5),
        ("onnxruntime", "tf32", 2.5),
        ("tensorrt", "fp32", 10),
    ):
        found = share(work, subject("fp32", backend, None), 20.0, ceilings)
        assert (found.ceiling, found.limit_ms) == (ceiling, limit_ms)
    assert share(work, subject("fp32"), 20.0, ceilings).ceiling == "fp32"


def test_layers_are_bound_one_by_one():
    layers = ((10**9, 10**6, 0), (10**6, 10**7, 10**6))  # 10 ms of arithmetic, 4.4 of memory
    found = share(Work(1, 1, 1, layers), subject("fp32"), 28.8, CEILINGS)
    assert found.layers_ms == pytest.approx(14.4)
    assert found.layers_reached == 0.5


def test_layers_are_counted_as_arithmetic_has_them():
    layers: list[tuple[int, int, int]] = []
    image = torch.empty(1, 8, 10, 20, device="meta")
    with torch.no_grad(), _layer_counter(layers):
        torch.nn.Conv2d(8, 16, 3, padding=1, groups=2, device="meta")(image)
        torch.nn.ConvTranspose2d(8, 4, 2, stride=2, device="meta")(image)
        torch.nn.Linear(8, 5, device="meta")(torch.empty(7, 8, device="meta"))
        torch.bmm(torch.empty(2, 3, 4, device="meta"), torch.empty(2, 4, 6, device="meta"))
    assert layers == [
        (10 * 20 * 16 * 4 * 9, 24 * 200, 16 * 4 * 9),
        (10 * 20 * 8 * 4 * 4, 8 * 200 + 4 * 800, 8 * 4 * 4),
        (7 * 8 * 5, 7 * 8 + 7 * 5, 8 * 5),
        (2 * 3 * 4 * 6, 24 + 48 + 36, 0),
    ]


@pytest.mark.parametrize("variant", ["csfcn_nano", "sfnet_r18", "bisenetv2"])
def test_the_layers_work_is_the_network_s(variant):
    network, size = build(variant), (128, 256)
    work = count_work(network, size)
    assert work.macs == count(network, size).macs == sum(macs for macs, _, _ in work.layers)
    assert work.pixels == 128 * 256


def test_ceilings_are_measured_in_every_precision_that_is_there():
    found = measure_ceilings(1, seconds=0.001, sides=(32,), copy_bytes=1 << 16)
    assert {"fp32", "bf16"} <= set(found.macs_per_s)
    assert min(found.macs_per_s.values()) > 0
    assert found.bytes_per_s > 0
    assert found.by.keys() == found.macs_per_s.keys()
    assert "GMAC/s" in str(found)


def test_ceilings_are_measured_once_for_every_size_and_network(monkeypatch):
    measured = []
    bench = importlib.import_module("rtseg.speed.bench")  # the package has a function of that name
    bench._measure_once.cache_clear()
    monkeypatch.setattr(bench, "gpus", list)
    monkeypatch.setattr(bench, "measure_ceilings", lambda *asked: measured.append(asked) or "some")
    for _ in range(3):
        assert bench._ceilings(None, 2, lambda *_: None) == {"cpu": "some"}
    assert measured == [(2, "cpu")]
    bench._measure_once.cache_clear()


def test_a_ceiling_is_the_best_run():
    clock, times = Clock(), iter([50, 9, 7, 8, 9])
    assert fastest(lambda: clock.work(next(times)), 0.02, clock) == pytest.approx(0.007)


def test_the_costliest_layers_come_first(nano: Model, tmp_path: Path):
    pytest.importorskip("openvino")
    out = tmp_path / "out"
    made = export(nano, [(64, 128)], ["onnx", "openvino"], "fp32", out=out)
    for artifact, backend in zip(made, ("onnxruntime", "openvino"), strict=True):
        layers = costliest(artifact.path, backend, 1, count=5)
        assert len(layers) == 5
        assert [layer.ms for layer in layers] == sorted((x.ms for x in layers), reverse=True)
        assert 0 < sum(layer.share for layer in layers) <= 1
    kinds = {layer.kind for layer in costliest(made[0].path, "onnxruntime", 1, count=10)}
    assert "Conv" in kinds
    with pytest.raises(ArtifactError, match="does not report the times"):
        costliest(made[0].path, "tensorrt", 1)


def test_onnx_runtime_s_first_run_does_not_count():
    def event(ms: float) -> dict:
        facts = {"op_name": "Conv", "provider": "CPU"}
        return {"cat": "Node", "name": "a_kernel_time", "dur": 1e3 * ms, "args": facts}

    events = [event(90), event(5), event(6), {"cat": "Session", "name": "run", "dur": 1}]
    assert kernel_times(events) == {("a", "Conv", "CPU"): [5, 6]}


class Event:
    """A CUDA event on a clock that each call moves by 2 ms."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Event.now

    def synchronize(self):
        assert self.at is not None

    def elapsed_time(self, end):
        return end.at - self.at


def pretend_cuda(monkeypatch):
    """PyTorch's calls for a GPU, on the CPU."""
    real = torch.ones
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "ones", lambda *shape, **facts: real(*shape, dtype=facts["dtype"]))


def test_a_gpus_own_clock_is_read_by_events(monkeypatch):
    assert device_ms(lambda: None, "cpu") is None
    pretend_cuda(monkeypatch)

    held = []

    def call():
        time.sleep(0.002)  # that the host takes to queue it
        Event.now += 2.0

    def before():
        Event.now += 5.0

    def hold(cycles):
        held.append(cycles)
        Event.now += 7.0

    monkeypatch.setattr(torch.cuda, "_sleep", hold)
    assert device_ms(call, "cuda:1", runs=3) == 2.0
    assert device_ms(call, "cuda:1", runs=3, before=before) == 2.0
    # Longer than the host takes, at the clock of any GPU: it has nothing to wait for.
    assert min(held) > 0.002 * 3e9
    assert len(held) == 6


def test_a_product_that_a_gpu_lacks_leaves_the_other_ceilings(monkeypatch, caplog):
    def refused():
        raise RuntimeError("cublasLt has no such product\nlong trace")

    pretend_cuda(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    trials = [("int8", "PyTorch 8", 8**3, refused), ("fp16", "PyTorch 8", 8**3, lambda: None)]
    monkeypatch.setattr(roofline, "_torch", lambda *_: trials)
    found = roofline.measure_ceilings(1, "cuda", 0.001, (8,), 1 << 12)
    assert found.macs_per_s.keys() == {"fp16"}
    assert "no ceiling in int8 by PyTorch 8: cublasLt has no such product" in caplog.text
    monkeypatch.setattr(roofline, "_on_cpu", lambda *_: trials)
    with pytest.raises(RuntimeError):
        roofline.measure_ceilings(1, "cpu", 0.001, (8,), 1 << 12)


def test_copies_are_measured_each_way_and_from_both_kinds_of_memory(monkeypatch):
    pretend_cuda(monkeypatch)
    rates = roofline.measure_copies("cuda", seconds=0.001, size=1 << 12)
    ways = {f"{way}, {kind}" for way in ("upload", "download") for kind in ("pinned", "pageable")}
    assert rates.keys() == ways
    assert min(rates.values()) > 0


def test_eight_bit_floats_are_multiplied_as_pytorch_wants():
    """The call that a GPU of 8.9 and later is measured with; PyTorch takes it on a CPU too."""
    left, right = (roofline.to_eight_bits(torch.eye(16)) for _ in range(2))
    product = roofline.multiply_eight_bits(left, right.t().contiguous().t(), torch.ones(()))
    assert torch.equal(product.float(), torch.eye(16))
