"""Artifacts for several cameras: one call labels a batch, and every slot is proven on its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from fake_cuda import CLASSES, SIZE, picture, pretend, write_engine
from labels_plain import KINDS, plain, ties
from onnx import helper, numpy_helper
from onnx_files import Net, write_torch
from rtseg.data.scenes import scenes
from rtseg.errors import ArtifactError, ExportError, ProofError, UsageError
from rtseg.export import export
from rtseg.export.reference import draw_frames
from rtseg.models.loading import Model, load_model
from rtseg.models.onnx_file import OnnxNetwork
from rtseg.models.pipeline import normalize_frame
from rtseg.runtime import load, read_card
from rtseg.runtime.argmax import LabelMaker
from rtseg.runtime.artifact import MOST_BATCH, Card
from rtseg.runtime.backends.tensorrt import TensorRT
from rtseg.runtime.batches import plan_batches
from rtseg.runtime.description import describe
from rtseg.runtime.segmenter import Segmenter
from torch import Tensor, nn
from torch.nn import functional as F

BATCH, FRAME = 3, (64, 96)


class Attention(nn.Module):
    """A transformer's block between two convolutions: all that mixes the axes of a batch up."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.stem = nn.Conv2d(3, 16, 8, stride=8)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, image: Tensor) -> Tensor:
        map_ = self.stem(image)
        tokens = self.block(map_.flatten(2).transpose(1, 2))
        logits = self.head(tokens.transpose(1, 2).unflatten(2, map_.shape[-2:]))
        return F.interpolate(logits, image.shape[-2:], mode="bilinear")


def own(module: nn.Module) -> Model:
    return load_model(module, classes="numbered", normalize="imagenet", size=FRAME)


def zoo(folder: Path) -> Model:
    return load_model("csfcn_nano:camvid")


def transformer(folder: Path) -> Model:
    return own(Attention())


def plain_module(folder: Path) -> Model:
    return own(Net(ends="resized"))


def foreign(folder: Path) -> Model:
    path = write_torch(folder / "theirs.onnx", Net(), dynamo=False, dynamic=True)
    return load_model(path, classes="numbered", normalize="imagenet", size=FRAME)


@pytest.mark.parametrize("make", [zoo, transformer, plain_module, foreign])
def test_every_slot_has_its_own_frames_labels(
    make: Callable[[Path], Model], tmp_path: Path
) -> None:
    source = make(tmp_path)
    targets = ["onnx", *(["openvino", "torch"] if make is zoo else [])]
    made = export(source, FRAME, targets, "fp32", batch=BATCH, out=tmp_path)
    frames = scenes(BATCH, FRAME, seed=20)
    alone = _labels_alone(source, frames)
    assert len({labels.tobytes() for labels in alone}) == BATCH, "else slots could be exchanged"
    for artifact in made:
        assert artifact.status == "proven"
        assert artifact.path.stem.endswith("_b3")
        assert describe(artifact.path)["batch"] == BATCH
        with load(artifact.path, device="cpu") as segment:
            found = segment(frames)
            assert found.shape == (BATCH, *FRAME)
            for slot in range(BATCH):
                assert (found[slot] == alone[slot]).mean() > 0.999


def _labels_alone(source: Model, frames: list[Any]) -> list[Any]:
    """By the plain network, a frame at a time."""
    with torch.inference_mode():
        logits = [source.network(normalize_frame(frame, source.network)) for frame in frames]
        corners = source.network.info.align_corners
        full = [F.interpolate(x, FRAME, mode="bilinear", align_corners=corners) for x in logits]
    return [x.argmax(1)[0].numpy() for x in full]


def _with_fault(graph: onnx.ModelProto, slots: list[int]) -> onnx.ModelProto:
    """Labels of the batch in another order, as a mistaken reshape gives them."""
    for node in graph.graph.node:
        for place, name in enumerate(node.output):
            node.output[place] = "labels/right" if name == "labels" else name
    graph.graph.initializer.append(numpy_helper.from_array(np.array(slots), "slots"))
    gather = helper.make_node("Gather", ["labels/right", "slots"], ["labels"], "mixed", axis=0)
    graph.graph.node.append(gather)
    return graph


