"""The proof catches every fault that was planted, and passes everything that is sound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from rtseg.data.scenes import scenes
from rtseg.export import export, reference
from rtseg.export import parity as proof
from rtseg.export.export import make_card
from rtseg.export.graph import census, to_onnx
from rtseg.models import Network, pipeline
from rtseg.models.loading import Model, load_model
from rtseg.runtime.artifact import Card, append_card

SIZE = 256, 512
Graph = onnx.ModelProto


@pytest.fixture(scope="module")
def expected(nano: Model) -> reference.ReferenceOutputs:
    frames = [(f"scene {i}", scene) for i, scene in enumerate(scenes(2, SIZE, seed=50))]
    return reference.run_reference(nano.network, reference.ProofFrames(frames), SIZE)


def judged(
    graph: Graph, card: Card, expected: reference.ReferenceOutputs, folder: Path
) -> proof.ParityResult:
    path = folder / "suspect.onnx"
    path.write_bytes(append_card(graph.SerializeToString(), card))
    return proof.prove_artifact(path, card, expected, "onnxruntime", census(graph))


def swapped_channels(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    normalize = pipeline.FrameToLabels.normalize
    monkeypatch.setattr(
        pipeline.FrameToLabels, "normalize", lambda self, frame: normalize(self, frame.flip(3))
    )


def wrong_mean(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    class Other:
        mean, std = (0.5, 0.5, 0.5), network.info.std
        multiple, align_corners, name, num_classes = 8, False, "", network.info.num_classes

        def check_size(self, height: int, width: int) -> None: ...

    network.info = Other()  # type: ignore[assignment]


def corners_flipped(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    network.upsample_logits.align_corners = False  # type: ignore[assignment]


def half_a_pixel_off(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    class Moved(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            height, width = (side * 8 for side in logits.shape[-2:])
            y = (torch.arange(height, device=logits.device) + 0.5) / (height - 1) * 2 - 1
            x = (torch.arange(width, device=logits.device) + 0.5) / (width - 1) * 2 - 1
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
            read = F.grid_sample(logits.float(), grid, align_corners=True, padding_mode="border")
            return read.to(logits.dtype)

    network.upsample_logits = Moved()


def classes_swapped(monkeypatch: pytest.MonkeyPatch, network: Network) -> None:
    order = torch.arange(network.info.num_classes)
    order[[3, 4]] = order[[4, 3]]
    classifier: Any = network.classifier
    classifier.weight.data = classifier.weight.data[order]
    classifier.bias.data = classifier.bias.data[order]


def grid_convention_flipped(graph: Graph) -> Graph:
    (sampler,) = (node for node in graph.graph.node if node.op_type == "GridSample")
    for attribute in sampler.attribute:
        if attribute.name == "align_corners":
            attribute.i = 0
    return graph


MODEL_FAULTS = (swapped_channels, wrong_mean, corners_flipped, half_a_pixel_off, classes_swapped)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fault", MODEL_FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_caught(
    fault: Callable[[pytest.MonkeyPatch, Network], None],
    precision: str,
    expected: reference.ReferenceOutputs,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    nano: Model,
) -> None:
    card = make_card(nano, SIZE, precision, "labels")
    network = load_model("csfcn_nano:camvid").network
    fault(monkeypatch, network)
    verdict = judged(to_onnx(network, SIZE, precision, ("labels",)), card, expected, tmp_path)
    assert verdict.status == "failed"
    assert verdict.faults
    # Of the sound file nearly all is certified.
    assert verdict.bound is not None
    assert verdict.bound["share"] < 0.9


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_flipped_grid_convention_is_caught(
    precision: str, expected: reference.ReferenceOutputs, tmp_path: Path, nano: Model
) -> None:
    graph = grid_convention_flipped(to_onnx(nano.network, SIZE, precision, ("labels",)))
    assert judged(graph, make_card(nano, SIZE, precision, "labels"), expected, tmp_path).faults


def test_float32_delivered_as_fp16_is_caught(
    expected: reference.ReferenceOutputs, tmp_path: Path, nano: Model
) -> None:
    graph = to_onnx(nano.network, SIZE, "fp32", ("labels",))
    verdict = judged(graph, make_card(nano, SIZE, "fp16", "labels"), expected, tmp_path)
    assert verdict.faults == ["the file claims fp16, but its values are 100% float"]


def test_int8_calibrated_on_noise_is_caught(
    expected: reference.ReferenceOutputs, tmp_path: Path, nano: Model
) -> None:
    from onnxruntime import quantization

    class Noise(quantization.CalibrationDataReader):  # type: ignore[misc]
        left = 2

        def get_next(self) -> dict[str, Any] | None:
            if not self.left:
                return None
            self.left -= 1
            noise = np.random.default_rng(self.left).integers(0, 256, (1, *SIZE, 3), np.uint8)
            return {"frame": noise}

    plain, quantized = tmp_path / "plain.onnx", tmp_path / "int8.onnx"
    onnx.save(to_onnx(nano.network, SIZE, "fp32", ("labels",)), plain)
    quantization.quantize_static(
        plain,
        quantized,
        Noise(),
        op_types_to_quantize=["Conv"],
        per_channel=True,
        extra_options={"QuantizeBias": False},
    )
    card = make_card(nano, SIZE, "fp32", "labels").model_copy(update={"precision": "int8"})
    assert judged(onnx.load(quantized), card, expected, tmp_path).faults


def test_twenty_sound_exports_pass(tmp_path: Path) -> None:
    jobs = [
        ("csfcn_nano", [(64, 128), (128, 256), (192, 96), (256, 512), (360, 480)], "labels"),
        ("csfcn_nano", [(128, 128), (64, 64)], "both"),
        ("csfcn_tiny", [(64, 128), (96, 160)], "labels"),
        ("csfcn", [(64, 128)], "both"),
    ]
    passed = []
    for name, sizes, outputs in jobs:
        source = load_model(name)
        for precision in ("fp32", "fp16"):
            passed += export(
                source,
                sizes,
                ["onnx"],
                precision,
                out=tmp_path / outputs,
                output=outputs,
            )
    assert len(passed) == 20
    assert {artifact.status for artifact in passed} == {"proven"}
