"""Export and parity on real frames, and what an export leaves behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from rtseg.data.classes import CAMVID
from rtseg.errors import ExportError, ProofError
from rtseg.export import export, reference
from rtseg.export.artifacts import list_notes
from rtseg.export.graph import census
from rtseg.models import FrameToLabels, build, deploy
from rtseg.models.loading import Model, load_model
from rtseg.models.random_weights import build_untrained
from rtseg.runtime import load, read_card
from rtseg.runtime.description import describe

Frames = list[tuple[str, np.ndarray[Any, Any]]]


@pytest.mark.parametrize("size", [(256, 512), (384, 768)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", ["csfcn", "csfcn_tiny", "csfcn_nano"])
def test_parity_on_street_frames(
    name: str, size: tuple[int, int], street_frames: Frames, tmp_path: Path
) -> None:
    source = load_model(name)
    artifacts = export(
        source,
        [size],
        ["onnx", "openvino"],
        "fp32",
        out=tmp_path,
        frames=street_frames[:2],
    )
    assert [a.status for a in artifacts] == ["proven", "proven"]
    for verdict in (v for a in artifacts for v in a.results if v.precision == "fp32"):
        assert verdict.agreement is not None
        assert verdict.agreement >= 0.9999
        assert verdict.logits_error is not None
        assert verdict.logits_error <= 1e-4


def test_the_graph_is_typed_and_described(nano: Model, tmp_path: Path) -> None:
    (artifact,) = export(
        nano, [(64, 128)], ["onnx"], "fp16", out=tmp_path, output="both",
    )  # fmt: skip
    model = onnx.load(artifact.path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [18]
    held = census(model)
    assert held["float16"] > 100 * held["float"]
    card = json.loads({p.key: p.value for p in model.metadata_props}["rtseg"])
    assert card["classes"] == list(CAMVID.names)
    assert card["size"] == [64, 128]
    assert card["proof"]["passed"] is True
    session = onnxruntime.InferenceSession(artifact.path)
    types = {o.name: (o.type, o.shape) for o in session.get_outputs()}
    assert types["labels"] == ("tensor(uint8)", [1, 64, 128])
    assert types["logits"] == ("tensor(float16)", [1, 11, 64, 128])
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape) == (
        "tensor(uint8)",
        [1, 64, 128, 3],
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report[artifact.path.name]["report"] == card["proof"]["report"]


@pytest.mark.parametrize("name", ["csfcn", "csfcn_tiny"])
def test_frame_to_labels_is_the_papers_arithmetic(name: str) -> None:
    """Normalize, network, argmax: with the graph's own shortcuts and without."""
    import torch
    from rtseg.models.pipeline import normalize_frame

    torch.manual_seed(4)
    model = build(name, 7)
    for parameter in model.parameters():
        parameter.data.normal_(std=max(1, parameter[0].numel()) ** -0.5)
    frame = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    whole = FrameToLabels(deploy(model), ("labels", "logits"))
    assert whole.folded
    with torch.inference_mode():
        labels, logits = whole(torch.from_numpy(frame[None]))
        expected = model(normalize_frame(frame, model))
    assert (logits - expected).abs().max() / expected.abs().max() < 1e-5
    assert (labels == expected.argmax(1)).float().mean() > 0.9999


def test_a_gpu_that_an_engine_cannot_run_on_is_told_once(
    nano: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorrt_rtx")
    made = export(nano, (64, 64), "tensorrt", gpu="h100", out=tmp_path)
    told = [record.getMessage() for record in caplog.records] + list_notes(made)
    assert sum("does not run on h100" in line for line in told) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [(100, 200)]}, "multiples of 8, not 100x200: use 96x200 or 104x200"),
        ({"to": ["tflite"]}, "no target is called 'tflite'"),
        ({"precision": "fp4"}, "precision is fp32, fp16, int8, fp8 or auto, not 'fp4'"),
        ({"output": "masks"}, "output is labels, logits, both"),
        ({"size": []}, "at least one size"),
    ],
    ids=["size", "target", "precision", "outputs", "nothing"],
)
def test_bad_wishes_write_nothing(
    change: dict[str, Any], message: str, nano: Model, tmp_path: Path
) -> None:
    wish: dict[str, Any] = {"size": (64, 64), "to": "onnx", "precision": "fp32"} | change
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=message):
        export(nano, out=out, **wish)
    assert not out.exists()