def test_a_fault_in_one_slot_is_found_and_named(
    nano: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rtseg.export.graph import to_onnx

    monkeypatch.setattr(
        "rtseg.export.job.to_onnx", lambda *args: _with_fault(to_onnx(*args), [0, 0, 2])
    )
    with pytest.raises(ProofError, match="slot 1 of the batch: labels agree on") as told:
        export(nano, FRAME, batch=BATCH, out=tmp_path)
    assert "slot 0" not in str(told.value)
    assert "slot 2" not in str(told.value)


@pytest.fixture(scope="module")
def artifact(nano: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(nano, FRAME, batch=BATCH, out=tmp_path_factory.mktemp("batch"))[0].path


def test_fewer_frames_and_one_alone(artifact: Path) -> None:
    frames = scenes(BATCH, FRAME, seed=30)
    with load(artifact, device="cpu") as segment:
        whole = segment(np.stack(frames))
        np.testing.assert_array_equal(segment(frames[:2]), whole[:2])
        np.testing.assert_array_equal(segment(frames[1]), whole[1])
        larger = scenes(1, (100, 150), seed=30)[0]
        first, second = segment.label_each([frames[0], larger])
        np.testing.assert_array_equal(first, whole[0])
        assert second.shape == (100, 150)


def test_what_is_no_batch_is_told(artifact: Path) -> None:
    frames = scenes(BATCH + 1, FRAME)
    with load(artifact, device="cpu") as segment:
        with pytest.raises(UsageError, match="takes 3 frames at a time, not 4"):
            segment(frames)
        with pytest.raises(UsageError, match="no frame in the batch"):
            segment([])
        with pytest.raises(UsageError, match="one size, not 64x96 and 32x96"):
            segment([frames[0], frames[1][:32]])


@pytest.mark.parametrize("batch", [0, -1, MOST_BATCH + 1])
def test_a_batch_that_none_is(nano: Model, batch: int, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"1 to {MOST_BATCH} frames, not {batch}"):
        export(nano, FRAME, batch=batch, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_proof_has_another_frame_for_every_slot(nano: Model, tmp_path: Path) -> None:
    few = draw_frames(2, FRAME).frames
    with pytest.raises(ExportError, match=r"a batch of 3 is proven .*, and 2 are given"):
        export(nano, FRAME, batch=BATCH, frames=few, out=tmp_path / "out")
    assert plan_batches(5, 3) == [[0, 1, 2], [3, 4, 0]]


def test_a_file_that_fixes_its_batch_is_told(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "fixed.onnx", Net(), dynamo=False)
    model = onnx.load(path)
    (last,) = [node for node in model.graph.node if "output" in node.output]
    last.output[0] = "map"
    shape = numpy_helper.from_array(np.array([1, 5, 16, 24]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(helper.make_node("Reshape", ["map", "shape"], ["output"]))
    onnx.save(model, path)
    source = load_model(path, classes="numbered", normalize="imagenet", size=FRAME)
    assert isinstance(source.network, OnnxNetwork)
    with pytest.raises(UsageError, match="cannot be brought to 2 images of 64x96"):
        source.network.prepare(FRAME, 2)


def test_cards_without_a_batch_take_one_frame(artifact: Path) -> None:
    card = read_card(artifact)
    assert (card.batch, card.input_shape) == (BATCH, (BATCH, *FRAME, 3))
    older = card.model_dump(mode="json", exclude={"batch"})
    assert Card.model_validate(older).batch == 1
    with pytest.raises(ValueError, match="a batch of 0 cannot be right"):
        Card.model_validate(card.model_dump() | {"batch": 0})


@pytest.mark.parametrize("threads", [1, 3])
def test_labels_of_coarse_logits_by_frame(threads: int) -> None:
    for make in KINDS:
        logits = make((BATCH, 11, 17, 33))
        maker = LabelMaker(logits.shape, (136, 264), "bilinear", threads)
        np.testing.assert_array_equal(maker(logits), plain(logits, (136, 264), False))
    logits = ties((BATCH, 5 * 16, 9, 13))
    expected = torch.pixel_shuffle(torch.from_numpy(logits), 4).argmax(1).numpy()
    maker = LabelMaker(logits.shape, (36, 52), "shuffle", threads)
    np.testing.assert_array_equal(maker(logits), expected)


def test_an_engine_takes_a_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path)
    engine = write_engine(tmp_path, batch=BATCH)
    with Segmenter(TensorRT(engine)) as segment:
        frames = [picture(seed)[0] for seed in range(BATCH)]
        expected = np.stack(frames)[..., 0] % CLASSES
        np.testing.assert_array_equal(segment(frames), expected)
        np.testing.assert_array_equal(segment(frames[:1]), expected[:1])


def test_an_engine_with_a_fault_in_one_slot_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path)

    def other_in_slot_1(frames: Any) -> Any:
        labels = frames[..., 0] % CLASSES
        labels[1] = (labels[1] + 1) % CLASSES
        return labels

    engine = write_engine(tmp_path, batch=BATCH, labels_of=other_in_slot_1)
    with pytest.raises(ArtifactError, match="is wrong on Pretended GPU"):
        TensorRT(engine)
    one = write_engine(tmp_path, tensors={"frame": (1, *SIZE, 3), "labels": (1, *SIZE)}, batch=2)
    with pytest.raises(ArtifactError, match="not the engine of its card"):
        TensorRT(one)


def test_bench_reports_a_batch_and_a_frame(artifact: Path) -> None:
    from rtseg.speed.bench import bench, set_up
    from rtseg.speed.config import BenchConfig
    from rtseg.speed.scenarios import throughput

    report = bench(
        artifact, backend="onnxruntime", device="cpu", runs=2, seconds=0.1, camera_hz=None
    )
    row, eager = report.facts
    assert (eager["backend"], eager["peer"], eager["batch"]) == ("eager", True, BATCH)
    assert row["batch"] == BATCH
    assert row["ms_a_frame"] == pytest.approx(row["ms_a_batch"] / BATCH, abs=1e-3)
    times: Any = row["frame_to_labels"]
    assert times["fps"] == pytest.approx(1e3 * BATCH / times["mean_ms"], rel=1e-2)
    latency = report.tables[0]
    assert list(latency.header[1:5]) == ["size", "run by", "ms a batch", "ms a frame"]
    assert latency.rows[0][1] == "64x96 b3"
    setup = set_up(BenchConfig([artifact], backends=["onnxruntime"], device="cpu", eager=False))
    with pytest.raises(UsageError, match="takes 3 frames at once, which only"):
        throughput(setup)