def test_a_class_set_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match="'camvid' has 11 classes, but the model was built with 19"
    ):
        export(replace(load_model("csfcn"), classes=CAMVID), (64, 64), out=tmp_path)


def test_an_artifact_below_the_bar_is_kept_as_failed(
    nano: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = reference.run_reference

    def off(*arguments: Any) -> reference.ReferenceOutputs:
        expected = run(*arguments)
        expected.reference.labels[:] = (expected.reference.labels + 1) % 11
        return expected

    monkeypatch.setattr("rtseg.export.job.run_reference", off)
    with pytest.raises(ProofError, match="below the parity bar"):
        export(nano, [(64, 128)], out=tmp_path)
    assert [p.name for p in tmp_path.glob("*.onnx*")] == ["csfcn_nano_64x128_fp32.onnx.failed"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["csfcn_nano_64x128_fp32.onnx.failed"]["status"] == "failed"


def test_other_weights_of_the_same_name_are_told(
    nano: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file's name has no weights in it, so the second export takes the first one's place."""
    (made,) = export(nano, (64, 96), precision="fp32", out=tmp_path)
    assert "is replaced" not in caplog.text
    assert str(describe(made.path)["intact"]).startswith("yes")
    other = replace(nano, network=build_untrained("csfcn_nano", 11), weights_from="random, seed 0")
    export(replace(other, trained=False), (64, 96), precision="fp32", out=tmp_path)
    assert f"{made.path} of other weights ({nano.weights_from}) is replaced" in caplog.text
    content = bytearray(made.path.read_bytes())
    content[len(content) // 2] ^= 1
    made.path.write_bytes(content)
    assert str(describe(made.path)["intact"]).startswith("NO: ")


def test_labels_of_the_frames_prove_the_miou(nano: Model, tmp_path: Path) -> None:
    frames, truth = tmp_path / "frames", tmp_path / "truth"
    frames.mkdir()
    truth.mkdir()
    random = np.random.default_rng(1)
    picture = cv2.resize(random.integers(0, 256, (9, 12, 3), np.uint8), (128, 96))
    cv2.imwrite(str(frames / "a.png"), picture)
    cv2.imwrite(str(truth / "a.png"), random.integers(0, 11, (96, 128), np.uint8))
    with pytest.raises(ExportError, match="--labels is the folder of the frames themselves"):
        export(nano, [(96, 128)], out=tmp_path, frames=frames, labels=frames)
    (artifact,) = export(nano, [(96, 128)], out=tmp_path, frames=frames, labels=truth)
    assert artifact.results[0].miou_change == pytest.approx(0, abs=1e-4)
    assert set(artifact.results[0].iou_change) <= set(CAMVID.names)


def test_an_engine_is_built_without_a_gpu(nano: Model, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    (artifact,) = export(nano, [(64, 128)], ["tensorrt"], "fp16", out=tmp_path)
    engine = artifact.card.engine
    assert engine is not None
    assert engine.layers <= 250
    assert "STRONGLY_TYPED" in engine.flags
    held = artifact.results[0].census
    assert held["float16"] > 50 * held["float"]
    assert artifact.status == "built, not proven"
    assert read_card(artifact.path) == artifact.card
    assert set(artifact.card.files) == {
        artifact.path.name,
        f"{artifact.path.name}.reference.npz",
    }


def test_csfcn_takes_few_tensorrt_layers(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    from rtseg.export.export import make_card
    from rtseg.export.graph import to_onnx
    from rtseg.export.tensorrt import build_engine

    model = build("csfcn")
    graph = tmp_path / "graph.onnx"
    onnx.save(to_onnx(model, (256, 512), "fp16", ("labels",)), graph)
    card = make_card(load_model("csfcn"), (256, 512), "fp16", "labels")
    built = build_engine(graph, tmp_path / "x.engine", card)
    assert built.card.engine is not None
    assert built.card.engine.layers <= 250


def test_the_torch_artifact_agrees_with_the_onnx_one(nano: Model, tmp_path: Path) -> None:
    artifacts = export(nano, [(64, 128)], ["onnx", "torch"], out=tmp_path)
    frame = np.random.default_rng(2).integers(0, 256, (64, 128, 3), np.uint8)
    answers = []
    for artifact in artifacts:
        with load(artifact.path, device="cpu") as segment:
            answers.append(segment(frame))
    assert (answers[0] == answers[1]).mean() > 0.999
